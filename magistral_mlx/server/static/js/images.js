// Images on their way in: read, made smaller where they are huge, shown, enlarged.
import { Failure } from "./api.js";
import { $, h, iconButton } from "./dom.js";

export const ACCEPT =
  "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif,image/heic,image/heif,.heic,.heif";
const NAMES = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|heif)$/i;
const LARGE_BYTES = 4_000_000; // what a photo may have before it is scaled down
const LARGEST_SIDE = 3080; // twice what the model sees, so that nothing is lost

/** Whether the server reads such a file. */
const isImage = ({ type, name }) =>
  ACCEPT.split(",").includes(type) || (!type && NAMES.test(name));

/** A file as { name, url } with a data URL. Throws Failure for one that is not an image. */
export async function readImage(file) {
  if (!isImage(file)) throw new Failure("image", file.name);
  const blob = file.size > LARGE_BYTES ? await smaller(file) : file;
  return { name: file.name, url: await dataUrl(blob, file.name) };
}

async function smaller(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return file; // this browser cannot read it; the server may
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the model sees what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return blob && blob.size < file.size ? blob : file;
}

function dataUrl(blob, name) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () =>
      resolve(
        reader.result.replace(/^data:(?:application\/octet-stream)?;/, `data:${typeOf(name)};`),
      );
    reader.onerror = () => reject(new Failure("image", name));
    reader.readAsDataURL(blob);
  });
}

// Some systems know no type for a photo's name.
const typeOf = (name) =>
  `image/${(NAMES.exec(name)?.[1] ?? "png").toLowerCase().replace("jpg", "jpeg").replace(/^tif$/, "tiff")}`;

/** A preview; an image that the browser cannot show is its name. */
function preview({ name, url }) {
  const image = h("img", { src: url, alt: name });
  image.addEventListener("error", () =>
    image.replaceWith(h("span", { class: "no-preview" }, name)),
  );
  return image;
}

/** A preview that opens the image at full size. */
export function imageButton(image) {
  const button = h(
    "button",
    { type: "button", class: "image", label: ["images.enlarge", image.name] },
    preview(image),
  );
  button.addEventListener("click", () => {
    const dialog = $("#image");
    dialog.replaceChildren(
      preview(image),
      iconButton("close", "close", () => dialog.close()),
    );
    dialog.showModal();
  });
  return button;
}

/** The images of a message that is being written. */
export class Tray {
  images = [];

  /** `changed()` is called when one is added or removed, `failed(error)` when one is none. */
  constructor(element, { changed, failed }) {
    Object.assign(this, { element, changed, failed });
  }

  async add(files) {
    for (const file of files) {
      try {
        this.images.push(await readImage(file));
      } catch (error) {
        this.failed(error);
      }
    }
    this.#show();
  }

  /** Give the images away, and be empty. */
  take() {
    const { images } = this;
    this.images = [];
    this.#show();
    return images;
  }

  #show() {
    this.element.hidden = !this.images.length;
    this.element.replaceChildren(
      ...this.images.map((image) =>
        h(
          "li",
          {},
          imageButton(image),
          iconButton("close", ["images.remove", image.name], () => this.#remove(image)),
        ),
      ),
    );
    this.changed();
  }

  #remove(image) {
    this.images = this.images.filter((other) => other !== image);
    this.#show();
  }
}
