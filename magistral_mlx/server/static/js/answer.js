// An answer while it is being written: it lives on whatever conversation is on the screen.
import * as api from "./api.js";
import { meaning, named, requestBody } from "./completion.js";
import * as rescue from "./rescue.js";
import * as store from "./store.js";
import { tell } from "./sync.js";
import * as tools from "./tools.js";

const SAVE_EVERY = 500; // milliseconds
const TELL_EVERY = 150; // other tabs
const SPEED_OVER = 3; // seconds
const MOST_ROUNDS = 20; // of calls to tools

// What an answer has of a round, before its first token.
const blankRound = {
  thinking: "",
  thinkingTokens: 0,
  thinkingSeconds: null,
  text: "",
  answerTokens: 0,
  reason: null,
};

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
    this.calls = []; // of this round, as they are written
    this.decided = null; // takes what the user decides of a call
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
    const { message } = this;
    rescue.watch(message);
    const before = messages.filter((other) => other !== message);
    try {
      await tools.ready;
      do {
        const read = message.rounds.length || message.text ? [...before, message] : messages;
        for await (const chunk of api.chat(requestBody(read, system), this.controller.signal)) {
          this.#take(meaning(chunk));
          this.dispatchEvent(new Event("grow"));
          this.#nowAndThen();
        }
      } while (await this.#callTools());
      message.state = "done";
    } catch (error) {
      this.#fail(error, messages, system);
    } finally {
      rescue.unwatch(message);
      this.#endThinking();
      await this.#save();
      this.dispatchEvent(new Event("end"));
    }
  }

  /** Say what is to be done with the call that is asked for: once, tool, all or no. */
  decide(choice) {
    this.decided?.(choice);
  }

  // Make the calls that were written, as far as the user allows them; whether there were any.
  async #callTools() {
    const { message } = this;
    if (!this.calls.length || message.reason !== "tool_calls") return false;
    if (message.rounds.length >= MOST_ROUNDS) return false;
    this.#endThinking();
    const { thinking, thinkingTokens, thinkingSeconds, text } = message;
    const calls = this.calls.map((call) => ({ ...call, state: "asked", result: null }));
    message.rounds = [
      ...message.rounds,
      { thinking, thinkingTokens, thinkingSeconds, text, calls },
    ];
    Object.assign(message, blankRound);
    this.calls = [];
    for (const call of calls) await this.#make(call);
    this.before = { ...message };
    this.thinkingBegun = null;
    this.received = false;
    return true;
  }

  async #make(call) {
    const { signal } = this.controller;
    if (!tools.allowed(call)) {
      this.dispatchEvent(new Event("grow"));
      this.tell();
      await this.#save();
      const choice = await new Promise((resolve, reject) => {
        this.decided = resolve;
        signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        signal.throwIfAborted();
      });
      tools.allow(call, choice);
      if (choice === "no") {
        Object.assign(call, { state: "denied", result: "The user did not allow this call." });
        return;
      }
    }
    call.state = "running";
    this.dispatchEvent(new Event("grow"));
    Object.assign(call, await tools.make(call, signal));
    this.dispatchEvent(new Event("grow"));
    this.#nowAndThen();
  }

  // Pieces of calls come by index: the name first, then the arguments.
  #takeCalls(pieces) {
    for (const { index, id, function: { name, arguments: written = "" } = {} } of pieces) {
      this.calls[index] ??= { id, name, arguments: "" };
      this.calls[index].arguments += written;
    }
  }

  #take({ model, progress, thinking, text, calls, reason, notes, usage, timings }) {
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
    this.#takeCalls(calls);
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
    for (const call of this.message.rounds.at(-1)?.calls ?? []) {
      if (["asked", "running"].includes(call.state)) call.state = "stopped";
    }
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
