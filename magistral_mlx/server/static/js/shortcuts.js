// What keys do, and a sheet that tells.
import { $, h, iconButton } from "./dom.js";
import { composing } from "./textarea.js";

const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);

// "Mod" is Command on a Mac, where Ctrl has other meanings, and Ctrl elsewhere.
const SHORTCUTS = {
  new: { mod: true, key: "k" },
  search: { mod: true, shift: true, key: "f" },
  sidebar: { mod: true, key: "b" },
  rename: { key: "F2" },
  delete: { mod: true, shift: true, key: "Backspace" },
  stop: { key: "Escape" },
  sheet: { mod: true, key: "/" },
};
const SIGNS = { Backspace: "⌫", Escape: "Esc" };

/** A shortcut as it is written on keys. */
export function keysOf(name) {
  const { mod, shift, key } = SHORTCUTS[name];
  const sign = SIGNS[key] ?? key.toUpperCase();
  if (isMac) return `${shift ? "⇧" : ""}${mod ? "⌘" : ""}${sign}`;
  return [mod ? "Ctrl" : null, shift ? "Shift" : null, sign].filter(Boolean).join(" ");
}

/** Call `actions[name]` for each shortcut; "?" and its sheet are seen to here. */
export function onShortcuts(actions) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || composing(event) || $("dialog[open]")) return;
    const typing = event.target.matches?.("textarea, input, select");
    const asked = event.key === "?" && !typing;
    const name = asked ? "sheet" : Object.keys(SHORTCUTS).find((name) => matches(name, event));
    if (!name) return;
    if (name !== "stop") event.preventDefault();
    if (name === "sheet") showShortcuts();
    else actions[name]();
  });
}

function matches(name, event) {
  const { mod = false, shift = false, key } = SHORTCUTS[name];
  const [wanted, other] = isMac ? ["metaKey", "ctrlKey"] : ["ctrlKey", "metaKey"];
  const same = event.key === key || event.key.toLowerCase() === key;
  const shifted = key === "/" || event.shiftKey === shift; // "/" is on another level on some
  return same && event[wanted] === mod && !event[other] && shifted && !event.altKey;
}

/** Open the sheet. */
export function showShortcuts() {
  $("#options").close();
  const dialog = $("#shortcuts");
  const row = (label, keys) =>
    h("div", {}, h("dt", { t: label }), h("dd", {}, h("kbd", {}, keys)));
  dialog.replaceChildren(
    h(
      "div",
      { class: "drawer-head" },
      h("h2", { id: "shortcuts-title", t: "shortcuts.title" }),
      iconButton("close", "close", () => dialog.close()),
    ),
    h(
      "dl",
      {},
      row("shortcuts.send", "Enter"),
      row("shortcuts.line", isMac ? "⇧Enter" : "Shift Enter"),
      ...Object.keys(SHORTCUTS).map((name) => row(`shortcuts.${name}`, keysOf(name))),
    ),
  );
  dialog.showModal();
}
