// Where a message is written: text, images, send and stop.
import { $ } from "./dom.js";
import { onFiles } from "./drops.js";
import { sees } from "./models.js";
import { ACCEPT, Tray } from "./images.js";
import * as session from "./session.js";
import { autosize, sendsOnEnter } from "./textarea.js";
import { toast } from "./toast.js";

const DRAFT = "magistral.draft."; // what is typed survives a reload, in this tab

export class Composer {
  /** `send(text, images)` and `stop()` are what the buttons do. */
  constructor({ send, stop }) {
    this.area = $("#message");
    this.id = "";
    this.busy = false;
    this.tray = new Tray($("#tray"), {
      changed: () => this.#update(),
      failed: ({ kind, detail }) => toast(`error.${kind}`, { args: [detail] }),
    });
    autosize(this.area);
    sendsOnEnter(this.area, $("#composer"));
    this.area.addEventListener("input", () => {
      session.set(DRAFT + this.id, this.area.value || null);
      this.#update();
    });
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#sendable() || this.busy) return;
      const text = this.area.value.trim();
      const images = this.tray.take();
      this.write("");
      send(text, images);
    });
    $("#stop").addEventListener("click", stop);
    $("#files").accept = ACCEPT;
    $("#attach").addEventListener("click", () => $("#files").click());
    $("#files").addEventListener("change", async ({ target }) => {
      await this.tray.add([...target.files]);
      target.value = "";
      this.area.focus();
    });
    onFiles(async (files) => {
      if (sees()) await this.tray.add(files);
      else toast("error.blind");
      this.area.focus();
    });
    this.#update();
  }

  /** Take the draft of a conversation ("" for a new one). */
  open(id) {
    this.id = id;
    this.write(session.get(DRAFT + id) ?? "");
  }

  /** Replace what is typed. */
  write(text) {
    this.area.value = text;
    this.area.dispatchEvent(new Event("input"));
  }

  /** Stop takes the place of send while an answer is being written. */
  setBusy(busy) {
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
