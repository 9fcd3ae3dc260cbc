// Where a message is written: text, attachments, send and stop.
import { $ } from "./dom.js";
import * as drafts from "./drafts.js";
import { onFiles } from "./drops.js";
import { say } from "./i18n.js";
import { Queue } from "./queue.js";
import { onSetting } from "./settings.js";
import { autosize, sendsOnEnter } from "./textarea.js";
import { toast } from "./toast.js";
import { Tray } from "./tray.js";

export class Composer {
  /**
   * `send(text, attachments)` and `stop()` are what the buttons do, `sendIn(id, entry)` sends what has
   * waited; `beside()` gives the attachments that are sent along.
   */
  constructor({ send, stop, sendIn, beside }) {
    this.area = $("#message");
    this.id = null; // until it has taken a draft
    this.busy = false;
    this.sending = false;
    this.attaching = null; // a promise while files are read
    this.tray = new Tray($("#tray"), {
      changed: () => {
        drafts.setAttachments(this.id, this.tray.attachments);
        this.#update();
      },
      failed: ({ kind, detail }) => toast(`error.${kind}`, { args: [detail] }),
      beside: () => [...beside(), ...this.queue.entries.flatMap(({ attachments }) => attachments)],
    });
    this.queue = new Queue($("#queue"), {
      send: sendIn,
      edit: ({ text, attachments }) => {
        this.write([text, this.area.value].filter(Boolean).join("\n\n"));
        this.tray.show([...attachments, ...this.tray.attachments]);
        this.focus();
      },
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
      if (!this.#sendable()) return;
      const text = this.area.value.trim();
      const attachments = this.tray.attachments.map(({ source, ...sent }) => sent);
      this.write("");
      this.tray.show([]);
      // What is written while an answer is waits for its end, or while a message is being stored.
      if (this.busy || this.sending) return this.queue.add({ text, attachments });
      this.sending = true;
      Promise.resolve(send(text, attachments)).finally(() => (this.sending = false));
    });
    $("#stop").addEventListener("click", stop);
    $("#attach").addEventListener("click", () => $("#files").click());
    $("#files").addEventListener("change", async ({ target }) => {
      const files = [...target.files];
      target.value = "";
      await this.#attach(files);
    });
    onFiles((files) => this.#attach(files));
    onSetting((name) => {
      if (name === "imageTokens" || name === "model") this.tray.recount();
    });
    this.#update();
  }

  // They belong to the draft that is on the screen now, whatever is by the time they are read.
  async #attach(files) {
    const { id } = this;
    const { attachments } = this.tray;
    const adding = Promise.resolve(this.attaching).then(() => this.tray.add(files, attachments));
    this.attaching = adding;
    await adding;
    if (this.attaching === adding) this.attaching = null;
    if (this.id !== id) await drafts.setAttachments(id, attachments);
    else this.focus();
  }

  /** Take the draft of a conversation ("" for a new one). */
  async open(id) {
    this.id = id;
    this.queue.open(id);
    this.write(drafts.text(id));
    const attachments = []; // not those of the draft before
    this.tray.attachments = attachments;
    const kept = await drafts.attachments(id);
    if (this.tray.attachments !== attachments) return;
    attachments.unshift(...kept);
    this.tray.show(attachments);
  }

  /** The new conversation has an identity: what is typed from now on is its draft. */
  become(id) {
    this.id = id;
    this.queue.id = id;
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
    this.queue.draw(!busy);
    this.#update();
    if (held) (busy ? $("#stop") : this.area).focus();
  }

  /** Put the cursor here, unless that would bring up a keyboard over the screen. */
  focus() {
    if (!matchMedia("(hover: none)").matches) this.area.focus();
  }

  #sendable() {
    return Boolean(this.area.value.trim() || this.tray.attachments.length);
  }

  #update() {
    const sendable = this.#sendable();
    $("#send").disabled = !sendable;
    $("#send").hidden = this.busy && !sendable;
    say($("#send"), "label", this.busy ? "queue.add" : "composer.send");
  }
}
