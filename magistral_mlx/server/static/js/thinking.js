// The fold with the thinking trace: how long it is, how long it took, and the trace when open.
import { Blocks } from "./blocks.js";
import { h } from "./dom.js";
import { duration, number, percent, say, t } from "./i18n.js";
import { reachScrollers } from "./scrollers.js";
import { settings } from "./settings.js";

const LEAST = 0.1; // seconds that are worth telling

export class ThinkingFold {
  /** `remember(open)` is told when the user opens or closes the fold of a finished trace. */
  constructor(message, remember) {
    this.message = message;
    this.remember = remember;
    this.name = h("span", { class: "thinking-name" });
    this.figures = h("span", { class: "thinking-figures" });
    this.body = h("div", { class: "markdown thinking-body" });
    this.summary = h("summary", { icon: "chevron" }, this.name, this.figures);
    this.element = h("details", { class: "thinking", hidden: true }, this.summary, this.body);
    this.blocks = null; // rendered when first seen
    this.thinks = false; // the trace is being written
    // A click is the user's own; "toggle" would come of our own opening and closing as well.
    this.summary.addEventListener("click", () => this.#chosen(!this.element.open));
    this.element.addEventListener("toggle", () => {
      this.#render();
      reachScrollers(this.body);
    });
  }

  /** Show what there is; `seconds` counts while `thinks`. */
  update({ thinks, seconds }) {
    const { thinking, thinkingTokens, answerTokens } = this.message;
    if (!thinking) return;
    if (this.element.hidden) {
      this.element.hidden = false;
      this.element.open = thinks ? settings.thinkingOpen : this.message.open;
    }
    this.thinks = thinks;
    this.element.classList.toggle("thinks", thinks);
    say(this.name, "t", thinks ? "thinking.now" : "thinking.done");
    this.figures.textContent = [
      t("tokens", thinkingTokens, number(thinkingTokens)),
      seconds < LEAST ? null : duration(seconds, thinks),
      answerTokens ? percent(thinkingTokens / (thinkingTokens + answerTokens)) : null,
    ]
      .filter(Boolean)
      .join(" · ");
    this.#render();
  }

  /** Show the trace at once. */
  reveal() {
    this.element.open = true;
    this.#render();
  }

  /** The answer begins: the trace makes room. */
  collapse() {
    this.element.open = false;
  }

  #chosen(open) {
    if (this.thinks) settings.thinkingOpen = open;
    else this.remember(open);
  }

  // A closed fold costs nothing, however long its trace grows.
  #render() {
    if (!this.element.open) return;
    const { thinking } = this.message;
    this.blocks ??= new Blocks(this.body);
    if (this.blocks.finished) return;
    if (this.thinks) this.blocks.grow(thinking);
    else this.blocks.finish(thinking);
  }
}
