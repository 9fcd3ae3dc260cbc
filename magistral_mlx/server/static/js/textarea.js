// Text fields that grow with their text, and send on Enter.

/** Let `area` be as high as its text; the style sheet bounds it. */
export function autosize(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener("input", fit);
  fit();
}

/**
 * Whether a key is for an input method: it confirms or cancels a candidate. (Safari ends the
 * composition before the key that ended it, and leaves but its old code.)
 */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** Enter sends, Shift+Enter makes a line; an Enter that ends the input of a character does neither. */
export function sendsOnEnter(area, form) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
