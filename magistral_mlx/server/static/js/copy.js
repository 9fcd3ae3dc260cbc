// Copying text, also where the page is not served over https or from this machine.
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { toast } from "./toast.js";

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "hidden", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not allowed");
}

/** A button that copies what `text()` gives, and shows that it has. */
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "icon-button", icon: "copy", label });
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      button.replaceChildren(icon("check"));
      toast("copied");
      setTimeout(() => button.replaceChildren(icon("copy")), 2000);
    } catch {
      toast("copy.failed");
    }
  });
  return button;
}
