// Rounds of an answer that calls tools: its thinking and text before the calls, the calls, and what
// they gave. `message.rounds` are { thinking, thinkingTokens, thinkingSeconds, text, calls }, and
// each call { id, name, arguments, state, result }: asked, running, done, failed, denied or stopped.
import { Blocks } from "./blocks.js";
import { h } from "./dom.js";
import { number, say } from "./i18n.js";
import { announce } from "./speech.js";
import { ThinkingFold } from "./thinking.js";
import { titleOf } from "./tools.js";

const CHOICES = ["once", "tool", "all", "no"];

export class RoundsView {
  constructor(message) {
    this.message = message;
    this.element = h("div", { class: "rounds" });
    this.calls = []; // views
    this.shown = 0; // rounds
  }

  /** Show what there is; `answer` takes what the user decides. */
  update(answer) {
    const { rounds } = this.message;
    for (; this.shown < rounds.length; this.shown += 1) this.#add(rounds[this.shown]);
    const calls = rounds.flatMap((round) => round.calls);
    calls.forEach((call, n) => {
      if (!this.calls[n]) {
        this.calls[n] = new CallView();
        this.element.append(this.calls[n].element);
      }
      this.calls[n].update(call, answer);
    });
  }

  #add(round) {
    if (round.thinking) {
      const fold = new ThinkingFold({ answerTokens: 0, open: false, ...round }, () => {});
      fold.update({ thinks: false, seconds: round.thinkingSeconds ?? 0 });
      this.element.append(fold.element);
    }
    if (!round.text) return;
    const body = h("div", { class: "markdown" });
    new Blocks(body).finish(round.text);
    this.element.append(body);
  }
}

// A call: one line, with what was asked for and what came back in a fold.
class CallView {
  constructor() {
    this.name = h("span", { class: "call-name", dir: "auto" });
    this.state = h("span", { class: "call-state" });
    this.details = h("div", { class: "call-details" });
    this.fold = h(
      "details",
      {},
      h("summary", { icon: "chevron" }, this.name, this.state),
      this.details,
    );
    this.question = h("div", { class: "call-question", hidden: true });
    this.element = h("div", { class: "call" }, this.fold, this.question);
  }

  update(call, answer) {
    // The page was closed over it.
    const state = answer || call.result !== null ? call.state : "stopped";
    const asking = state === "asked";
    const now = JSON.stringify([state, answer?.elsewhere]);
    if (now === this.drawn) return;
    this.drawn = now;
    this.name.textContent = titleOf(call.name);
    this.element.dataset.state = state;
    const size = call.result === null ? [] : [number(call.result.length)];
    say(this.state, "t", `call.${state}`, ...size);
    this.details.replaceChildren(
      h("small", { t: "call.arguments" }),
      h("pre", { dir: "ltr", tabindex: "0", label: "call.arguments" }, pretty(call.arguments)),
      ...(call.result === null
        ? []
        : [
            h("small", { t: "call.result" }),
            h("pre", { dir: "auto", tabindex: "0", label: "call.result" }, call.result),
          ]),
    );
    this.fold.open = asking;
    this.#ask(call, asking ? answer : null);
  }

  #ask(call, answer) {
    this.question.hidden = !answer;
    if (!answer) return this.question.replaceChildren();
    announce("call.asked");
    if (answer.elsewhere) {
      return this.question.replaceChildren(h("p", { t: "call.elsewhere" }));
    }
    this.question.replaceChildren(
      ...CHOICES.map((choice) =>
        h("button", {
          type: "button",
          class: choice === "once" ? "primary" : "",
          t: `call.allow.${choice}`,
          on: { click: () => answer.decide(choice) },
        }),
      ),
    );
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // cut short
  }
}
