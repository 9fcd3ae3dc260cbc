// The drawer with the options of the next answers, and of the page.
import { download, exported, importFrom } from "./archive.js";
import { key } from "./api.js";
import { $, h, iconButton } from "./dom.js";
import { languages, setLanguage } from "./i18n.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import { toast } from "./toast.js";

// The same server by another name has other histories.
const OTHER = { "localhost": "127.0.0.1", "127.0.0.1": "localhost" };

/** Build the drawer once. `imported()` is called when conversations have come in. */
export function buildOptions(imported) {
  const dialog = $("#options");
  dialog.replaceChildren(
    h(
      "div",
      { class: "drawer-head" },
      h("h2", { id: "options-title", t: "options.title" }),
      iconButton("close", "close", () => dialog.close()),
    ),
    h("p", { class: "hint", t: "options.scope" }),
    thinking(),
    numberField("temperature", { min: 0, max: 2, step: 0.05 }),
    numberField("maxTokens", { min: 1, step: 1 }),
    numberField("seed", { min: 0, max: 2 ** 32 - 1, step: 1 }),
    systemPrompt(),
    h("h3", { t: "options.page" }),
    choice(
      "theme",
      { system: "theme.system", light: "theme.light", dark: "theme.dark" },
      showTheme,
    ),
    languageField(),
    h("h3", { t: "options.data" }),
    h("p", { class: "hint", t: ["options.kept", location.host, OTHER[location.hostname]] }),
    archive(imported),
    h("div", { class: "toasts", role: "status" }),
  );
  // A click beside the drawer closes it.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  $("#options-open").addEventListener("click", () => {
    $("#key-forget").hidden = !key.get();
    dialog.showModal();
  });
}

function showTheme() {
  if (settings.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

// Radio buttons in a row.
function choice(name, labels, changed) {
  return h(
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
                changed();
              },
            },
          }),
          h("span", { t: label }),
        ),
      ),
    ),
  );
}

function thinking() {
  const budget = h("input", {
    type: "number",
    min: "1",
    step: "1",
    required: true,
    value: String(settings.budget),
    label: "thinking.tokens",
  });
  budget.addEventListener("change", () => {
    if (budget.checkValidity()) settings.budget = budget.valueAsNumber;
    else budget.reportValidity();
  });
  const row = h("label", { class: "field budget" }, h("span", { t: "thinking.tokens" }), budget);
  const show = () => {
    row.hidden = settings.thinking !== "budget";
  };
  show();
  return h(
    "div",
    {},
    choice("thinking", { on: "thinking.on", budget: "thinking.budget", off: "thinking.off" }, show),
    row,
  );
}

function numberField(name, { min, max, step }) {
  const field = h("input", {
    type: "number",
    min,
    max,
    step,
    id: `option-${name}`,
    placeholder: `options.${name}.default`,
    value: settings[name] === null ? "" : String(settings[name]),
  });
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

function systemPrompt() {
  const area = h("textarea", {
    rows: "5",
    dir: "auto",
    placeholder: "options.system.default",
    value: settings.system,
  });
  area.addEventListener("input", () => {
    settings.system = area.value;
  });
  return h(
    "label",
    { class: "field" },
    h("span", { t: "options.system" }),
    area,
    h("small", { t: "options.system.hint" }),
  );
}

function languageField() {
  const select = h(
    "select",
    {},
    h("option", { value: "auto", t: "language.auto" }),
    ...Object.entries(languages).map(([tag, name]) => h("option", { value: tag, lang: tag }, name)),
  );
  select.value = settings.language;
  select.addEventListener("change", () => {
    settings.language = select.value;
    setLanguage(select.value);
  });
  return h("label", { class: "field" }, h("span", { t: "options.language" }), select);
}

function archive(imported) {
  const file = h("input", {
    type: "file",
    accept: "application/json,.json",
    hidden: true,
    id: "import-file",
  });
  file.addEventListener("change", async () => {
    try {
      const { taken, mended, left } = await importFrom(file.files[0]);
      toast(mended || left ? "imported.mended" : "imported", { args: [taken, mended, left] });
      imported();
    } catch (error) {
      toast(`error.${error.kind ?? "page"}`, { args: [error.detail] });
    }
    file.value = "";
  });
  const day = () => new Date().toISOString().slice(0, 10);
  return h(
    "div",
    { class: "buttons" },
    h("button", {
      type: "button",
      t: "options.export",
      on: {
        click: async () =>
          download(await exported(await store.conversations()), `magistral-${day()}.json`),
      },
    }),
    h("button", { type: "button", t: "options.import", on: { click: () => file.click() } }),
    h("button", {
      type: "button",
      id: "key-forget",
      t: "key.forget",
      hidden: true,
      on: {
        click: ({ target }) => {
          key.forget();
          target.hidden = true;
          toast("key.forgotten");
        },
      },
    }),
    file,
  );
}
