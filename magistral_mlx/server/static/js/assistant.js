// An answer on the screen: what it waits for, its thinking, its text, how it ended, and what can
// be done with it.
import { Blocks } from "./blocks.js";
import { copyButton } from "./copy.js";
import { h, iconButton } from "./dom.js";
import { editor } from "./editor.js";
import { onceAFrame } from "./frames.js";
import { duration, moment, number, say, t } from "./i18n.js";
import { later } from "./later.js";
import { reachScrollers } from "./scrollers.js";
import { announce, Speaker } from "./speech.js";
import { RoundsView } from "./rounds.js";
import { ThinkingFold } from "./thinking.js";
import { begun } from "./tree.js";
import { versionSwitch } from "./versions.js";

const SPOKEN_ENDS = { done: "answer.end", stopped: "answer.stopped", failed: "answer.failed" };
const TICK = 1000; // milliseconds: the seconds go on while no token comes

export class AssistantView {
  /**
   * `actions`: retry(message), resume(message), choose(message), fold(message), rewrite(message, text), remove(message); `following()` tells whether the
   * reader is at the end, `grown()` is called after each change of height, and `far` tells whether
   * it is far from where the reader is: its text is plain for a moment then.
   */
  constructor(message, { answer, versions, actions, following, grown, far }) {
    Object.assign(this, { message, answer, actions, following, grown });
    this.waiting = h(
      "p",
      { class: "waiting", hidden: true },
      h("span", { class: "dots" }),
      h("span"),
    );
    this.fold = this.#newFold();
    this.rounds = new RoundsView(message);
    this.body = h("div", { class: "markdown answer" });
    this.note = h("div", { class: "note", hidden: true });
    this.facts = h("span", { class: "facts" });
    this.tools = h(
      "div",
      { class: "tools", hidden: true },
      copyButton("message.copy", () => message.text),
      iconButton("retry", "message.retry", () => actions.retry(message)),
      iconButton("edit", "message.editAnswer", () => this.#edit()),
      iconButton("trash", "message.delete", () => actions.remove(message)),
      versionSwitch(versions, actions.choose),
      this.facts,
    );
    this.element = h(
      "article",
      { class: "message assistant" },
      h("h2", { class: "hidden", t: "message.assistant" }),
      this.rounds.element,
      this.fold.element,
      this.body,
      this.waiting,
      this.note,
      this.tools,
    );
    if (answer) this.#follow();
    else this.#settle(far);
    this.language = () => (this.answer ? this.#draw() : this.#words());
    addEventListener("language", this.language);
  }

  /** Whether it shows something else than its message holds. */
  get outdated() {
    if (this.element.classList.contains("sent")) return true;
    if (this.answer) return false;
    const { text, thinking, state } = this.message;
    const [shown, thought, was] = this.shown;
    return text !== shown || thinking !== thought || state !== was;
  }

  /** The view is off the screen; the answer goes on. */
  leave() {
    removeEventListener("language", this.language);
    clearInterval(this.timer);
    this.forget?.();
    this.answer = null;
  }

  #follow() {
    this.blocks = new Blocks(this.body);
    this.speaker = new Speaker(this.message.text.length);
    this.element.setAttribute("aria-busy", "true");
    const draw = onceAFrame(() => this.answer && this.#draw());
    this.answer.addEventListener("grow", draw);
    this.answer.addEventListener("end", () => this.answer && this.#end());
    this.timer = setInterval(draw, TICK);
    this.#draw();
  }

  #newFold() {
    const { message, actions } = this;
    return new ThinkingFold(message, (open) => {
      message.open = open;
      actions.fold(message);
    });
  }

  // Calls to tools are made: what comes after them begins anew.
  #drawRounds() {
    const before = this.rounds.shown;
    this.rounds.update(this.answer);
    if (!this.blocks || this.rounds.shown === before) return;
    const fold = this.#newFold();
    this.fold.element.replaceWith(fold.element);
    this.fold = fold;
    this.body.replaceChildren();
    this.blocks = new Blocks(this.body);
    this.speaker = new Speaker(0);
  }

  #draw() {
    const { message, answer } = this;
    this.#drawRounds();
    const thinks = Boolean(message.thinking) && !message.text;
    this.#drawWaiting();
    if (message.text && this.fold.thinks && this.following()) this.fold.collapse();
    if (thinks && !this.fold.thinks) announce("thinking.now");
    this.fold.update({ thinks, seconds: answer.thinkingSeconds });
    if (message.text) {
      this.blocks.grow(message.text);
      this.speaker.follow(message.text);
    }
    this.grown();
  }

