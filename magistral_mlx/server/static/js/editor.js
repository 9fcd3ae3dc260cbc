// A text that is edited in place.
import { h } from "./dom.js";
import { autosize, composing, sendsOnEnter } from "./textarea.js";

/**
 * A form around `text`, with `above` over it. `submit(text)` gets what was written, `close()` is
 * called when nothing is to be; Enter submits unless `lines` are wanted.
 */
export function editor(text, { label, action, above = null, submit, close, lines = false }) {
  const area = h("textarea", { dir: "auto", label, value: text, rows: "1" });
  const form = h(
    "form",
    { class: "editor" },
    above,
    area,
    h(
      "div",
      { class: "editor-row" },
      h("button", { type: "button", t: "cancel", on: { click: close } }),
      h("button", { type: "submit", class: "primary", t: action }),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(area.value);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || composing(event)) return;
    event.stopPropagation(); // or it would stop an answer as well
    close();
  });
  if (!lines) sendsOnEnter(area, form);
  const begin = () => {
    autosize(area);
    area.focus();
  };
  return { form, begin };
}
