// The conversation on the screen, and the running answers of all of them. The file is longer than
// others because every change of a conversation goes through it, so that none is lost between tabs.
import { Answer } from "./answer.js";
import { newId } from "./dom.js";
import { Followed } from "./followed.js";
import * as store from "./store.js";
import * as sync from "./sync.js";
import { begun, blankAnswer, leafOfBranch, newestLeaf, path, subtree, versions } from "./tree.js";

const TITLE_LENGTH = 80;

/**
 * Events: "show" when another path is on the screen, "begun" when a new conversation has its first
 * message, "list" when the list of conversations changes,
 * "ended" when an answer has, "key" when an answer needs an API key, "gone" when another tab has deleted the conversation,
 * "unstored" when the browser did not take something, "stored" when it took everything.
 */
export class Chat extends EventTarget {
  conversation = null; // null for a new one, which is stored with its first message
  system = null; // the system prompt of the next new conversation, null for that of the options
  messages = []; // all of the conversation, every branch
  answers = new Map(); // conversation id -> Answer, or Followed where another tab writes it
  #unsaved = new Map(); // conversation id -> messages that the browser did not take
  #opening = null;

  constructor() {
    super();
    sync.hear((told) => this.#hear(told));
  }

  get path() {
    return this.conversation ? path(this.messages, this.conversation.leaf) : [];
  }

  /** The answer that is being written on the screen. */
  get answer() {
    return this.answers.get(this.conversation?.id) ?? null;
  }

  /** Whether an answer of a conversation is being written, here or in another tab. */
  async answering(id) {
    if (this.answers.has(id)) return true;
    const messages = await store.messages(id).catch(() => []);
    return messages.some(({ state }) => state === "running") && sync.taken(id);
  }

  /** Stop the answer of a conversation; resolves once all of it is stored. */
  async stop(id) {
    const answer = this.answers.get(id);
    if (!answer) return;
    const ended = new Promise((resolve) => answer.addEventListener("end", resolve, { once: true }));
    answer.stop();
    await ended;
  }

  startNew() {
    this.#opening = null;
    this.conversation = null;
    this.system = null;
    this.messages = [];
    this.dispatchEvent(new Event("show"));
  }

  /** Put a conversation on the screen. False if there is no such one. */
  async open(id) {
    this.#opening = id;
    const [conversation, messages] = await Promise.all([
      store.conversation(id),
      store.messages(id),
    ]);
    if (!conversation) return false;
    if (this.#opening !== id) return true; // another one was asked for meanwhile
    const running = messages.find(({ state }) => state === "running");
    if (running && !this.answers.has(id) && (await sync.taken(id))) this.#follow(running);
    if (this.#opening !== id) return true;
    this.conversation = conversation;
    this.messages = messages.map((message) => this.#live(message));
    this.dispatchEvent(new Event("show"));
    return true;
  }

  // The message that an answer writes into, or one that nobody does: the page was closed over it.
  #live(message) {
    const { message: running } = this.answers.get(message.conversation) ?? {};
    if (message.id === running?.id) return running;
    return message.state === "running" ? { ...message, state: "stopped" } : message;
  }

  #hear({ type, conversation, message, ...state }) {
    if (type === "changed") this.#merge(conversation);
    else if (type === "grow") this.#grow(message, state);
    else {
      const answer = this.answers.get(conversation);
      if (type === "end" && answer?.elsewhere && answer.message.id === message) answer.end();
      else if (answer && !answer.elsewhere) {
        if (type === "stop") answer.stop();
        if (type === "who") answer.tell();
      }
    }
  }

  #grow(message, state) {
    const answer = this.answers.get(message.conversation);
    if (answer && !answer.elsewhere) return;
    if (answer?.message.id === message.id) answer.take({ message, ...state });
    else if (message.state === "running") this.#follow(message).take({ message, ...state });
  }

  // Another tab writes `message`.
  #follow(message) {
    const { conversation: id } = message;
    const shown = this.messages.find((other) => other.id === message.id);
    const answer = new Followed(shown ? Object.assign(shown, message) : { ...message });
    this.answers.get(id)?.end();
    this.answers.set(id, answer);
    answer.addEventListener("end", () => this.#ended(answer), { once: true });
    sync.free(id).then(async () => {
      // It was saved before, unless its tab was closed over it: what was heard of it is the rest.
      const stored = await store.message(message.id).catch(() => null);
      if (stored && length(stored) >= length(answer.message)) {
        Object.assign(answer.message, stored);
      } else await store.saveMessage({ ...answer.message, state: "stopped" }).catch(() => {});
      answer.end();
    });
    sync.tell({ type: "who", conversation: id });
    this.dispatchEvent(new Event("list"));
    if (shown) this.dispatchEvent(new Event("show"));
    return answer;
  }

  async #ended(answer) {
    const { conversation: id } = answer.message;
    if (this.answers.get(id) === answer) this.answers.delete(id);
    this.dispatchEvent(new Event("list"));
    await this.#merge(id);
    const detail = { conversation: { id }, message: answer.message, elsewhere: true };
    this.dispatchEvent(new CustomEvent("ended", { detail }));
  }

