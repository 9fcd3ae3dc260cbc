// Markdown to elements. What a model writes is never trusted: its HTML is shown as text, images
// become links, and the sanitiser has the last word on what reaches the page.
import DOMPurify from "../vendor/dompurify/purify.js";
import MarkdownIt from "../vendor/markdown-it/markdown-it.js";
import { dressCode } from "./code.js";
import { drawMath, mathPlugin } from "./math.js";

const ALLOWED = {
  ALLOWED_TAGS:
    "p br hr h3 h4 h5 h6 ul ol li blockquote pre code table thead tbody tr th td em strong s a div span".split(
      " ",
    ),
  ALLOWED_ATTR:
    "href title start class data-language data-math data-align data-task data-level".split(" "),
  ADD_URI_SAFE_ATTR: "start data-language data-math data-align data-task data-level".split(" "),
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const md = new MarkdownIt({ html: false, linkify: true, breaks: false, typographer: false });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
md.validateLink = (url) => /^(?:https?|mailto):/i.test(url.trim());
md.use(mathPlugin);

const BLOCKS = "p, h3, h4, h5, h6, li, th, td";
const OUTER_BLOCKS = "ul, ol, blockquote, table"; // "auto" does not look into the blocks in them
const LEFT_TO_RIGHT = "pre, code, .math, .math-pending";

const escape = md.utils.escapeHtml;
const rules = md.renderer.rules;

rules.fence = rules.code_block = (tokens, index) => {
  const language = tokens[index].info.trim().split(/\s+/)[0] ?? "";
  return `<pre data-language="${escape(language)}"><code>${escape(tokens[index].content)}</code></pre>`;
};

// An image would be loaded from somewhere: say what it is, and link to it.
rules.image = (tokens, index) => {
  const source = tokens[index].attrGet("src");
  const name = escape(tokens[index].content || source);
  return `<a href="${escape(source)}">${name}</a>`;
};

// Cells are aligned by styles otherwise, which the page's policy forbids.
rules.th_open = rules.td_open = (tokens, index) => {
  const align = /text-align:(\w+)/.exec(tokens[index].attrGet("style") ?? "")?.[1];
  return `<${tokens[index].tag}${align ? ` data-align="${align}"` : ""}>`;
};

// The page has h1 and h2 itself; and a list of headings has no gaps, whatever a model leaves out.
md.core.ruler.push("headings", ({ tokens, env }) => {
  for (const token of tokens.filter(
    ({ type }) => type === "heading_open" || type === "heading_close",
  )) {
    if (token.nesting === 1) {
      token.attrSet("data-level", token.tag[1]); // how it looks
      env.level = Math.min(6, Number(token.tag[1]) + 2, (env.level ?? 2) + 1);
    }
    token.tag = `h${env.level}`;
  }
});

// "- [x] done" as a list of tasks.
md.core.ruler.after("inline", "tasks", ({ tokens }) => {
  tokens.forEach((token, index) => {
    const task = /^\[([ xX])\] /.exec(token.content);
    const item = tokens[index - 2];
    if (token.type !== "inline" || !task || item?.type !== "list_item_open") return;
    item.attrSet("data-task", task[1] === " " ? "open" : "done");
    token.children[0].content = token.children[0].content.slice(4);
  });
});

/** The elements for a piece of Markdown. `env` carries references and levels from piece to piece. */
export function render(text, env) {
  const fragment = DOMPurify.sanitize(md.render(text, env), ALLOWED);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    table.replaceWith(frame);
    frame.append(table);
  }
  // Each block has the direction of its own words; formulas and code go from left to right.
  for (const element of fragment.querySelectorAll(LEFT_TO_RIGHT)) element.dir = "ltr";
  for (const block of fragment.querySelectorAll(BLOCKS)) block.dir = "auto";
  for (const block of fragment.querySelectorAll(OUTER_BLOCKS)) block.dir = directionOf(block);
  drawMath(fragment);
  dressCode(fragment, env.streaming);
  return fragment;
}

const RIGHT_TO_LEFT =
  /^\P{L}*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;

// That of its first letter outside of formulas and code.
function directionOf(block) {
  const words = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const { data, parentElement } = words.currentNode;
    if (/\p{L}/u.test(data) && !parentElement.closest(LEFT_TO_RIGHT)) {
      return RIGHT_TO_LEFT.test(data) ? "rtl" : "ltr";
    }
  }
  return "ltr";
}

/** Where the last block of `text` begins, as a number of lines. Blocks before it are finished. */
export function lastBlockLine(text, env) {
  const tokens = [];
  md.block.parse(text, md, env, tokens);
  const starts = tokens.filter((token) => token.level === 0 && token.map && token.nesting !== -1);
  return starts.at(-1)?.map[0] ?? 0;
}
