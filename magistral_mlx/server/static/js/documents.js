// Text, code and PDF files on their way in: the server reads them into what is sent. A document is
// { name, text, tokens }; a PDF whose pages are shown has `pages`, data URLs, as well; as long as
// its message is written it keeps `source`, its bytes in base64, to be read in the other way.
import * as api from "./api.js";
import { Failure } from "./api.js";

/** A file as a document. Throws Failure for one that the server does not read. */
export async function readDocument(file) {
  const { name } = file;
  const data = await base64(file);
  if (!isPDF(file)) return { name, ...(await read(name, data, "text")) };
  const text = read(name, data, "text");
  // A scan has no text: then it is its pages.
  const found = await text.catch(() => read(name, data, "images").catch(() => text));
  return { name, ...found, source: data };
}

/** Take the pages of a PDF in place of its text, or the other way round. Throws Failure. */
export async function turn(document, pdf) {
  const { text, pages, tokens } = await read(document.name, document.source, pdf);
  Object.assign(document, { text, pages, tokens });
}

const isPDF = ({ type, name }) => type === "application/pdf" || /\.pdf$/i.test(name);

async function read(name, data, pdf) {
  try {
    const { parts, tokens } = await api.readDocument({ name, data, pdf });
    const urls = parts.map(({ image_url }) => image_url?.url).filter(Boolean);
    return { text: parts[0].text, tokens, pages: urls.length ? urls : undefined };
  } catch (error) {
    throw error.kind === "refused" ? new Failure("document", error.detail) : error;
  }
}

/** A file's bytes as a data URL. Throws `failure` where it cannot be read. */
export function dataUrl(file, failure) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(failure);
    reader.readAsDataURL(file);
  });
}

async function base64(file) {
  const url = await dataUrl(file, new Failure("unreadable", file.name));
  return url.slice(url.indexOf(",") + 1);
}