  /** Take what is stored of the conversation on the screen. */
  async refresh() {
    if (this.conversation) await this.#merge(this.conversation.id);
  }

  // Another tab has changed the conversation on the screen: take what is stored of it.
  async #merge(id) {
    if (this.conversation?.id !== id) return;
    const [conversation, messages] = await Promise.all([
      store.conversation(id),
      store.messages(id),
    ]).catch(() => []);
    if (this.conversation?.id !== id || !messages) return;
    if (!conversation) {
      if (this.#unsaved.has(id)) return;
      this.answer?.stop();
      this.dispatchEvent(new Event("gone"));
      return;
    }
    Object.assign(this.conversation, conversation);
    const here = new Map(this.messages.map((message) => [message.id, message]));
    const running = this.answer?.message;
    const unsaved = this.#unsaved.get(id) ?? [];
    const merged = messages.map((stored) => {
      const live = this.#live(stored);
      const known = here.get(stored.id);
      here.delete(stored.id);
      if (unsaved.includes(known)) return known;
      return !known || live === running ? live : Object.assign(known, live);
    });
    const left = [...here.values()].filter((m) => m === running || unsaved.includes(m));
    this.messages.splice(0, this.messages.length, ...merged, ...left); // answers hold on to it
    this.dispatchEvent(new Event("show"));
  }

  /** Send what the user wrote, after `parent` (the end of the path, unless told otherwise). */
  async send(text, attachments, parent = this.conversation?.leaf ?? null) {
    const now = Date.now();
    if (!this.conversation) {
      const title = titleOf(text, attachments);
      this.conversation = { id: newId(), title, created: now, updated: now, system: this.system };
      this.dispatchEvent(new Event("begun"));
    }
    await this.#put(this.conversation, this.messages, { text, attachments, parent });
  }

  /**
   * Send what waited in a conversation that need not be on the screen: on the branch where it was
   * written, if it waited for the answer `answered`, else on the one that is shown.
   */
  async sendIn(id, { text, attachments, after }, answered = null) {
    const [conversation, messages] =
      this.conversation?.id === id
        ? [this.conversation, this.messages]
        : await Promise.all([store.conversation(id), store.messages(id)]);
    if (!conversation) return null;
    const { leaf } = conversation;
    const parent = answered ? leafOfBranch(messages, leaf, { after, answered }) : leaf;
    return this.#put(conversation, messages, { text, attachments, parent });
  }