  #drawWaiting() {
    const { answer } = this;
    const asked = this.message.rounds.at(-1)?.calls.some(({ state }) => state === "asked");
    this.waiting.hidden = answer.received || asked;
    if (this.waiting.hidden) return;
    const { prompt_tokens: total, done_tokens: done, seconds_left: left } = answer.progress ?? {};
    const words = this.waiting.lastChild;
    if (!total) return say(words, "t", "waiting");
    const percent = number(Math.floor((100 * done) / total));
    say(words, "t", "waiting.prompt", percent, number(total), left > 1 ? duration(left) : null);
  }

  #end() {
    clearInterval(this.timer);
    this.speaker.follow(this.message.text, true);
    announce(SPOKEN_ENDS[this.message.state]);
    if (this.message.text && this.fold.thinks && this.following()) this.fold.collapse();
    this.answer = null;
    this.element.removeAttribute("aria-busy");
    this.#settle();
    this.grown();
  }

  #settle(far = false) {
    const { message } = this;
    this.shown = [message.text, message.thinking, message.state];
    this.waiting.hidden = true;
    this.tools.hidden = !begun(message);
    this.rounds.update(null);
    this.#words();
    if (far && message.text) {
      this.body.replaceChildren(h("p", { class: "plain", dir: "auto" }, message.text));
      this.forget = later(() => this.dress());
    } else this.#render();
  }

  /** Render the Markdown of a text that is still plain. */
  dress() {
    if (!this.forget) return;
    this.forget();
    this.forget = null;
    this.body.replaceChildren();
    this.#render();
  }

  #render() {
    const { text } = this.message;
    if (text) (this.blocks ?? new Blocks(this.body)).finish(text);
    else this.body.replaceChildren();
    reachScrollers(this.element);
  }

  // What is said in the language of the page.
  #words() {
    const { message } = this;
    this.fold.update({ thinks: false, seconds: message.thinkingSeconds ?? 0 });
    this.#ending();
    const { timings, answerTokens, thinkingTokens, rounds } = message;
    const thought = rounds.reduce((sum, round) => sum + round.thinkingTokens, 0);
    const tokens = answerTokens + thinkingTokens + thought;
    const speed = timings?.decode_tokens_per_second;
    this.facts.textContent = [
      tokens ? t("tokens", tokens, number(tokens)) : null,
      speed ? t("speed", number(speed, 1)) : null,
      moment(message.created),
      message.model,
    ]
      .filter(Boolean)
      .join(" · ");
  }

  #edit() {
    const { message } = this;
    const shown = [...this.element.children];
    const close = () => {
      this.element.classList.remove("editing");
      this.element.replaceChildren(...shown);
      this.tools.querySelector("button").focus();
    };
    const { form, begin } = editor(message.text, {
      label: "message.editAnswer",
      action: "presets.save",
      lines: true,
      close,
      submit: (text) => {
        if (!text.trim() || text === message.text) return close();
        this.element.classList.add("sent");
        this.actions.rewrite(message, text);
      },
    });
    this.element.classList.add("editing");
    this.element.replaceChildren(shown[0], form);
    begin();
  }

  #ending() {
    const { message } = this;
    const [kind, text, detail] = ending(message);
    this.note.hidden = !kind;
    this.note.className = `note ${kind}`;
    if (!kind) return;
    this.note.replaceChildren(
      h("p", {}, text, detail ? h("span", { class: "detail" }, detail) : null),
    );
    if (kind === "hint") return;
    for (const action of begun(message) ? ["resume", "retry"] : ["retry"]) {
      const click = () => this.actions[action](message);
      this.note.append(h("button", { type: "button", t: action, on: { click } }));
    }
  }
}

// How an answer ended, if not simply so: [class, words, the server's words].
function ending({ state, reason, error, notes = [] }) {
  if (state === "failed") {
    return ["error", t(`error.${error.kind}`, error.wait), error.detail];
  }
  if (state === "stopped") return ["plain", t("answer.stopped")];
  const said = notes.join(" ");
  if (reason === "tool_calls") return ["plain", t("call.most")];
  if (reason === "length") return ["plain", said || t("answer.length")];
  return said ? ["hint", said] : [""];
}
