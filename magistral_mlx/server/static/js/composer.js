// Where a message is written: text, images, send and stop.
import { ACCEPT } from "./attach.js";
import { $ } from "./dom.js";
import * as drafts from "./drafts.js";
import { onFiles } from "./drops.js";
import { say } from "./i18n.js";
import { sees } from "./models.js";
import { autosize, sendsOnEnter } from "./textarea.js";
import { toast } from "./toast.js";
import { Tray } from "./tray.js";

export class Composer {
  /**
   * `send(text, images)` and `stop()` are what the buttons do; `beside()` gives the images that
   * are sent along.
   */
  constructor({ send, stop, beside }) {
    this.area = $("#message");
    this.id = "";
    this.busy = false;
    this.attaching = null; // a promise while files are read
    this.tray = new Tray($("#tray"), {
      changed: () => {
        drafts.setImages(this.id, this.tray.images);
        this.#update();
      },
      failed: ({ kind, detail }) => toast(`error.${kind}`, { args: [detail] }),
      beside,
    });
    autosize(this.area);
    sendsOnEnter(this.area, $("#composer"));
    this.area.addEventListener("input", () => {
      drafts.setText(this.id, this.area.value);
      this.#update();
    });
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      // What is being read belongs to the message.
      if (this.attaching) return this.attaching.then(() => event.target.requestSubmit());
      if (!this.#sendable() || this.busy) return;
      const text = this.area.value.trim();
      const { images } = this.tray;
      this.write("");
      this.tray.show([]);
      send(text, images);
    });
    $("#stop").addEventListener("click", stop);
    $("#files").accept = ACCEPT;
    $("#attach").addEventListener("click", () => $("#files").click());
    $("#files").addEventListener("change", async ({ target }) => {
      const files = [...target.files];
      target.value = "";
      await this.#attach(files);
    });
    onFiles(async (files) => {
      if (sees()) await this.#attach(files);
      else toast("error.blind");
    });
    this.#update();
  }

  // They belong to the draft that is on the screen now, whatever is by the time they are read.
  async #attach(files) {
    const { id } = this;
    const { images } = this.tray;
    const adding = Promise.resolve(this.attaching).then(() => this.tray.add(files, images));
    this.attaching = adding;
    await adding;
    if (this.attaching === adding) this.attaching = null;
    if (this.id !== id) await drafts.setImages(id, images);
    else this.focus();
  }

  /** Take the draft of a conversation ("" for a new one). */
  async open(id) {
    this.id = id;
    this.write(drafts.text(id));
    const images = []; // not those of the draft before
    this.tray.images = images;
    const kept = await drafts.images(id);
    if (this.tray.images !== images) return;
    images.unshift(...kept);
    this.tray.show(images);
  }

  /** The new conversation has an identity: what is typed from now on is its draft. */
  become(id) {
    this.id = id;
  }

  /** Replace what is typed. */
  write(text) {
    this.area.value = text;
    this.area.dispatchEvent(new Event("input"));
  }

  /** Stop takes the place of send while an `answer` is being written. */
  setBusy(answer) {
    const busy = Boolean(answer);
    if (answer?.elsewhere) say($("#composer-notes"), "t", "answer.elsewhere");
    else say($("#composer-notes"), "t", "nothing");
    const held = [$("#send"), $("#stop")].includes(document.activeElement);
    this.busy = busy;
    $("#stop").hidden = !busy;
    $("#send").hidden = busy;
    if (held) (busy ? $("#stop") : this.area).focus();
  }

  /** Put the cursor here, unless that would bring up a keyboard over the screen. */
  focus() {
    if (!matchMedia("(hover: none)").matches) this.area.focus();
  }

  #sendable() {
    return Boolean(this.area.value.trim() || this.tray.images.length);
  }

  #update() {
    $("#send").disabled = !this.#sendable();
  }
}
