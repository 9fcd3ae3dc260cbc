// A small menu below a button.
import { h } from "./dom.js";

/** Open a menu with `items`, each [key of the strings, function]. */
export function openMenu(button, items) {
  const menu = h(
    "div",
    { class: "menu", role: "menu", popover: "auto" },
    ...items.map(([label, act]) =>
      h("button", {
        type: "button",
        role: "menuitem",
        t: label,
        on: {
          click: () => {
            menu.hidePopover();
            act();
          },
        },
      }),
    ),
  );
  menu.addEventListener("toggle", ({ newState }) => {
    if (newState === "closed") menu.remove();
  });
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...menu.children];
    all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
  });
  button.after(menu);
  menu.showPopover();
  const { bottom, right } = button.getBoundingClientRect();
  const { offsetHeight, offsetWidth } = menu;
  menu.style.insetBlockStart = `${Math.min(bottom, innerHeight - offsetHeight - 8)}px`;
  menu.style.insetInlineStart = `${Math.max(8, right - offsetWidth)}px`;
  menu.firstChild.focus();
}
