// The list of conversations: open, search, rename, put into folders, export, delete with a way back.
import { download, exported, markdown } from "./archive.js";
import { $, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { openMenu } from "./menu.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import { composing } from "./textarea.js";
import { toast } from "./toast.js";

const DAY = 86_400_000;
const NARROW = matchMedia("(max-width: 800px)");

export class Sidebar {
  /** `open(id)` puts a conversation on the screen ("" for a new one). */
  constructor(chat, open) {
    this.chat = chat;
    this.open = open;
    this.all = [];
    this.found = null; // ids that the search has found in messages
    this.renaming = false;
    $("#search").addEventListener("input", () => this.#search());
    $("#sidebar-open").addEventListener("click", () => this.#show(true, true));
    $("#sidebar-close").addEventListener("click", () => this.#show(false, true));
    $("#scrim").addEventListener("click", () => this.#show(false));
    NARROW.addEventListener("change", () => this.#show(NARROW.matches ? false : settings.sidebar));
    $("#sidebar").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || composing(event)) return;
      event.stopPropagation(); // it is not meant for an answer
      if (NARROW.matches) this.#show(false, true);
    });
    addEventListener("language", () => this.draw());
    this.#show(NARROW.matches ? false : settings.sidebar);
  }

  /** Read the list again. It is empty where the browser stores nothing. */
  async refresh() {
    this.all = await store.conversations().catch(() => []);
    await this.#search();
  }

  /** On a narrow screen it covers what was chosen. */
  makeRoom() {
    if (NARROW.matches) this.#show(false);
  }

  /** Bring up the search field. */
  search() {
    this.#show(true, true);
    $("#search").select();
    $("#search").focus();
  }

  toggle() {
    this.#show(!document.body.classList.contains("with-sidebar"), true);
  }

  /** Let the user rename a conversation of the list. */
  rename(id) {
    this.#show(true);
    $("#search").value = "";
    this.found = null;
    this.draw();
    $(`.conversation[data-id="${id}"]`)?.querySelector("[data-tool=rename]").click();
  }

  #show(shown, byUser = false) {
    const sidebar = $("#sidebar");
    sidebar.inert = !shown;
    document.body.classList.toggle("with-sidebar", shown);
    $("#sidebar-open").setAttribute("aria-expanded", String(shown));
    $("#scrim").hidden = !(shown && NARROW.matches);
    $(".main").inert = shown && NARROW.matches;
    if (!byUser) return;
    if (!NARROW.matches) settings.sidebar = shown;
    $(shown ? "#new-chat" : "#sidebar-open").focus();
  }

  async #search() {
    const needle = $("#search").value.trim();
    const found = needle ? await store.containing(needle).catch(() => new Set()) : null;
    if (needle !== $("#search").value.trim()) return; // typed on meanwhile
    this.found = found;
    this.draw();
  }

  draw() {
    if (this.renaming) return; // it would take the field away
    const focused = document.activeElement?.closest?.(".conversation")?.dataset.id;
    const needle = $("#search").value.trim().toLocaleLowerCase();
    const shown = this.all.filter(
      ({ id, title }) =>
        !this.found || this.found.has(id) || title.toLocaleLowerCase().includes(needle),
    );
    const list = (conversations) =>
      h("ul", {}, ...conversations.map((conversation) => this.#item(conversation)));
    const pinned = shown.filter((conversation) => conversation.pinned);
    const loose = shown.filter(({ pinned, folder }) => !pinned && !folder);
    const groups = new Map(pinned.length ? [["age.pinned", pinned]] : []);
    const ages = new Map();
    for (const conversation of loose) {
      const name = age(conversation.updated);
      ages.set(name, [...(ages.get(name) ?? []), conversation]);
    }
    const section = ([name, conversations]) =>
      h("section", {}, h("h2", { t: name }), list(conversations));
    const folders = this.#folders.map((name) => [
      name,
      shown.filter((conversation) => !conversation.pinned && conversation.folder === name),
    ]);
    $("#conversations").replaceChildren(
      ...[...groups].map(section),
      ...folders
        .filter(([, conversations]) => conversations.length)
        .map(([name, conversations]) => this.#folder(name, list(conversations), Boolean(needle))),
      ...[...ages].map(section),
      ...(shown.length
        ? []
        : [h("p", { class: "nothing", t: needle ? "sidebar.none" : "sidebar.empty" })]),
    );
    if (focused) $(`.conversation[data-id="${focused}"] > button`)?.focus();
  }

  get #folders() {
    const names = this.all.map(({ folder }) => folder).filter(Boolean);
    return [...new Set(names)].sort((a, b) => a.localeCompare(b));
  }

  // A folder can be folded; what a search has found in it is shown.
  #folder(name, list, searching) {
    const fold = h(
      "details",
      { class: "folder", open: searching || !settings.foldersClosed.includes(name) },
      h("summary", { icon: "chevron" }, h("h2", { dir: "auto" }, name)),
      list,
    );
    fold.firstChild.addEventListener("click", () => {
      const others = settings.foldersClosed.filter((other) => other !== name);
      settings.foldersClosed = fold.open ? [...others, name] : others;
    });
    return fold;
  }

  #item(conversation) {
    const { id } = conversation;
    const here = id === this.chat.conversation?.id;
    const running = this.chat.answers.has(id);
    const title = h(
      "button",
      { type: "button", class: "open", title: conversation.title },
      h("span", { class: "name", dir: "auto" }, conversation.title || t("chat.untitled")),
      running ? h("span", { class: "running", role: "img", label: "sidebar.running" }) : null,
    );
    if (here) title.setAttribute("aria-current", "page");
    title.addEventListener("click", () => this.open(id));
    const item = h(
      "li",
      { class: "conversation", "data-id": id },
      title,
      h(
        "span",
        { class: "item-tools" },
        iconButton("edit", "chat.rename", () => this.#rename(item, conversation), {
          "data-tool": "rename",
        }),
        iconButton("more", "chat.more", ({ currentTarget }) =>
          openMenu(currentTarget, [
            [conversation.pinned ? "chat.unpin" : "chat.pin", () => this.#pin(conversation)],
            ["chat.folder", () => this.#move(item, conversation)],
            ["chat.markdown", () => this.#export(conversation, markdown, "md")],
            [
              "chat.export",
              () => this.#export(conversation, () => exported([conversation]), "json"),
            ],
          ]),
        ),
        iconButton("trash", "chat.delete", () => this.delete(conversation)),
      ),
    );
    return item;
  }

  #rename(item, { id, title }) {
    const store = (title) => title && this.#store(id, { title });
    this.#edit(item, h("input", { value: title, label: "chat.rename", maxlength: "200" }), store);
  }

  // No name takes it out of its folder.
  #move(item, { id, folder = "" }) {
    const names = h(
      "datalist",
      { id: "folder-names" },
      ...this.#folders.map((value) => h("option", { value })),
    );
    const field = h("input", {
      value: folder,
      label: "chat.folder",
      placeholder: "chat.folder.name",
      list: "folder-names",
      maxlength: "60",
    });
    this.#edit(item, field, (folder) => this.#store(id, { folder }), names);
  }

  // Let the user write into `field`, in place of an item of the list; `store(text)` keeps it.
  #edit(item, field, store, ...beside) {
    field.dir = "auto";
    this.renaming = true;
    const close = async (keep) => {
      if (!this.renaming) return;
      this.renaming = false;
      if (keep) await store(field.value.trim());
      await this.refresh(); // which keeps the focus here, unless it has gone on meanwhile
    };
    field.addEventListener("keydown", (event) => {
      if (composing(event)) return;
      if (event.key === "Enter") close(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        close(false);
      }
    });
    field.addEventListener("blur", () => close(true));
    item.replaceChildren(field, ...beside);
    field.focus();
    field.select();
  }

  async #store(id, change) {
    if (this.chat.conversation?.id === id) Object.assign(this.chat.conversation, change);
    await store.patch(id, change);
    this.chat.dispatchEvent(new Event("title"));
  }

  async #export(conversation, file, ending) {
    download(await file(conversation), fileName(conversation.title, ending));
  }

  async #pin(conversation) {
    await this.#store(conversation.id, { pinned: !conversation.pinned });
    await this.refresh(); // the focus stays with it
  }

  /** Delete a conversation, with a way back. */
  async delete(conversation) {
    const { id } = conversation;
    await this.chat.stop(id);
    const messages = await store.remove(id);
    if (this.chat.conversation?.id === id) this.open("");
    else $("#new-chat").focus(); // the button that had the focus is gone
    await this.refresh();
    toast("chat.deleted", {
      args: [conversation.title],
      undo: async () => {
        await store.save(conversation, messages);
        await this.refresh();
      },
    });
  }
}

function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "age.today";
  if (time >= today - DAY) return "age.yesterday";
  return time >= today - 7 * DAY ? "age.week" : "age.older";
}

const fileName = (title, ending) =>
  `${title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat"}.${ending}`;
