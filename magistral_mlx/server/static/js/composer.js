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
   * `send(text, attachments)` and `stop()` are what the buttons do, `sendIn(id, entry, answered)`
   * sends what has waited; `answering(id)` resolves to whether a conversation has an answer that is
   * being written; `beside()` gives the attachments that are sent along, `after()` the id of the
   * question that what is written follows.
   */
  constructor({ send, stop, sendIn, answering, beside, after }) {
    this.area = $("#message");
    this.id = null; // until it has taken a draft
    this.busy = false;
    this.sending = false;
    this.reading = new Map(); // id of a draft -> { attachments, done } while files are read for it
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
      answering,
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
      if (this.reading.has(this.id)) return this.#sendOnceRead(event.target);
      if (!this.#sendable()) return;
      const text = this.area.value.trim();
      const attachments = this.tray.attachments.map(({ source, ...sent }) => sent);
      this.write("");
      this.tray.show([]);
      // What is written while an answer is waits for its end, or while a message is being stored.
      if (this.busy || this.sending || this.queue.taking === this.id) {
        return this.queue.add({ text, attachments, after: after() });
      }
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
    const before = this.reading.get(id)?.done ?? true;
    const add = async () => {
      const well = await before;
      return (await this.tray.add(files, attachments)) && well;
    };
    const reading = { attachments, done: add() }; // whether all of them could be attached
    this.reading.set(id, reading);
    await reading.done;
    if (this.reading.get(id) === reading) this.reading.delete(id);
    if (this.id !== id) await drafts.setAttachments(id, attachments);
    else this.focus();
  }

  // What is being read belongs to the message. It stays a draft if a file could not be attached, or
  // if another draft is on the screen by then.
  async #sendOnceRead(form) {
    const { id } = this;
    const well = await this.reading.get(id).done;
    if (well && this.id === id) form.requestSubmit();
  }

  /** Take the draft of a conversation ("" for a new one). */
  async open(id) {
    this.id = id;
    this.queue.open(id);
    this.write(drafts.text(id));
    const reading = this.reading.get(id);
    if (reading) return this.tray.show(reading.attachments);
    const attachments = []; // not those of the draft before
    this.tray.attachments = attachments;
    const kept = await drafts.attachments(id);
    attachments.unshift(...kept);
    if (this.tray.attachments === attachments) this.tray.show(attachments);
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
