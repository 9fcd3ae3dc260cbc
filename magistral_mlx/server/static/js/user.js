// A message of the user on the screen: text, images, and editing in place.
import { copyButton } from "./copy.js";
import { h, iconButton } from "./dom.js";
import { autosize, sendsOnEnter } from "./textarea.js";
import { imageButton } from "./images.js";
import { versionSwitch } from "./versions.js";

export class UserView {
  /** `actions`: edit(message, text, images), choose(message). */
  constructor(message, { versions, actions }) {
    this.message = message;
    this.actions = actions;
    this.text = h("div", { class: "user-text" }, message.text);
    this.tools = h(
      "div",
      { class: "tools" },
      versionSwitch(versions, actions.choose),
      copyButton("message.copy", () => message.text),
      iconButton("edit", "message.edit", () => this.#edit()),
    );
    this.heading = h("h2", { class: "hidden", t: "message.user" });
    this.shown = [
      this.heading,
      this.#images(),
      message.text ? this.text : null,
      this.tools,
    ].filter(Boolean);
    this.element = h("article", { class: "message user" }, ...this.shown);
  }

  leave() {}

  #images() {
    const { images } = this.message;
    if (!images?.length) return null;
    return h(
      "div",
      { class: "user-images" },
      ...images.map((image) => imageButton(image)),
    );
  }

  #edit() {
    const area = h("textarea", { label: "message.edit", value: this.message.text, rows: "1" });
    const form = h(
      "form",
      { class: "editor" },
      area,
      h(
        "div",
        { class: "editor-row" },
        h("button", { type: "button", t: "cancel", on: { click: () => this.#close() } }),
        h("button", { type: "submit", class: "primary", t: "composer.send" }),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const { images } = this.message;
      if (!area.value.trim() && !images.length) return;
      this.actions.edit(this.message, area.value, images);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // or it would stop an answer as well
      this.#close();
    });
    sendsOnEnter(area, form);
    this.element.classList.add("editing");
    this.element.replaceChildren(...[this.heading, this.#images(), form].filter(Boolean));
    autosize(area);
    area.focus();
  }

  #close() {
    this.element.classList.remove("editing");
    this.element.replaceChildren(...this.shown);
    this.tools.querySelector("button:last-of-type").focus();
  }
}
