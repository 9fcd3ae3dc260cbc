// What the page says, in the user's language; what is on the screen follows a switch.
import de from "../strings/de.js";
import en from "../strings/en.js";

const STRINGS = { en, de };
const said = new WeakMap(); // element -> { kind: [key, ...arguments] }
let language = "en";

export const languages = { en: "English", de: "Deutsch" };
export const current = () => language;

/** The string under `key`; some take arguments. */
export function t(key, ...args) {
  const string = STRINGS[language][key] ?? STRINGS.en[key];
  if (string === undefined) throw new Error(`no string for ${key}`);
  return typeof string === "function" ? string(...args) : string;
}

/** Give an element a text, label or placeholder that follows the language. */
export function say(element, kind, key, ...args) {
  said.set(element, { ...said.get(element), [kind]: [key, ...args] });
  element.dataset.said = "";
  put(element, kind, t(key, ...args));
}

function put(element, kind, string) {
  if (kind === "t") element.textContent = string;
  else if (kind === "placeholder") element.placeholder = string;
  else {
    element.setAttribute("aria-label", string);
    if (element.localName === "button") element.title = string;
  }
}

/** Take the language that is set, or the browser's, and say everything in it. */
export function setLanguage(choice) {
  const wished = choice === "auto" ? navigator.languages : [choice];
  language = wished.map((tag) => tag.slice(0, 2)).find((tag) => tag in STRINGS) ?? "en";
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-said]")) {
    for (const [kind, [key, ...args]] of Object.entries(said.get(element) ?? {})) {
      put(element, kind, t(key, ...args));
    }
  }
  dispatchEvent(new CustomEvent("language"));
}

/** Register what index.html names in its data-t attributes. */
export function adopt(root = document) {
  for (const [attribute, kind] of [
    ["t", "t"],
    ["tLabel", "label"],
    ["tPlaceholder", "placeholder"],
  ]) {
    const name = attribute
      .replace("t", "data-t")
      .replace(/([A-Z])/, (letter) => `-${letter.toLowerCase()}`);
    for (const element of root.querySelectorAll(`[${name}]`))
      say(element, kind, element.dataset[attribute]);
  }
}

export const number = (value, digits = 0) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** 75 -> "1:15 min", 4.26 -> "4 s", or "4.3 s" where it is not `counting` up */
export function duration(seconds, counting = true) {
  if (seconds < 10 && !counting) return `${number(seconds, 1)} s`;
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
}

export const percent = (share) => share.toLocaleString(language, { style: "percent" });

/** A time as "14:05", with its date if that is not today's. */
export function moment(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  const day = today ? {} : { day: "numeric", month: "short", year: "numeric" };
  return date.toLocaleString(language, { ...day, hour: "2-digit", minute: "2-digit" });
}

/** Bytes as "13.4 GB": GB is 10⁹, as the command line has it. */
export const gigabytes = (bytes) => `${number(bytes / 1e9, bytes < 1e8 ? 2 : 1)} GB`;
