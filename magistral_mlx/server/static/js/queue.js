// Messages that were written while an answer was: each is sent when the one before is answered.
import { h, iconButton } from "./dom.js";
import * as drafts from "./drafts.js";
import { inTurn } from "./sync.js";

export class Queue {
  entries = []; // of the conversation on the screen: { text, attachments, after }
  idle = true;
  taking = null; // the conversation whose next entry is about to be sent

  /**
   * `send(id, entry, answered)` and `edit(entry)` are what happens to an entry; `answering(id)`
   * resolves to whether an answer of a conversation is being written.
   */
  constructor(element, { send, edit, answering }) {
    Object.assign(this, { element, send, edit, answering, id: "" });
  }

  async open(id) {
    this.id = id;
    this.entries = [];
    this.draw();
    const entries = await drafts.queue(id);
    if (this.id !== id) return;
    this.entries = [...entries, ...this.entries];
    this.draw();
  }

  add(entry) {
    this.entries.push(entry);
    this.#changed();
  }

  /** The answer `answered` of a conversation is complete: send what waits for it. */
  async next(id, answered) {
    if (!(await this.#of(id)).length) return;
    this.taking = id;
    // What waits in another tab has its turn too: the end of the answer to it is the next.
    await inTurn(id, async () => {
      if (!(await this.answering(id))) await this.#sendNext(id, answered);
    }).finally(() => (this.taking = null));
  }

  async #of(id) {
    return id === this.id ? this.entries : drafts.queue(id);
  }

  async #sendNext(id, answered) {
    const entries = await this.#of(id);
    const here = entries === this.entries;
    const entry = entries.shift();
    if (!entry) return;
    if (here) this.#changed();
    else await drafts.setQueue(id, entries);
    await this.send(id, entry, answered);
  }

  /** `idle`: nothing is being answered, so that what is left waits for the user. */
  draw(idle = this.idle) {
    this.idle = idle;
    this.element.hidden = !this.entries.length;
    this.element.replaceChildren(...this.entries.map((entry) => this.#item(entry)));
  }

  #item(entry) {
    const names = entry.attachments.map(({ name }) => name).join(", ");
    const take = () => {
      this.entries.splice(this.entries.indexOf(entry), 1);
      this.#changed();
      return entry;
    };
    return h(
      "li",
      {},
      h("span", { dir: "auto" }, entry.text || names),
      this.idle ? iconButton("send", "queue.send", () => this.send(this.id, take())) : null,
      iconButton("edit", "queue.edit", () => this.edit(take())),
      iconButton("close", "queue.remove", take),
    );
  }

  #changed() {
    drafts.setQueue(this.id, this.entries);
    this.draw();
  }
}
