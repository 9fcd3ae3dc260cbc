// The drawer with the options of the next answers, and of the page.
import { download, exported, importFrom } from "./archive.js";
import { key } from "./api.js";
import { $, h, iconButton } from "./dom.js";
import { checkField, choice, numberField, textField } from "./fields.js";
import { languages, setLanguage } from "./i18n.js";
import { canNotify } from "./notify.js";
import { onChange, settings } from "./settings.js";
import { showShortcuts } from "./shortcuts.js";
import * as store from "./store.js";
import { systemPrompt } from "./system.js";
import { toast } from "./toast.js";
import { toolOptions } from "./tooloptions.js";

// The same server by another name has other histories.
const OTHER = { "localhost": "127.0.0.1", "127.0.0.1": "localhost" };

/** Build the drawer once. `imported()` is called when conversations have come in. */
export function buildOptions(chat, imported) {
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
    h(
      "details",
      { class: "more-options" },
      h("summary", { t: "options.more" }),
      numberField("topP", { min: 0.01, max: 1, step: 0.05 }),
      numberField("minP", { min: 0, max: 1, step: 0.05 }),
      numberField("topK", { min: 0, max: 1_000_000, step: 1 }),
      numberField("repetitionPenalty", { min: 0.01, max: 10, step: 0.05 }),
      numberField("presencePenalty", { min: -2, max: 2, step: 0.1 }),
      numberField("frequencyPenalty", { min: -2, max: 2, step: 0.1 }),
      textField("stop", { problem: (text) => (stops(text) > 16 ? "options.stop.many" : null) }),
      textField("schema", { mono: true, problem: schemaProblem }),
      numberField("imageTokens", { min: 1, max: 1_000_000, step: 1 }),
      checkField("keepThinking", { inverted: true }),
    ),
    systemPrompt(chat),
    toolOptions(),
    h("h3", { t: "options.page" }),
    choice(
      "theme",
      { system: "theme.system", light: "theme.light", dark: "theme.dark" },
      showTheme,
    ),
    languageField(),
    checkField("notify", { changed: canNotify }),
    h("button", { type: "button", t: "shortcuts.title", on: { click: showShortcuts } }),
    h("h3", { t: "options.data" }),
    h("p", { class: "hint", t: ["options.kept", location.host, OTHER[location.hostname]] }),
    archive(imported),
    h("div", { class: "toasts", role: "status" }),
  );
  // Escape closes it over a number that is being written: Firefox would not tell of the change.
  dialog.addEventListener("cancel", () =>
    dialog.querySelector("input[type=number]:focus")?.dispatchEvent(new Event("change")),
  );
  // A click beside the drawer closes it.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  $("#options-open").addEventListener("click", () => {
    $("#key-forget").hidden = !key.get();
    dialog.showModal();
  });
}

const stops = (text) => text.split("\n").filter(Boolean).length;

function schemaProblem(text) {
  if (!text.trim()) return null;
  try {
    const schema = JSON.parse(text);
    return schema && typeof schema === "object" && !Array.isArray(schema)
      ? null
      : "options.schema.wrong";
  } catch {
    return "options.schema.wrong";
  }
}

function showTheme() {
  if (settings.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

function thinking() {
  const budget = h("input", {
    type: "number",
    min: "1",
    step: "1",
    required: true,
    label: "thinking.tokens",
  });
  budget.addEventListener("change", () => {
    if (budget.checkValidity()) settings.budget = budget.valueAsNumber;
    else budget.reportValidity();
  });
  const row = h("label", { class: "field budget" }, h("span", { t: "thinking.tokens" }), budget);
  const show = () => {
    row.hidden = settings.thinking !== "budget";
    budget.value = settings.budget;
  };
  show();
  onChange("budget", show);
  return h(
    "div",
    {},
    choice("thinking", { on: "thinking.on", budget: "thinking.budget", off: "thinking.off" }, show),
    row,
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
  });
  onChange("language", () => {
    select.value = settings.language;
    setLanguage(settings.language);
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
