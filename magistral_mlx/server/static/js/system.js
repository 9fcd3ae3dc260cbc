// The system prompt of the options: for every chat or for this one, and presets of it.
import { h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { ownPrompt } from "./models.js";
import { onChange, settings } from "./settings.js";
import * as store from "./store.js";

/** The field, which follows the conversation on the screen. */
export function systemPrompt(chat) {
  const area = h("textarea", { rows: "5", dir: "auto", id: "option-system" });
  const own = h("input", { type: "checkbox", id: "system-own" });
  const presets = h("select", { label: "presets" });
  const name = h("input", { placeholder: "presets.name", label: "presets.name", dir: "auto" });
  const remove = iconButton("trash", "presets.remove", () => {
    settings.presets = settings.presets.filter((preset) => preset.name !== presets.value);
    list();
  });

  const text = h("div", { class: "own-prompt", dir: "auto" });
  const models = h("details", {}, h("summary", { t: "options.system.models" }), text);
  models.addEventListener("toggle", () => {
    text.textContent = ownPrompt() ?? t("options.system.none");
  });

  const keep = () => {
    const { conversation } = chat;
    chat.system = own.checked ? area.value : null; // of a new conversation
    if (conversation) {
      conversation.system = chat.system;
      store.patch(conversation.id, { system: chat.system });
    }
    if (!own.checked) settings.system = area.value;
  };
  const show = () => {
    const system = chat.conversation ? (chat.conversation.system ?? null) : chat.system;
    own.checked = system !== null;
    if (area !== document.activeElement) area.value = system ?? settings.system;
  };
  const list = (chosen = "") => {
    presets.replaceChildren(
      h("option", { value: "", t: "presets.choose" }),
      ...settings.presets.map((preset) => h("option", { value: preset.name }, preset.name)),
    );
    presets.value = settings.presets.some(({ name }) => name === chosen) ? chosen : "";
    remove.disabled = !presets.value;
  };
  const save = () => {
    const called = name.value.trim();
    if (!called || !area.value.trim()) return name.focus();
    const others = settings.presets.filter((preset) => preset.name !== called);
    settings.presets = [...others, { name: called, text: area.value }];
    name.value = "";
    list(called);
  };
  area.addEventListener("input", keep);
  own.addEventListener("change", () => {
    if (!own.checked) area.value = settings.system;
    keep();
  });
  presets.addEventListener("change", () => {
    const preset = settings.presets.find((preset) => preset.name === presets.value);
    remove.disabled = !preset;
    if (!preset) return;
    area.value = preset.text;
    keep();
  });
  name.addEventListener("keydown", (event) => event.key === "Enter" && save());
  chat.addEventListener("show", show);
  onChange("system", () => {
    if (!own.checked) area.value = settings.system;
  });
  onChange("presets", () => list(presets.value));
  show();
  list();
  return h(
    "div",
    { class: "field" },
    h("label", { t: "options.system", for: "option-system" }),
    area,
    h("small", { t: "options.system.hint" }),
    models,
    h("label", { class: "check" }, own, h("span", { t: "options.system.own" })),
    h("div", { class: "presets" }, presets, remove),
    h(
      "div",
      { class: "presets" },
      name,
      h("button", { type: "button", t: "presets.save", on: { click: save } }),
    ),
  );
}
