// Code blocks: a head with the language and a copy button, and colours once they are complete.
import DOMPurify from "../vendor/dompurify/purify.js";
import highlighter from "../vendor/highlight/highlight.js";
import { copyButton } from "./copy.js";
import { h } from "./dom.js";

const COLOURED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };
const LONGEST_COLOURED = 100_000; // characters

/** Put a frame around each block of code below `root`; `plain` leaves the colours out. */
export function dressCode(root, plain = false) {
  for (const pre of root.querySelectorAll("pre")) {
    const code = pre.firstElementChild;
    const language = pre.dataset.language ?? "";
    if (!plain) colour(code, language);
    const frame = codeFrame(language, () => code.textContent);
    pre.replaceWith(frame);
    frame.append(pre);
  }
}

/** The frame with its head; `text` gives what the button copies. */
export const codeFrame = (language, text) =>
  h(
    "div",
    { class: language ? "code" : "code bare", dir: "ltr" },
    h("div", { class: "code-head" }, h("span", {}, language), copyButton("code.copy", text)),
  );

function colour(code, language) {
  if (!highlighter.getLanguage(language) || code.textContent.length > LONGEST_COLOURED) return;
  const { value } = highlighter.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(DOMPurify.sanitize(value, COLOURED));
}
