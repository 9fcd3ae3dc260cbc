// The conversation on the screen, and where the reader is in it.
import { AssistantView } from "./assistant.js";
import { $ } from "./dom.js";
import { onceAFrame } from "./frames.js";
import { reachScrollers } from "./scrollers.js";
import { UserView } from "./user.js";

const END = 8; // pixels from the end that count as the end: sizes are rounded
const NEAR = 60; // pixels from the end that need no button
const CLOSE = 8; // messages at the end that are dressed at once

export class Messages {
  /** `actions`: what the buttons of messages do; see UserView and AssistantView. */
  constructor(chat, actions) {
    this.chat = chat;
    this.actions = actions;
    this.views = [];
    this.element = $("#messages");
    this.frame = $("#reading");
    this.atEnd = true;
    this.top = 0; // where it was scrolled to
    this.#watchGestures();
    this.frame.addEventListener("scroll", () => this.#look(), { passive: true });
    $("#jump").addEventListener("click", () => this.toEnd());
    // Formulas and images change their height after they are put in; what is typed takes room.
    const observer = new ResizeObserver(() => this.#grown());
    for (const element of [this.element, this.frame]) observer.observe(element);
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
    const { path } = this.chat;
    this.views = path.map((message, index) => {
      const kept = old.get(message);
      if (kept && !this.#outdated(kept)) {
        old.delete(message);
        return kept;
      }
      return this.#view(message, index < path.length - CLOSE);
    });
    for (const view of old.values()) view.leave();
    this.#place(this.views.map((view) => view.element));
    $("#empty").hidden = this.views.length > 0;
    for (const { element } of this.views) reachScrollers(element);
  }

  /** Show where `needle` stands first, in a text or in a trace, which is unfolded for it. */
  find(needle) {
    const wanted = needle.toLocaleLowerCase();
    const has = (text = "") => text.toLocaleLowerCase().includes(wanted);
    const view = this.views.find(({ message }) => has(message.text) || has(message.thinking));
    if (!view) return;
    this.atEnd = false;
    view.dress?.();
    if (!has(view.message.text)) view.fold.reveal();
    const range = rangeOf(view.element, wanted);
    (range?.startContainer.parentElement ?? view.element).scrollIntoView({ block: "center" });
    this.#look();
    if (!range) return;
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }

  // What stays is not moved: it would lose the focus and what is selected in it.
  #place(elements) {
    elements.forEach((element, index) => {
      const there = this.element.children[index];
      if (there !== element) this.element.insertBefore(element, there ?? null);
    });
    while (this.element.children.length > elements.length) this.element.lastChild.remove();
  }

  /** Go to the end, and stay there while it grows. */
  toEnd() {
    this.atEnd = true;
    const top = this.frame.scrollHeight;
    // Only a smooth scroll stops one that a key or a wheel began: it would go on from here.
    this.frame.scrollTo({ top, behavior: "smooth" });
    this.frame.scrollTo({ top, behavior: "instant" });
    this.top = this.frame.scrollTop;
    $("#jump").hidden = true;
  }

  // Its versions are more than they were, it has another text, or it goes on.
  #outdated(view) {
    if (view.element.matches(".editing:not(.sent)")) return false;
    return (
      (this.chat.answer?.message === view.message && !view.answer) ||
      view.versions !== this.chat.versionsOf(view.message).all.length ||
      view.outdated
    );
  }

  #view(message, far) {
    const versions = this.chat.versionsOf(message);
    const running = this.chat.answer;
    const Kind = message.role === "user" ? UserView : AssistantView;
    const view = new Kind(message, {
      versions,
      actions: this.actions,
      answer: running?.message === message ? running : null,
      following: () => this.atEnd,
      grown: () => this.#grown(),
      far,
    });
    view.versions = versions.all.length;
    return view;
  }

  // Moving up lets go of the end, however slowly; reaching it takes hold again.
  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.frame;
    const left = scrollHeight - scrollTop - clientHeight;
    if (scrollTop < this.top && left > END) this.atEnd = false;
    if (scrollTop > this.top && left <= END) this.atEnd = true;
    this.top = scrollTop;
    $("#jump").hidden = this.atEnd || left < NEAR;
  }

  // The page may grow between the gesture and the scrolling.
  #letGo() {
    if (this.frame.scrollTop > 0) this.atEnd = false;
  }

  #watchGestures() {
    const { frame } = this;
    const passive = { passive: true };
    let from = 0;
    frame.addEventListener("wheel", ({ deltaY }) => deltaY < 0 && this.#letGo(), passive);
    frame.addEventListener("touchstart", ({ touches }) => (from = touches[0].clientY), passive);
    frame.addEventListener(
      "touchmove",
      ({ touches }) => touches[0].clientY > from && this.#letGo(),
      passive,
    );
    frame.addEventListener("keydown", ({ key, target }) => {
      const typing = target.matches("textarea, input");
      if (["ArrowUp", "PageUp", "Home"].includes(key) && !typing) this.#letGo();
    });
  }

  #grown() {
    if (this.atEnd) this.toEnd();
    else this.#look();
  }
}

// Where a text stands below `element`; null where signs of Markdown come in between.
function rangeOf(element, wanted) {
  const words = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const at = words.currentNode.data.toLocaleLowerCase().indexOf(wanted);
    if (at < 0 || words.currentNode.parentElement.closest("h2, .tools")) continue;
    const range = document.createRange();
    range.setStart(words.currentNode, at);
    range.setEnd(words.currentNode, Math.min(at + wanted.length, words.currentNode.length));
    return range;
  }
  return null;
}
