// The conversation on the screen, and where the reader is in it.
import { AssistantView } from "./assistant.js";
import { $ } from "./dom.js";
import { onceAFrame } from "./frames.js";
import { reachScrollers } from "./scrollers.js";
import { UserView } from "./user.js";

const NEAR = 60; // pixels from the end that count as the end

export class Messages {
  /** `actions`: what the buttons of messages do; see UserView and AssistantView. */
  constructor(chat, actions) {
    this.chat = chat;
    this.actions = actions;
    this.views = [];
    this.element = $("#messages");
    this.frame = $("#reading");
    this.atEnd = true;
    this.frame.addEventListener("scroll", () => this.#look(), { passive: true });
    $("#jump").addEventListener("click", () => this.toEnd());
    // Formulas and images change their height after they are put in.
    new ResizeObserver(() => this.#grown()).observe(this.element);
    const fit = () => this.#fit();
    addEventListener("resize", onceAFrame(fit));
    fit();
  }

  #fit() {
    // What stands below the conversation is in line with it, whatever room scroll bars take.
    const bars = this.frame.offsetWidth - this.frame.clientWidth;
    $(".foot").style.paddingInline = `${bars / 2}px`;
    for (const { element } of this.views) reachScrollers(element);
  }

  /** Show the path of the conversation. Messages that stay keep their place on the screen. */
  show() {
    const old = new Map(this.views.map((view) => [view.message, view]));
    this.views = this.chat.path.map((message) => {
      const kept = old.get(message);
      if (kept && !this.#outdated(kept)) {
        old.delete(message);
        return kept;
      }
      return this.#view(message);
    });
    for (const view of old.values()) view.leave();
    this.element.replaceChildren(...this.views.map((view) => view.element));
    $("#empty").hidden = this.views.length > 0;
    for (const { element } of this.views) reachScrollers(element);
  }

  /** Go to the end, and stay there while it grows. */
  toEnd() {
    this.atEnd = true;
    this.frame.scrollTop = this.frame.scrollHeight;
    $("#jump").hidden = true;
  }

  // Its versions are more than they were, it is being edited, or it goes on.
  #outdated(view) {
    return (
      (this.chat.answer?.message === view.message && !view.answer) ||
      view.versions !== this.chat.versionsOf(view.message).all.length ||
      view.element.classList.contains("editing")
    );
  }

  #view(message) {
    const versions = this.chat.versionsOf(message);
    const running = this.chat.answer;
    const Kind = message.role === "user" ? UserView : AssistantView;
    const view = new Kind(message, {
      versions,
      actions: this.actions,
      answer: running?.message === message ? running : null,
      following: () => this.atEnd,
      grown: () => this.#grown(),
    });
    view.versions = versions.all.length;
    return view;
  }

  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.frame;
    this.atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    $("#jump").hidden = this.atEnd;
  }

  #grown() {
    if (this.atEnd) this.toEnd();
    else this.#look();
  }
}
