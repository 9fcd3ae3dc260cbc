// Asking for the server's API key, once a tab.
import { key } from "./api.js";
import { $, h } from "./dom.js";

let asking = null;

/** Ask, if it is not being asked already; resolves to whether a key was given. */
export function askForKey() {
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

function ask() {
  const dialog = $("#key");
  const had = Boolean(key.get());
  const field = h("input", {
    type: "password",
    required: true,
    autocomplete: "off",
    id: "key-field",
  });
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "key-title", t: "key.title" }),
    h("p", { t: had ? "key.wrong" : "key.text" }),
    h("label", { class: "field" }, h("span", { t: "key.field" }), field),
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", t: "cancel", on: { click: () => dialog.close("") } }),
      h("button", { type: "submit", value: "given", class: "primary", t: "key.use" }),
    ),
  );
  dialog.replaceChildren(form);
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "given";
        if (given) key.set(field.value.trim());
        resolve(given);
      },
      { once: true },
    );
  });
}
