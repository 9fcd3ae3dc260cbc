// Elements without markup: the page never turns strings into HTML by itself.
import { say } from "./i18n.js";
import { icon } from "./icons.js";

/**
 * An element. `t`, `label` and `placeholder` are [key, ...arguments] or a key of the strings and
 * follow the language; `on` holds listeners; the rest are attributes, or properties where a
 * boolean stands.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "on") {
      for (const [type, listener] of Object.entries(value))
        element.addEventListener(type, listener);
    } else if (name === "t" || name === "label" || name === "placeholder") {
      say(element, name, ...[value].flat());
    } else if (name === "icon") element.append(icon(value));
    else if (typeof value === "boolean" || name === "value") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (selector) => document.querySelector(selector);

/** A button that is only a sign. */
export const iconButton = (name, label, click, props = {}) =>
  h("button", { type: "button", class: "icon-button", icon: name, label, on: { click }, ...props });

/** A new identity. (crypto.randomUUID is for https pages only.) */
export const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
