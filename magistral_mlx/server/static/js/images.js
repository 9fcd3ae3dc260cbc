// Images on the page: small ones that open at full size, one after the other.
import { $, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";

/** A preview; an image that the browser cannot show is a tile with its name. */
function preview({ name, url }) {
  const image = h("img", { src: url, alt: name });
  image.addEventListener("error", () => image.replaceWith(tile(name)));
  return image;
}

/** What stands for an image that cannot be shown. */
export const tile = (name, hint = null) =>
  h(
    "span",
    { class: "no-preview" },
    icon("image"),
    h("span", {}, name),
    hint ? h("small", { t: hint }) : null,
  );

/** A preview that opens the image at full size; `all` are the ones beside it. */
export const imageButton = (image, all) =>
  h(
    "button",
    {
      type: "button",
      class: "image",
      label: ["images.enlarge", image.name],
      on: { click: () => enlarge(image, all) },
    },
    preview(image),
  );

function enlarge(image, all) {
  const dialog = $("#image");
  const show = (at) => {
    const step = (name, label, to) =>
      iconButton(name, label, () => show(to), { disabled: !all[to], class: `icon-button ${name}` });
    dialog.replaceChildren(
      h("figure", {}, preview(all[at]), h("figcaption", { dir: "auto" }, all[at].name)),
      iconButton("close", "close", () => dialog.close(), { class: "icon-button close" }),
      ...(all.length > 1
        ? [step("left", "images.previous", at - 1), step("right", "images.next", at + 1)]
        : []),
    );
    dialog.onkeydown = ({ key }) => {
      const to = at + { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (all[to]) show(to);
    };
  };
  show(all.indexOf(image));
  // A click beside the image closes it.
  dialog.onclick = ({ target }) => {
    if (target === dialog || target.localName === "figure") dialog.close();
  };
  if (!dialog.open) dialog.showModal();
  dialog.focus();
}
