// What is attached, on the page: small, and at full size one after the other.
import { urlsOf } from "./attach.js";
import { $, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";

// A preview; a document, and an image that the browser cannot show, is a tile with its name.
function preview({ name, url, text }) {
  if (text) return tile(name, null, "file");
  const image = h("img", { src: url, alt: name });
  image.addEventListener("error", () => image.replaceWith(tile(name)));
  return image;
}

/** What stands for a document, or an image that cannot be shown. */
export const tile = (name, hint = null, sign = "image") =>
  h(
    "span",
    { class: "no-preview" },
    icon(sign),
    h("span", { dir: "auto" }, name),
    hint ? h("small", { t: hint }) : null,
  );

/** A preview that opens the attachment at full size; `all` are the ones beside it. */
export const attachmentButton = (image, all) =>
  h(
    "button",
    {
      type: "button",
      class: "image",
      label: [image.text ? "files.show" : "images.enlarge", image.name],
      on: { click: () => enlarge(image, all) },
    },
    preview(image),
  );

// What there is to see of an attachment: { name, url }, or { name, text }.
function viewsOf(attachment) {
  const { name, pages, text } = attachment;
  if (!text || pages) {
    return urlsOf(attachment).map((url, n) => ({ name: pages ? `${name} · ${n + 1}` : name, url }));
  }
  return [{ name, text }];
}

const whole = (view) =>
  view.text ? h("pre", { dir: "auto", tabindex: "0" }, view.text) : preview(view);

function enlarge(image, attachments) {
  const dialog = $("#image");
  const all = attachments.flatMap(viewsOf);
  const before = attachments.slice(0, attachments.indexOf(image));
  const show = (at) => {
    const step = (name, label, to) =>
      iconButton(name, label, () => show(to), { disabled: !all[to], class: `icon-button ${name}` });
    dialog.replaceChildren(
      h("figure", {}, whole(all[at]), h("figcaption", { dir: "auto" }, all[at].name)),
      iconButton("close", "close", () => dialog.close(), { class: "icon-button close" }),
      ...(all.length > 1
        ? [step("left", "images.previous", at - 1), step("right", "images.next", at + 1)]
        : []),
    );
    dialog.onkeydown = ({ key, target }) => {
      if (target.localName === "pre") return; // it is scrolled
      const to = at + { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (all[to]) show(to);
    };
  };
  show(before.flatMap(viewsOf).length);
  // A click beside the image closes it.
  dialog.onclick = ({ target }) => {
    if (target === dialog || target.localName === "figure") dialog.close();
  };
  if (!dialog.open) dialog.showModal();
  dialog.focus();
}
