// What a screen reader is told of a growing answer: whole sentences, not tokens.
import { $, h } from "./dom.js";
import { t } from "./i18n.js";

const SENTENCE_END = /[.!?…:。！？]["'”’)\]]*(?=\s)|\n+/g;
const LONGEST_LOG = 40; // paragraphs

/** Say a string of the page. */
export const announce = (key, ...args) => speak(t(key, ...args));

function speak(text) {
  const log = $("#spoken");
  log.append(h("p", {}, text));
  while (log.children.length > LONGEST_LOG) log.firstChild.remove();
}

/** Follows one text; call it with all of it each time. */
export class Speaker {
  /** `said`: how many characters need not be said any more. */
  constructor(said) {
    this.said = said;
  }

  /** Say the sentences that have been finished since; with `all` what is left as well. */
  follow(text, all = false) {
    const fresh = text.slice(this.said);
    const end = all ? fresh.length : lastEnd(fresh);
    if (!end) return;
    this.said += end;
    const words = plain(fresh.slice(0, end));
    if (words) speak(words);
  }
}

function lastEnd(text) {
  let end = 0;
  for (const { index, 0: mark } of text.matchAll(SENTENCE_END)) end = index + mark.length;
  return end;
}

// Without the signs of Markdown, which nobody wants to hear.
const plain = (text) =>
  text
    .replace(/^[#>\s]+|[*_`~]+|^\s*[-+]\s+/gm, "")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .trim();
