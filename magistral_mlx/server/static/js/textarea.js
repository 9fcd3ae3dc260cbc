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

/** Enter sends, Shift+Enter makes a line; an Enter that ends the input of a character does neither. */
export function sendsOnEnter(area, form) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
