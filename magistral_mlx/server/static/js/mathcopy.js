// A formula that is copied is its TeX, as it was written; half of one is all of it.

const tex = (math) =>
  math.querySelector("annotation")?.textContent ?? math.textContent;

addEventListener("copy", (event) => {
  const selection = getSelection();
  if (selection.isCollapsed || event.target.matches?.("textarea, input")) return;
  const range = selection.getRangeAt(0);
  const first = mathOf(range.startContainer);
  const last = mathOf(range.endContainer);
  if (first) range.setStartBefore(first);
  if (last) range.setEndAfter(last);
  const content = range.cloneContents();
  const found = content.querySelectorAll(".math");
  if (!found.length) return;
  for (const math of found) {
    const display = math.dataset.math === "display";
    math.replaceChildren(display ? `\n$$${tex(math)}$$\n` : `$${tex(math)}$`);
  }
  event.preventDefault();
  event.clipboardData.setData("text/plain", plain(content));
});

const mathOf = (node) =>
  (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement)?.closest(".math");

const BLOCKS = "p, h3, h4, h5, h6, li, blockquote, pre, tr";

// The text as the page shows it: blocks on lines of their own.
function plain(content) {
  for (const block of content.querySelectorAll(BLOCKS)) block.append("\n\n");
  for (const cell of content.querySelectorAll("th, td")) cell.append("\t");
  for (const away of content.querySelectorAll("button, .hidden")) away.remove();
  return content.textContent.replace(/\n{3,}/g, "\n\n").trim();
}
