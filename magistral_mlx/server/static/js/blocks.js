// Markdown that grows. A block that is finished is rendered once and never touched again; only the
// one that is being written is rendered anew, at most once a frame, and code that is being written
// only gets its new characters appended. So a long answer costs what its length is.
import { codeFrame } from "./code.js";
import { h } from "./dom.js";
import { lastBlockLine, render } from "./markdown.js";
import { morph } from "./morph.js";

// A table whose second line has not come is but bars.
const HALF_TABLE = /^\|[^\n]*(\n[-:| ]*)?$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^\n]*)\n/;

export class Blocks {
  /** Renders into `container`. */
  constructor(container) {
    this.container = container;
    this.done = 0; // elements of finished blocks; those after them are still being written
    this.text = "";
    this.settled = 0; // characters that belong to finished blocks
    this.fence = null; // the code block that is being written
    this.env = { streaming: true };
    this.finished = false;
  }

  /** Show `text`, which begins with all that was shown before. */
  grow(text) {
    this.text = text;
    if (this.fence && !this.#growFence()) return;
    this.#settle();
    this.#openFence();
    if (this.fence) return;
    const tail = this.text.slice(this.settled);
    morph(this.container, HALF_TABLE.test(tail) ? null : render(tail, { ...this.env }), this.done);
  }

  /** Show `text` as a whole: nothing follows. */
  finish(text) {
    this.finished = true;
    this.text = text;
    lastBlockLine(`${text.slice(this.settled)}\n`, this.env); // notes links that it defines
    const wanted = this.env.references && Object.keys(this.env.references).length > 0;
    if (wanted) {
      this.settled = 0; // a link may be defined at the very end
      this.done = 0;
    }
    const env = wanted ? {} : { level: this.env.level };
    morph(this.container, render(text.slice(this.settled), env), this.done);
    this.fence = null;
  }

  // Blocks are told by whole lines: more characters may turn the last line into anything.
  #settle() {
    const tail = this.text.slice(this.settled);
    const whole = tail.slice(0, tail.lastIndexOf("\n") + 1);
    if (!whole) return;
    const line = lastBlockLine(whole, this.env);
    if (line > 0) this.#settleTo(this.settled + startOf(whole, line));
  }

  #settleTo(end) {
    const finished = this.text.slice(this.settled, end);
    this.env.streaming = false;
    morph(this.container, render(finished, this.env), this.done);
    this.done = this.container.childNodes.length;
    this.env.streaming = true;
    this.settled = end;
  }

  #openFence() {
    const tail = this.text.slice(this.settled);
    const found = FENCE.exec(tail);
    if (!found || (found[1][0] === "`" && found[2].includes("`"))) return;
    const code = document.createTextNode("");
    const frame = codeFrame(found[2].trim().split(/\s+/)[0], () => code.data);
    frame.append(h("pre", {}, h("code", {}, code)));
    while (this.container.childNodes.length > this.done) this.container.lastChild.remove();
    this.container.append(frame);
    const body = this.settled + found[0].length;
    this.fence = {
      code,
      shown: body,
      line: body, // where the first line begins that may still become the end mark
      end: new RegExp(`^ {0,3}${found[1][0]}{${found[1].length},}[ \\t]*$`),
    };
    if (this.#growFence()) this.grow(this.text);
  }

  // Append what is new. True once the block has ended.
  #growFence() {
    const fence = this.fence;
    for (;;) {
      const newline = this.text.indexOf("\n", fence.line);
      if (newline < 0) break;
      if (fence.end.test(this.text.slice(fence.line, newline))) {
        this.fence = null;
        this.#settleTo(newline + 1);
        return true;
      }
      fence.line = newline + 1;
    }
    // A line of marks alone may become the end mark: hold it back.
    const tail = this.text.slice(fence.line);
    const upTo = /^ {0,3}[`~]+$/.test(tail) ? fence.line : this.text.length;
    if (upTo > fence.shown) {
      fence.code.appendData(this.text.slice(fence.shown, upTo));
      fence.shown = upTo;
    }
    return false;
  }
}

function startOf(text, line) {
  let at = 0;
  for (let count = 0; count < line; count += 1) at = text.indexOf("\n", at) + 1;
  return at;
}