  async #put(conversation, messages, { text, attachments, parent }) {
    const question = { ...blank(conversation, "user", parent), text, attachments };
    messages.push(question);
    conversation.leaf = question.id;
    await this.#save(conversation, messages, [question]);
    await this.#ask(conversation, messages, question);
  }

  /** Answer the question again: beside the answer that is there, or in an empty one. */
  async retry(message) {
    const { conversation, messages } = this;
    const question = messages.find(({ id }) => id === message.parent);
    if (begun(message)) return this.#ask(conversation, messages, question);
    Object.assign(message, structuredClone(blankAnswer));
    return this.#run(conversation, path(messages, question.id), message);
  }

  /** Go on with an answer that ended too early, inside its thinking or its text. */
  async resume(message) {
    Object.assign(message, { state: "running", reason: null, error: null, notes: [], usage: null });
    this.#run(this.conversation, path(this.messages, message.id), message);
  }

  /** The versions of a message, and which one it is. */
  versionsOf(message) {
    const all = versions(this.messages, message);
    return { all, index: all.indexOf(message) };
  }

  async choose(message) {
    this.conversation.leaf = newestLeaf(this.messages, message);
    await this.#save(this.conversation, this.messages);
    this.dispatchEvent(new Event("show"));
  }

  /** Store `text` as another version of an answer. */
  async rewrite(message, text) {
    const { conversation, messages } = this;
    const fields = { text, state: "done", reason: null, error: null, notes: [] };
    const edited = { ...message, ...fields, id: newId(), created: Date.now() };
    messages.push(edited);
    conversation.leaf = edited.id;
    await this.#save(conversation, messages, [edited]);
    this.dispatchEvent(new Event("show"));
  }

  /**
   * Delete a message and all that follows it; what stands beside it, or came before it, takes its
   * place. Resolves to { count, undo }.
   */
  async remove(message) {
    const { conversation, messages } = this;
    const { id, leaf } = conversation;
    const lost = subtree(messages, message);
    if (lost.includes(this.answer?.message)) await this.stop(id);
    const left = messages.filter((other) => !lost.includes(other));
    const beside = versions(left, message).at(-1);
    const next = beside ? newestLeaf(left, beside) : message.parent;
    messages.splice(0, messages.length, ...left);
    conversation.leaf = next;
    await store.removeMessages(
      id,
      lost.map((message) => message.id),
      { leaf: next },
    );
    this.dispatchEvent(new Event("show"));
    const undo = async () => {
      messages.push(...lost.filter((message) => !messages.includes(message)));
      conversation.leaf = leaf;
      await this.#save(conversation, messages, lost);
      if (this.conversation === conversation) this.dispatchEvent(new Event("show"));
    };
    return { count: lost.length, undo };
  }

  // A browser that stores nothing can still talk; and what it does not take now may go in later.
  async #save(conversation, messages, fresh = []) {
    const { id, leaf, updated } = conversation;
    const all = [...(this.#unsaved.get(id) ?? []), ...fresh];
    const options = { fields: { leaf, updated }, whole: () => messages };
    try {
      await store.save(conversation, all, options);
      this.#unsaved.delete(id);
      this.dispatchEvent(new Event("stored"));
    } catch (error) {
      // A question is a few bytes without its attachments.
      await store
        .save(conversation, all.map(bare), { ...options, whole: () => messages.map(bare) })
        .catch(() => {});
      this.#unsaved.set(id, all);
      this.dispatchEvent(new CustomEvent("unstored", { detail: error }));
    }
  }

  async #ask(conversation, messages, question) {
    const message = {
      ...blank(conversation, "assistant", question.id),
      ...structuredClone(blankAnswer),
    };
    messages.push(message);
    Object.assign(conversation, { leaf: message.id, updated: Date.now() });
    await this.#save(conversation, messages, [message]);
    this.#run(conversation, path(messages, question.id), message);
  }

  // Let `message` be answered, or gone on with: `messages` is what the model reads.
  #run(conversation, messages, message) {
    const { id } = conversation;
    const answer = new Answer(message);
    this.answers.get(id)?.stop();
    this.answers.set(id, answer);
    answer.addEventListener("end", () => {
      if (this.answers.get(id) === answer) this.answers.delete(id);
      answer.tell();
      sync.tell({ type: "end", conversation: id, message: message.id });
      store.changed(id);
      if (message.error?.kind === "key") {
        this.dispatchEvent(new CustomEvent("key", { detail: message }));
      }
      this.dispatchEvent(new Event("list"));
      this.dispatchEvent(new CustomEvent("ended", { detail: { conversation, message } }));
    });
    sync.alone(id, () => {
      answer.tell();
      return answer.run(messages, conversation.system);
    });
    this.dispatchEvent(new Event("list"));
    if (this.conversation === conversation) this.dispatchEvent(new Event("show"));
  }
}

const length = ({ text, thinking }) => text.length + thinking.length;

const bare = ({ attachments = [], ...message }) =>
  attachments.length ? { ...message, unstored: attachments.map(({ name }) => name) } : message;

const blank = (conversation, role, parent) => ({
  id: newId(),
  conversation: conversation.id,
  parent,
  role,
  created: Date.now(),
  text: "",
});

function titleOf(text, attachments) {
  const line = text.trim().split("\n")[0];
  if (!line) return attachments[0]?.name ?? "";
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : line;
}
