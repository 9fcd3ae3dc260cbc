// An answer that another tab is writing, for the views of this one: it grows as the other tells.
import { tell } from "./sync.js";

/** Has what views ask of an Answer, and its events "grow" and "end". */
export class Followed extends EventTarget {
  elsewhere = true;
  progress = null;
  received = false;
  thinkingSeconds = 0;
  speed = null;

  constructor(message) {
    super();
    this.message = message;
  }

  /** Take what the writer tells: { message, progress, received, thinkingSeconds, speed }. */
  take({ message, ...state }) {
    Object.assign(this.message, message, { open: this.message.open });
    Object.assign(this, state);
    this.dispatchEvent(new Event("grow"));
  }

  /** Ask the tab that writes it to stop. */
  stop() {
    tell({ type: "stop", conversation: this.message.conversation });
  }

  /** Nobody writes it any more. */
  end() {
    if (this.message.state === "running") this.message.state = "stopped"; // its tab was closed
    this.dispatchEvent(new Event("end"));
  }
}
