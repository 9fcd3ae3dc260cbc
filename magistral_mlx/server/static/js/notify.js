// A sign that an answer has ended, for those who look elsewhere.
import { current, t } from "./i18n.js";
import { settings } from "./settings.js";

const away = () => document.hidden || !document.hasFocus();
let waiting = false; // an answer ended that nobody has seen

/** Ask the browser whether the page may notify; resolves to the answer. */
export async function canNotify(wanted) {
  if (!wanted) return true;
  return globalThis.Notification ? (await Notification.requestPermission()) === "granted" : false;
}

/** Show that the answer in a conversation has ended; `open()` brings it to the screen. */
export function answerEnded({ title, text, failed }, open) {
  if (!away()) return;
  waiting = true;
  mark();
  if (!settings.notify || globalThis.Notification?.permission !== "granted") return;
  const note = new Notification(title || t("chat.untitled"), {
    body: failed ? t("answer.failed") : text.slice(0, 160),
    lang: current(),
    icon: new URL("static/icon-192.png", document.baseURI).href,
  });
  note.onclick = () => {
    window.focus();
    open();
    note.close();
  };
}

/** Let the title of the page tell of an answer that nobody has seen. */
export function mark() {
  const title = document.title.replace(/^✓ /, "");
  document.title = waiting ? `✓ ${title}` : title;
}

const back = () => {
  if (away()) return;
  waiting = false;
  mark();
};
addEventListener("focus", back);
document.addEventListener("visibilitychange", back);
