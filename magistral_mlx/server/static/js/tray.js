// The images of a message that is being written.
import { readImage, tooMuch } from "./attach.js";
import { h, iconButton } from "./dom.js";
import { number } from "./i18n.js";
import { imageButton } from "./images.js";

export class Tray {
  images = [];

  /**
   * `changed()` is called when an image is added or removed, `failed(error)` when one cannot be
   * attached; `beside()` gives the images that are sent with them.
   */
  constructor(element, { changed, failed, beside }) {
    Object.assign(this, { element, changed, failed, beside });
  }

  /** Read files, and attach those that can be sent, to `images`, of whatever draft. */
  async add(files, images) {
    for (const file of files) {
      try {
        const image = await readImage(file);
        const problem = tooMuch([...this.beside(), ...images, image]);
        if (problem) throw problem;
        images.push(image);
      } catch (error) {
        this.failed(error);
      }
      if (images === this.images) this.show(images);
    }
  }

  /** Show other images. */
  show(images) {
    this.images = images;
    this.element.hidden = !images.length;
    this.element.replaceChildren(
      ...images.map((image) =>
        h(
          "li",
          {},
          imageButton(image, images),
          image.tokens ? h("small", { t: ["tokens", image.tokens, number(image.tokens)] }) : null,
          iconButton("close", ["images.remove", image.name], () => this.#remove(image)),
        ),
      ),
    );
    this.changed();
  }

  #remove(image) {
    this.images.splice(this.images.indexOf(image), 1);
    this.show(this.images);
    this.element.querySelector("button")?.focus();
  }
}
