// Elements that become others by as little as possible, so that what is selected in them stays so.

/** Let the children of `element` from index `from` on be those of `wanted`; null for none. */
export function morph(element, wanted, from = 0) {
  const old = [...element.childNodes].slice(from);
  const fresh = wanted ? [...wanted.childNodes] : [];
  fresh.forEach((node, index) => {
    const there = old[index];
    if (!there) element.append(node);
    else if (!there.isEqualNode(node) && !grown(there, node)) there.replaceWith(node);
  });
  for (const node of old.slice(fresh.length)) node.remove();
}

// Whether `there` could be made what `node` is.
function grown(there, node) {
  if (there.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) {
    if (!node.data.startsWith(there.data)) return false;
    there.appendData(node.data.slice(there.length));
    return true;
  }
  if (!there.childNodes.length || !there.cloneNode().isEqualNode(node.cloneNode())) return false;
  // A formula is drawn as a whole; the buttons of a frame know the code that they were made with.
  if (there.matches(".math, .code")) return false;
  morph(there, node);
  return true;
}
