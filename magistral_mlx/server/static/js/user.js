// A message of the user on the screen: text, attachments, and editing in place.
import { copyButton } from "./copy.js";
import { h, iconButton } from "./dom.js";
import { editor } from "./editor.js";
import { say } from "./i18n.js";
import { attachmentButton, tile } from "./images.js";
import { Tray } from "./tray.js";
import { versionSwitch } from "./versions.js";

const LINES = 12; // of a question before it is folded
const LINE = 64; // characters, about

export class UserView {
  /** `actions`: edit(message, text, attachments), choose(message), remove(message). */
  constructor(message, { versions, actions }) {
    this.message = message;
    this.actions = actions;
    this.text = h("div", { class: "user-text", dir: "auto" }, message.text);
    this.more = this.#more();
    this.tools = h(
      "div",
      { class: "tools" },
      versionSwitch(versions, actions.choose),
      copyButton("message.copy", () => message.text),
      iconButton("trash", "message.delete", () => actions.remove(message)),
      iconButton("edit", "message.edit", () => this.#edit()),
    );
    this.heading = h("h2", { class: "hidden", t: "message.user" });
    this.shown = [
      this.heading,
      this.#attachments(),
      message.text ? this.text : null,
      this.more,
      this.tools,
    ].filter(Boolean);
    this.element = h("article", { class: "message user" }, ...this.shown);
  }

  leave() {}

  // A button that unfolds a long question; null for a short one.
  #more() {
    const lines = this.message.text
      .split("\n")
      .reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LINE)), 0);
    if (lines <= LINES + 2) return null;
    this.text.classList.add("folded");
    const button = h("button", {
      type: "button",
      class: "more",
      t: "message.more",
      "aria-expanded": "false",
      on: {
        click: () => {
          const folded = this.text.classList.toggle("folded");
          say(button, "t", folded ? "message.more" : "message.less");
          button.setAttribute("aria-expanded", String(!folded));
        },
      },
    });
    return button;
  }

  /** Whether it shows something else than its message holds. */
  get outdated() {
    return this.element.classList.contains("sent");
  }

  #attachments() {
    const { attachments = [], unstored = [] } = this.message;
    const lost = attachments.length ? [] : unstored;
    if (!attachments.length && !lost.length) return null;
    return h(
      "div",
      { class: "user-images" },
      ...attachments.map((one) => attachmentButton(one, attachments)),
      ...lost.map((name) => tile(name, "images.unstored")),
    );
  }

  #edit() {
    const list = h("ul", { class: "tray", label: "files.attached" });
    const tray = new Tray(list, { changed() {}, failed() {}, beside: () => [] });
    tray.show([...(this.message.attachments ?? [])]);
    const { form, begin } = editor(this.message.text, {
      label: "message.edit",
      action: "composer.send",
      above: list,
      close: () => this.#close(),
      submit: (text) => {
        if (!text.trim() && !tray.attachments.length) return;
        this.element.classList.add("sent");
        this.actions.edit(this.message, text, tray.attachments);
      },
    });
    this.element.classList.add("editing");
    this.element.replaceChildren(this.heading, form);
    begin();
  }

  #close() {
    this.element.classList.remove("editing");
    this.element.replaceChildren(...this.shown);
    this.tools.querySelector("button:last-of-type").focus();
  }
}
