// Memory, speed and context at the foot of the page: from the stream, and from /metrics.
import * as api from "./api.js";
import { $, h } from "./dom.js";
import { gigabytes, number, t } from "./i18n.js";

const BUSY_EVERY = 2_000; // milliseconds
const IDLE_EVERY = 20_000;

/** Prometheus text as a function: the value of a metric, with a label's value if it has one. */
export function gauges(text) {
  const values = new Map();
  for (const [, name, label, value] of text.matchAll(/^(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$/gm)) {
    values.set(`${name} ${label ?? ""}`, Number(value));
  }
  return (name, label = "") => values.get(`${name} ${label}`) ?? null;
}

export class Strip {
  figures = () => null;

  constructor(chat) {
    this.chat = chat;
    this.element = $("#strip");
    addEventListener("language", () => this.draw());
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  /** Ask the server, and again after a while. */
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const every = this.chat.answers.size ? BUSY_EVERY : IDLE_EVERY;
    this.timer = setTimeout(() => this.refresh(), every);
    try {
      this.figures = gauges(await api.metrics());
    } catch {
      this.figures = () => null; // the conversation tells that the server is away
    }
    this.draw();
  }

  draw() {
    const items = [this.#memory(), this.#speed(), this.#context(), this.#queue()];
    this.element.replaceChildren(
      ...items
        .filter(Boolean)
        .map(([name, value, share]) =>
          h(
            "div",
            { "data-figure": name },
            h("dt", {}, t(name)),
            h("dd", {}, value, share === undefined ? null : meter(share)),
          ),
        ),
    );
  }

  #memory() {
    const bytes = (kind) => this.figures("magistral_memory_bytes", kind);
    if (bytes("weights") === null) return null;
    const used = bytes("weights") + bytes("kv_cache") + bytes("kept_cache") + bytes("buffers");
    const limit = bytes("limit");
    if (!limit) return ["strip.memory", gigabytes(used)];
    return ["strip.memory", t("of", gigabytes(used), gigabytes(limit)), used / limit];
  }

  #speed() {
    const { answer } = this.chat;
    const timings = this.#last()?.timings;
    const speed = answer ? answer.speed : timings?.decode_tokens_per_second;
    return speed ? ["strip.speed", t("speed", number(speed, 1))] : null;
  }

  #context() {
    const last = this.#last();
    if (!last) return null;
    const used = last.usage?.total_tokens ?? this.#growing(last);
    if (!used) return null;
    const most = this.figures("magistral_context_tokens", last.model ?? "");
    if (!most) return ["strip.context", number(used)];
    return ["strip.context", t("of", number(used), number(most)), used / most];
  }

  // Before the usage comes at the end: the prompt or the turns before, and what was counted since.
  #growing(last) {
    const before = this.chat.path.findLast((message) => message.usage)?.usage.total_tokens ?? null;
    const prompt = last.promptTokens ?? before;
    return prompt === null ? null : prompt + last.thinkingTokens + last.answerTokens;
  }

  #queue() {
    const waiting = this.figures("magistral_queue_length");
    return waiting ? ["strip.queue", number(waiting)] : null;
  }

  #last() {
    return this.chat.path.findLast(({ role }) => role === "assistant") ?? null;
  }
}

function meter(share) {
  const bar = h("span", { class: "meter" }, h("span", {}));
  bar.firstChild.style.inlineSize = `${Math.min(100, 100 * share)}%`;
  bar.classList.toggle("full", share > 0.9);
  return bar;
}
