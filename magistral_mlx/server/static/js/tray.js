// The attachments of a message that is being written.
import { readFile, recount, tooMuch } from "./attach.js";
import { turn } from "./documents.js";
import { h, iconButton } from "./dom.js";
import { number } from "./i18n.js";
import { attachmentButton } from "./images.js";
import { sees } from "./models.js";

export class Tray {
  attachments = [];

  /**
   * `changed()` is called when one is added or removed, `failed(error)` when a file cannot be
   * attached; `beside()` gives the attachments that are sent with them.
   */
  constructor(element, { changed, failed, beside }) {
    Object.assign(this, { element, changed, failed, beside });
  }

  /**
   * Read files, and attach those that can be sent, to `attachments`, of whatever draft. Resolves to
   * whether all could be.
   */
  async add(files, attachments) {
    let well = true;
    for (const file of files) {
      try {
        const attachment = await readFile(file);
        this.#check([...attachments, attachment]);
        attachments.push(attachment);
      } catch (error) {
        this.failed(error);
        well = false;
      }
      if (attachments === this.attachments) this.show(attachments);
    }
    return well;
  }

  /** Show other attachments. */
  show(attachments) {
    this.attachments = attachments;
    this.element.hidden = !attachments.length;
    this.element.replaceChildren(
      ...attachments.map((one) =>
        h(
          "li",
          {},
          attachmentButton(one, attachments),
          one.tokens ? h("small", { t: ["tokens", one.tokens, number(one.tokens)] }) : null,
          one.source ? this.#choice(one) : null,
          iconButton("close", ["images.remove", one.name], () => this.#remove(one)),
        ),
      ),
    );
    this.changed();
  }

  /** Count the tokens again: what they depend on has changed. */
  async recount() {
    const { attachments } = this;
    await Promise.all(attachments.map(recount));
    if (attachments === this.attachments) this.show(attachments);
  }

  #check(attachments) {
    const problem = tooMuch([...this.beside(), ...attachments]);
    if (problem) throw problem;
  }

  // Whether a PDF is read or seen.
  #choice(document) {
    const select = h(
      "select",
      { label: ["files.pdf", document.name] },
      h("option", { value: "text", t: "files.text" }),
      h("option", { value: "images", t: "files.pages", disabled: !sees() }),
    );
    select.value = document.pages ? "images" : "text";
    select.addEventListener("change", async () => {
      const { attachments } = this;
      const before = { ...document };
      select.disabled = true;
      try {
        await turn(document, select.value);
        this.#check(attachments);
      } catch (error) {
        Object.assign(document, before);
        this.failed(error);
      }
      if (attachments !== this.attachments) return;
      this.show(attachments);
      const at = attachments.indexOf(document);
      this.element.children[at]?.querySelector("select")?.focus();
    });
    return select;
  }

  #remove(one) {
    this.attachments.splice(this.attachments.indexOf(one), 1);
    this.show(this.attachments);
    this.element.querySelector("button")?.focus();
  }
}
