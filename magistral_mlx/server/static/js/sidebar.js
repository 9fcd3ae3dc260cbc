// The list of conversations: open, search, rename, export, delete with a way back.
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
    const groups = new Map(shown.some(({ pinned }) => pinned) ? [["age.pinned", []]] : []);
    for (const conversation of shown) {
      const name = conversation.pinned ? "age.pinned" : age(conversation.updated);
      groups.set(name, [...(groups.get(name) ?? []), conversation]);
    }
    $("#conversations").replaceChildren(
      ...[...groups].map(([name, conversations]) =>
        h(
          "section",
          {},
          h("h2", { t: name }),
          h("ul", {}, ...conversations.map((conversation) => this.#item(conversation))),
        ),
      ),
      ...(shown.length
        ? []
        : [h("p", { class: "nothing", t: needle ? "sidebar.none" : "sidebar.empty" })]),
    );
    if (focused) $(`.conversation[data-id="${focused}"] > button`)?.focus();
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

  #rename(item, conversation) {
    const field = h("input", { dir: "auto", value: conversation.title, label: "chat.rename", maxlength: "200" });
    this.renaming = true;
    const close = async (keep) => {
      if (!this.renaming) return;
      this.renaming = false;
      const title = field.value.trim();
      if (keep && title) await this.#store(conversation.id, { title });
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
    item.replaceChildren(field);
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
