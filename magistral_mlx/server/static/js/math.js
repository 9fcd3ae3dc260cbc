// LaTeX for markdown-it: $x$, \(x\) in a line; $$x$$, \[x\] and \begin{align} as blocks.
import "../vendor/katex/katex.js";

const { katex } = globalThis;
const OPENINGS = [
  { open: "$$", close: "$$" },
  { open: "\\[", close: "\\]" },
];
const ENVIRONMENT =
  /^\\begin\{((?:equation|align|aligned|alignat|gather|gathered|multline|CD|cases|[pbvVB]?matrix|array)\*?)\}/;

/** Teach a markdown-it about LaTeX. */
export function mathPlugin(md) {
  md.inline.ruler.before("escape", "math", inlineMath);
  md.block.ruler.before("fence", "math_block", blockMath, {
    alt: ["paragraph", "reference", "blockquote", "list"],
  });
  for (const [rule, tag] of [
    ["math", "span"],
    ["math_block", "div"],
  ]) {
    md.renderer.rules[rule] = (tokens, index) => {
      const { content, meta } = tokens[index];
      const tex = md.utils.escapeHtml(content);
      return `<${tag} class="math" data-math="${meta.display ? "display" : "inline"}">${tex}</${tag}>`;
    };
  }
  md.renderer.rules.math_pending = (tokens, index) =>
    `<div class="math-pending">${md.utils.escapeHtml(tokens[index].content)}</div>`;
}

function inlineMath(state, silent) {
  const { src, pos } = state;
  const found = inlineAt(src.slice(pos, state.posMax));
  if (!found) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = found.tex;
    token.meta = { display: found.display };
  }
  state.pos = pos + found.length;
  return true;
}

function inlineAt(text) {
  for (const [open, close, display] of [
    ["\\(", "\\)", false],
    ["\\[", "\\]", true],
    ["$$", "$$", true],
  ]) {
    if (!text.startsWith(open)) continue;
    const end = text.indexOf(close, open.length);
    if (end > open.length)
      return { tex: text.slice(open.length, end), display, length: end + close.length };
  }
  // One dollar: no space inside the signs and no digit after them, so that "$5 and $6" is money.
  const dollar = /^\$((?:[^\s$\\]|\\.)(?:(?:[^$\\]|\\.)*?(?:[^\s$\\]|\\.))?)\$(?!\d)/s.exec(text);
  return dollar && { tex: dollar[1], display: false, length: dollar[0].length };
}

function blockMath(state, startLine, endLine, silent) {
  if (state.sCount[startLine] - state.blkIndent >= 4) return false;
  const line = (at) =>
    state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]).trimEnd();
  const first = line(startLine);
  const fence = opening(first);
  if (!fence) return false;
  let last = startLine;
  let text = first.slice(fence.skip);
  while (!text.endsWith(fence.close)) {
    // More text after the end: a paragraph with a formula in it, which the inline rule takes.
    if (text.includes(fence.close)) return false;
    last += 1;
    if (last >= endLine || state.sCount[last] < state.blkIndent || !line(last)) {
      return unfinished(state, startLine, last, silent);
    }
    text += `\n${line(last)}`;
  }
  if (silent) return true;
  const body = fence.keep ? text : text.slice(0, -fence.close.length);
  push(state, "math_block", startLine, last + 1, body);
  return true;
}

function opening(line) {
  for (const { open, close } of OPENINGS) {
    if (line.startsWith(open)) return { close, skip: open.length, keep: false };
  }
  const name = ENVIRONMENT.exec(line)?.[1];
  return name && { close: `\\end{${name}}`, skip: 0, keep: true };
}

// The end has not come: plain while more text may follow, else no formula at all.
function unfinished(state, startLine, endLine, silent) {
  if (!state.env.streaming || endLine < state.lineMax) return false;
  if (!silent)
    push(state, "math_pending", startLine, endLine, state.getLines(startLine, endLine, 0, false));
  return true;
}

function push(state, type, start, end, content) {
  state.line = end;
  const token = state.push(type, "", 0);
  token.block = true;
  token.content = content;
  token.map = [start, end];
  token.meta = { display: true };
}

const drawn = new Map(); // formulas are drawn again in each frame of the block they stand in
const MOST_DRAWN = 500;
const SHORT = 30; // characters of a formula that need not be broken into lines

/** Draw the formulas below `root`. What KaTeX cannot read stays as it was written. */
export function drawMath(root) {
  for (const element of root.querySelectorAll("[data-math]")) {
    const tex = element.textContent;
    const id = element.dataset.math + tex;
    if (!drawn.has(id)) {
      if (drawn.size >= MOST_DRAWN) drawn.delete(drawn.keys().next().value);
      drawn.set(id, draw(tex, element.dataset.math === "display"));
    }
    element.replaceChildren(drawn.get(id).cloneNode(true));
    if (element.dataset.math === "inline" && tex.length <= SHORT) holdPunctuation(element);
  }
}

// A line must not begin with the comma after a formula.
function holdPunctuation(element) {
  const next = element.nextSibling;
  const mark = next?.nodeType === Node.TEXT_NODE && /^[-.,;:!?)\]…’”]+/.exec(next.data)?.[0];
  if (!mark) return;
  next.splitText(mark.length);
  const held = document.createElement("span");
  held.className = "held";
  element.replaceWith(held);
  held.append(element, next);
}

function draw(tex, displayMode) {
  const element = document.createElement("span");
  try {
    // Not trusted: no links, images, classes or styles out of LaTeX; sizes and macros are bounded.
    katex.render(tex, element, {
      displayMode,
      trust: false,
      strict: "ignore",
      errorColor: "var(--wrong)",
      maxSize: 20,
      maxExpand: 500,
    });
  } catch (error) {
    element.className = "math-error";
    element.textContent = tex;
    element.title = error.message;
  }
  return element;
}
