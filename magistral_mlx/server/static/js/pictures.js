// Pictures on their way in: read, made smaller where they are huge, shown, enlarged.
import { Failure } from "./api.js";
import { $, h, iconButton } from "./dom.js";

export const ACCEPT =
  "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif,image/heic,image/heif,.heic,.heif";
const NAMES = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|heif)$/i;
const LARGE_BYTES = 4_000_000; // what a photo may have before it is scaled down
const LARGEST_SIDE = 3080; // twice what the model sees, so that nothing is lost

/** Whether the server reads such a file. */
const isPicture = ({ type, name }) =>
  ACCEPT.split(",").includes(type) || (!type && NAMES.test(name));

/** A file as { name, url } with a data URL. Throws Failure for one that is no picture. */
export async function readPicture(file) {
  if (!isPicture(file)) throw new Failure("picture", file.name);
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
    reader.onerror = () => reject(new Failure("picture", name));
    reader.readAsDataURL(blob);
  });
}

// Some systems know no type for a photo's name.
const typeOf = (name) =>
  `image/${(NAMES.exec(name)?.[1] ?? "png").toLowerCase().replace("jpg", "jpeg").replace(/^tif$/, "tiff")}`;

/** A preview; a picture that the browser cannot show is its name. */
function preview({ name, url }) {
  const image = h("img", { src: url, alt: name });
  image.addEventListener("error", () =>
    image.replaceWith(h("span", { class: "no-preview" }, name)),
  );
  return image;
}

/** A preview that opens the picture at full size. */
export function pictureButton(picture) {
  const button = h(
    "button",
    { type: "button", class: "picture", label: ["pictures.enlarge", picture.name] },
    preview(picture),
  );
  button.addEventListener("click", () => {
    const dialog = $("#picture");
    dialog.replaceChildren(
      preview(picture),
      iconButton("close", "close", () => dialog.close()),
    );
    dialog.showModal();
  });
  return button;
}

/** The pictures of a message that is being written. */
export class Tray {
  pictures = [];

  /** `changed()` is called when one is added or removed, `failed(error)` when one is none. */
  constructor(element, { changed, failed }) {
    Object.assign(this, { element, changed, failed });
  }

  async add(files) {
    for (const file of files) {
      try {
        this.pictures.push(await readPicture(file));
      } catch (error) {
        this.failed(error);
      }
    }
    this.#show();
  }

  /** Give the pictures away, and be empty. */
  take() {
    const { pictures } = this;
    this.pictures = [];
    this.#show();
    return pictures;
  }

  #show() {
    this.element.hidden = !this.pictures.length;
    this.element.replaceChildren(
      ...this.pictures.map((picture) =>
        h(
          "li",
          {},
          pictureButton(picture),
          iconButton("close", ["pictures.remove", picture.name], () => this.#remove(picture)),
        ),
      ),
    );
    this.changed();
  }

  #remove(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.#show();
  }
}
