// The conversation on the screen, and the answers that are being written in any of them.
import { Answer } from "./answer.js";
import { newId } from "./dom.js";
import * as store from "./store.js";
import { blankAnswer, newestLeaf, path, versions } from "./tree.js";

const TITLE_LENGTH = 80;

/**
 * Events: "show" when another path is on the screen, "list" when the list of conversations changes,
 * "key" when an answer needs an API key, "unstored" when the browser did not take something.
 */
export class Chat extends EventTarget {
  conversation = null; // null for a new one, which is stored with its first message
  messages = []; // all of the conversation, every branch
  answers = new Map(); // conversation id -> Answer
  #opening = null;

  get path() {
    return this.conversation ? path(this.messages, this.conversation.leaf) : [];
  }

  /** The answer that is being written on the screen. */
  get answer() {
    return this.answers.get(this.conversation?.id) ?? null;
  }

  startNew() {
    this.#opening = null;
    this.conversation = null;
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
    this.conversation = conversation;
    const running = this.answers.get(id)?.message;
    this.messages = messages.map((message) =>
      message.id === running?.id ? running : settled(message),
    );
    this.dispatchEvent(new Event("show"));
    return true;
  }

  /** Send what the user wrote, after `parent` (the end of the path, unless told otherwise). */
  async send(text, images, parent = this.conversation?.leaf ?? null) {
    const now = Date.now();
    this.conversation ??= {
      id: newId(),
      title: titleOf(text, images),
      created: now,
      updated: now,
    };
    const { conversation, messages } = this;
    const question = { ...blank(conversation, "user", parent), text, images };
    messages.push(question);
    conversation.leaf = question.id;
    await this.#save(conversation, [question]);
    await this.#ask(conversation, messages, question);
  }

  /** Answer the question again, beside the answer that is there, or in place of an empty one. */
  async retry(message) {
    const { conversation, messages } = this;
    if (!message.text && !message.thinking) {
      messages.splice(messages.indexOf(message), 1);
      await store.removeMessage(message.id).catch(() => {});
    }
    await this.#ask(
      conversation,
      messages,
      messages.find(({ id }) => id === message.parent),
    );
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
    await this.#save(this.conversation);
    this.dispatchEvent(new Event("show"));
  }

  // A browser that stores nothing can still talk.
  async #save(conversation, messages = []) {
    try {
      await store.save(conversation, messages);
    } catch (error) {
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
    await this.#save(conversation, [message]);
    this.#run(conversation, path(messages, question.id), message);
  }

  // Let `message` be answered, or gone on with: `messages` is what the model reads.
  #run(conversation, messages, message) {
    const answer = new Answer(message);
    this.answers.get(conversation.id)?.stop();
    this.answers.set(conversation.id, answer);
    answer.addEventListener("end", () => {
      if (this.answers.get(conversation.id) === answer) this.answers.delete(conversation.id);
      store.tell(conversation.id);
      if (message.error?.kind === "key") {
        this.dispatchEvent(new CustomEvent("key", { detail: message }));
      }
      this.dispatchEvent(new Event("list"));
    });
    answer.run(messages);
    this.dispatchEvent(new Event("list"));
    if (this.conversation === conversation) this.dispatchEvent(new Event("show"));
  }
}

const blank = (conversation, role, parent) => ({
  id: newId(),
  conversation: conversation.id,
  parent,
  role,
  created: Date.now(),
  text: "",
});

// Nobody writes it any more: the page was closed over it.
const settled = (message) =>
  message.state === "running" ? { ...message, state: "stopped" } : message;

function titleOf(text, images) {
  const line = text.trim().split("\n")[0];
  if (!line) return images[0]?.name ?? "";
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : line;
}
