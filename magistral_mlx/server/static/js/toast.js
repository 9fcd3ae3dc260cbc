// A short word at the edge, read out as well; with a way back where there is one.
import { $, h } from "./dom.js";

const SECONDS = 5;

/** Show the string `key`; `undo`, if there is one, becomes a button. */
export function toast(key, { args = [], undo = null } = {}) {
  for (const same of document.querySelectorAll(`.toast[data-key="${key}"]`)) {
    if (!undo) same.remove(); // it is said once
  }
  const note = h("div", { class: "toast", "data-key": key }, h("span", { dir: "auto", t: [key, ...args] }));
  let timer = setTimeout(() => note.remove(), (undo ? 2 : 1) * SECONDS * 1000);
  if (undo) {
    note.append(
      h("button", {
        type: "button",
        class: "link",
        t: "undo",
        on: {
          click: () => {
            note.remove();
            undo();
          },
        },
      }),
    );
  }
  // Who is reading it, or on the way to its button, gets all the time there is.
  for (const enter of ["mouseenter", "focusin"])
    note.addEventListener(enter, () => clearTimeout(timer));
  for (const leave of ["mouseleave", "focusout"]) {
    note.addEventListener(leave, () => {
      timer = setTimeout(() => note.remove(), SECONDS * 1000);
    });
  }
  // What is outside of an open dialog is neither seen nor heard.
  ($("dialog[open] .toasts") ?? $("#toasts")).append(note);
}
