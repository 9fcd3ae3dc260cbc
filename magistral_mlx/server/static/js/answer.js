// An answer while it is being written: it lives on whatever conversation is on the screen.
import * as api from "./api.js";
import { meaning, named, requestBody } from "./completion.js";
import * as rescue from "./rescue.js";
import * as store from "./store.js";
import { tell } from "./sync.js";

const SAVE_EVERY = 500; // milliseconds
const TELL_EVERY = 150; // other tabs
const SPEED_OVER = 3; // seconds

/**
 * Events: "grow" when something came, "end" when nothing more comes. `message` is the record that
 * is saved; the rest is gone with the page. What it holds already is gone on with.
 */
export class Answer extends EventTarget {
  constructor(message) {
    super();
    this.message = message;
    this.progress = null; // while the prompt is read, as the server tells it
    this.before = { ...message }; // what it held
    if (!message.text) message.thinkingSeconds = null; // its trace goes on
    this.thinkingBegun = null;
    this.recent = []; // times of the last tokens
    this.received = false; // any token yet
    this.controller = new AbortController();
    this.telling = null; // timers
    this.saving = null;
  }

  stop() {
    this.controller.abort();
  }

  get thinkingSeconds() {
    if (this.message.thinkingSeconds !== null) return this.message.thinkingSeconds;
    const now = this.thinkingBegun === null ? 0 : (performance.now() - this.thinkingBegun) / 1000;
    return (this.before.thinkingSeconds ?? 0) + now;
  }

  /** Tokens a second, over the last moments; null before there is anything to tell. */
  get speed() {
    const now = performance.now();
    this.recent = this.recent.filter((time) => now - time < SPEED_OVER * 1000);
    const seconds = (now - this.recent[0]) / 1000;
    return this.recent.length > 3 ? this.recent.length / seconds : null;
  }

  /** Ask, and read to the end. Never throws: what went wrong stands in the message. */
  async run(messages, system = null) {
    const leaving = () => rescue.keep(this.message);
    addEventListener("pagehide", leaving);
    try {
      for await (const chunk of api.chat(requestBody(messages, system), this.controller.signal)) {
        this.#take(meaning(chunk));
        this.dispatchEvent(new Event("grow"));
        this.#nowAndThen();
      }
      this.message.state = "done";
    } catch (error) {
      this.#fail(error, messages, system);
    } finally {
      removeEventListener("pagehide", leaving);
      this.#endThinking();
      await this.#save();
      this.dispatchEvent(new Event("end"));
    }
  }

  #take({ model, progress, thinking, text, reason, notes, usage, timings }) {
    const message = this.message;
    if (model) message.model = model;
    if (progress) {
      this.progress = progress;
      message.promptTokens = progress.prompt_tokens - this.#tokensBefore;
    }
    if (thinking || text) {
      this.progress = null;
      this.received = true;
      this.recent.push(performance.now());
    }
    if (thinking) {
      this.thinkingBegun ??= performance.now();
      message.thinking += thinking;
      message.thinkingTokens += 1;
    }
    if (text) {
      this.#endThinking();
      message.text += text;
      message.answerTokens += 1;
    }
    if (reason) message.reason = reason;
    if (notes) message.notes = notes;
    if (timings) message.timings = timings;
    if (usage) {
      message.usage = usage;
      // Pieces were counted so far; a token is not always a piece.
      const exact = usage.completion_tokens_details?.reasoning_tokens;
      if (exact !== undefined) {
        message.thinkingTokens = this.before.thinkingTokens + exact;
        message.answerTokens = this.before.answerTokens + usage.completion_tokens - exact;
      }
    }
  }

  get #tokensBefore() {
    return this.before.thinkingTokens + this.before.answerTokens;
  }

  #endThinking() {
    if (!this.message.thinking || this.message.thinkingSeconds !== null) return;
    this.message.thinkingSeconds = this.thinkingSeconds;
  }

  #fail(error, messages, system) {
    if (error.name === "AbortError") {
      this.message.state = "stopped";
      return;
    }
    const { kind = "page", detail = error.message, wait = null } = error;
    this.message.state = "failed";
    this.message.error = { kind, detail: named(detail, messages, system), wait };
    if (kind === "page") console.error(error);
  }

  #nowAndThen() {
    this.telling ??= setTimeout(() => this.tell(), TELL_EVERY);
    this.saving ??= setTimeout(() => this.#save(), SAVE_EVERY);
  }

  async #save() {
    clearTimeout(this.saving);
    this.saving = null;
    await store.saveMessage(this.message).then(
      () => this.message.state !== "running" && rescue.drop(this.message),
      () => {},
    );
  }

  /** Let other tabs follow. */
  tell() {
    clearTimeout(this.telling);
    this.telling = null;
    const { message, progress, received, thinkingSeconds, speed } = this;
    tell({ type: "grow", message, progress, received, thinkingSeconds, speed });
  }
}
