// Files on their way in: read, images made smaller where they are huge, and checked by the server,
// so that what is attached can be sent.
import * as api from "./api.js";
import { Failure } from "./api.js";
import { dataUrl, readDocument } from "./documents.js";
import { h } from "./dom.js";
import { limits, sees } from "./models.js";

const TYPES =
  "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif,image/heic,image/heif,.heic,.heif";
const NAMES = /\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|heif)$/i;
const LARGE_BYTES = 4_000_000; // what a photo may have before it is scaled down
const LARGEST_SIDE = 3080; // twice what the model sees, so that nothing is lost
const SEEN_PIXELS = 1540 * 1540; // what the model sees
const REFUSED = /^(messages\[0\]\.content\[0\]|image 1 )/; // the image, not the request

/** Whether a file says that it is an image. */
const isImage = ({ type, name }) => TYPES.split(",").includes(type) || (!type && NAMES.test(name));

/**
 * A file as what is attached: an image as { name, url, tokens } with a data URL, and the tokens
 * that it takes, null if the server does not tell; anything else as a document. Throws Failure for
 * one that the server would not read.
 */
export async function readFile(file) {
  if (!isImage(file)) return readDocument(file);
  if (!sees()) throw new Failure("blind");
  if (!file.size) throw new Failure("image", file.name);
  let url = await imageUrl(file, file.name);
  const size = await measured(url);
  if (size && (file.size > LARGE_BYTES || scaleOf(size) < 1)) {
    const blob = await smaller(file, size);
    if (blob) url = await imageUrl(blob, file.name);
  }
  return { name: file.name, url, tokens: await tokensOf(url, file.name, Boolean(size)) };
}

/** The data URLs of the images that are sent for an attachment. */
export const urlsOf = ({ url, pages = [] }) => (url ? [url] : pages);

/** Whether attachments are too many, or too large, for one request: null, or why as a Failure. */
export function tooMuch(attachments) {
  const { images: count, body_bytes: bytes } = limits();
  const urls = attachments.flatMap(urlsOf);
  if (urls.length > count) return new Failure("images", count);
  const texts = attachments.map(({ text = "" }) => text);
  const total = [...urls, ...texts].reduce((sum, { length }) => sum + length, 0);
  return total > 0.95 * bytes ? new Failure("large") : null;
}

/** Count the tokens of an attachment again: the size of images was changed. */
export async function recount(attachment) {
  const urls = urlsOf(attachment);
  if (!urls.length) return;
  const heading = attachment.pages ? attachment.text : null;
  attachment.tokens = await api.imageTokens(urls, heading).catch(() => attachment.tokens);
}

// The server opens it as it would for an answer. A server that is away, or knows no such thing,
// leaves it to the browser.
async function tokensOf(url, name, shown) {
  try {
    return (await api.imageTokens([url])) ?? null;
  } catch (error) {
    if (error.kind === "refused" && REFUSED.test(error.detail)) throw new Failure("image", name);
    if (error.kind === "large") throw new Failure("large");
    const known = /^data:image\/(png|jpeg|gif|webp|bmp);/.test(url);
    if (known && !shown) throw new Failure("image", name);
    return null;
  }
}

// Its size, known before its pixels are unpacked; null where this browser cannot read it.
function measured(url) {
  return new Promise((resolve) => {
    const image = h("img");
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

function scaleOf({ width, height }) {
  const { images, image_pixels: one, prompt_pixels: all } = limits();
  const most = Math.min(one, Math.max(all / images, SEEN_PIXELS));
  return Math.min(1, LARGEST_SIDE / Math.max(width, height), Math.sqrt(most / (width * height)));
}

// A JPEG that is no larger than it needs to be; null where that is more bytes, or cannot be made.
async function smaller(file, size) {
  const scale = scaleOf(size);
  const [width, height] = [size.width, size.height].map((side) =>
    Math.max(1, Math.floor(side * scale)),
  );
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      resizeWidth: width,
      resizeHeight: height,
      resizeQuality: "high",
    });
  } catch {
    return null;
  }
  const canvas = h("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the model sees what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return blob && (scale < 1 || blob.size < file.size) ? blob : null;
}

async function imageUrl(blob, name) {
  const url = await dataUrl(blob, new Failure("image", name));
  return url.replace(/^data:(?:application\/octet-stream)?;/, `data:${typeOf(name)};`);
}

// Some systems know no type for a photo's name.
const typeOf = (name) =>
  `image/${(NAMES.exec(name)?.[1] ?? "png").toLowerCase().replace("jpg", "jpeg").replace(/^tif$/, "tiff")}`;
