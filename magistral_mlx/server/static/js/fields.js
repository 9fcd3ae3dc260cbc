// Fields of the options, each for one setting.
import { h } from "./dom.js";
import { say } from "./i18n.js";
import { onChange, settings } from "./settings.js";

/** Radio buttons in a row: `labels` are keys of the strings by value. */
export function choice(name, labels, changed) {
  const fieldset = h(
    "fieldset",
    { class: "choice" },
    h("legend", { t: `options.${name}` }),
    h(
      "div",
      { class: "segments" },
      ...Object.entries(labels).map(([value, label]) =>
        h(
          "label",
          {},
          h("input", {
            type: "radio",
            name,
            value,
            checked: settings[name] === value,
            on: {
              change: () => {
                settings[name] = value;
              },
            },
          }),
          h("span", { t: label }),
        ),
      ),
    ),
  );
  onChange(name, () => {
    for (const input of fieldset.querySelectorAll("input")) {
      input.checked = input.value === settings[name];
    }
    changed();
  });
  return fieldset;
}

/** A number; empty for the server's default. */
export function numberField(name, { min, max, step }) {
  const field = h("input", {
    type: "number",
    min,
    max,
    step,
    id: `option-${name}`,
    placeholder: `options.${name}.default`,
  });
  const show = () => {
    field.value = settings[name] ?? "";
  };
  show();
  onChange(name, show);
  field.addEventListener("change", () => {
    const { valid, stepMismatch } = field.validity;
    // Between two steps is fine where steps are parts of one.
    if (!valid && !(stepMismatch && step < 1)) return field.reportValidity();
    settings[name] = field.value === "" ? null : field.valueAsNumber;
  });
  return h(
    "label",
    { class: "field" },
    h("span", { t: `options.${name}` }),
    field,
    h("small", { t: `options.${name}.hint` }),
  );
}

/** Lines of text. `problem(text)` gives a string's key for what cannot be taken, or null. */
export function textField(name, { problem = () => null, mono = false } = {}) {
  const area = h("textarea", {
    rows: "3",
    dir: "auto",
    class: mono ? "mono" : "",
    id: `option-${name}`,
    value: settings[name],
  });
  const said = h("small", { t: `options.${name}.hint` });
  const check = () => {
    const wrong = problem(area.value);
    say(said, "t", wrong ?? `options.${name}.hint`);
    said.classList.toggle("wrong", Boolean(wrong));
    area.setAttribute("aria-invalid", String(Boolean(wrong)));
    return !wrong;
  };
  area.addEventListener("input", () => {
    if (check()) settings[name] = area.value;
  });
  onChange(name, () => {
    area.value = settings[name];
    check();
  });
  return h("label", { class: "field" }, h("span", { t: `options.${name}` }), area, said);
}

/** A box to tick. `changed(checked)` may refuse by resolving to false. */
export function checkField(name, { inverted = false, changed = () => true } = {}) {
  const box = h("input", { type: "checkbox" });
  const show = () => {
    box.checked = settings[name] !== inverted;
  };
  show();
  onChange(name, show);
  box.addEventListener("change", async () => {
    if ((await changed(box.checked)) === false) box.checked = false;
    settings[name] = box.checked !== inverted;
  });
  return h("label", { class: "check" }, box, h("span", { t: `options.${name}` }));
}
