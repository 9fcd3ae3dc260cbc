"""What people expect of a chat page: a queue, saved prompts, pins, shortcuts, every option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from magistral_mlx.server.page import STATIC
from tests.e2e.server.browser import Visit, browser, reload, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import OWN_PROMPT, Ended, Gate, Replay, Said, Thought, replaying
from tests.e2e.server.test_page_looks import complaints


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, replay: Replay) -> Iterator[Visit]:  # noqa: F811
    replay.reset()
    with visiting(browser, replay.url) as visit:
        yield visit


def test_messages_wait_for_the_answer_and_can_be_changed(visit: Visit, replay: Replay) -> None:
    page = visit.page
    queue = page.locator("#queue li")
    gate, second = Gate(), Gate()
    replay.next(Said("One "), gate, Said("done."), Ended())
    visit.ask("First")
    expect(page.locator(".answer")).to_have_text("One")
    for text in ("Second", "Third", "Fourth"):
        visit.ask(text)
    expect(queue).to_have_count(3)
    queue.nth(1).get_by_role("button", name="Change the waiting message").click()
    expect(page.locator("#message")).to_have_value("Third")
    page.locator("#message").fill("")
    queue.nth(1).get_by_role("button", name="Remove the waiting message").click()
    expect(queue).to_have_text(["Second"])
    visit.ask("Fifth")
    replay.next(Said("Two "), second, Said("done."), Ended())
    replay.next(Said("Three done."), Ended())
    gate.open()
    expect(page.locator(".user-text")).to_have_text(["First", "Second"])
    expect(queue).to_have_text(["Fifth"])
    # Out of sight it goes on.
    page.locator("#new-chat").click()
    expect(queue).to_have_count(0)
    second.open()
    page.locator(".conversation .open").click()
    visit.answered(3)
    expect(page.locator(".user-text")).to_have_text(["First", "Second", "Fifth"])

    # What waits for an answer that was stopped waits on, through a reload.
    replay.next(Said("Half"), Gate())
    visit.ask("Sixth")
    expect(page.locator(".answer").last).to_have_text("Half")
    visit.ask("Seventh")
    expect(queue).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".note:visible")).to_contain_text("Stopped.")
    reload(page)
    replay.next(Said("Seven."), Ended())
    queue.get_by_role("button", name="Send now").click()
    expect(visit.answered(5).locator(".answer")).to_have_text("Seven.")
    expect(queue).to_have_count(0)


def test_what_waits_is_asked_on_its_branch(visit: Visit, replay: Replay) -> None:
    page = visit.page
    gate = Gate()
    replay.next(Said("One."), Ended())
    visit.ask("First")
    visit.answered()
    page.locator(".user").hover()
    page.get_by_role("button", name="Edit").click()
    replay.next(Said("Two "), gate, Said("done."), Ended())
    page.locator(".editor textarea").fill("Edited")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("Two")
    visit.ask("Follow-up")
    expect(page.locator("#queue li")).to_have_count(1)
    page.locator(".user").hover()
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".answer")).to_have_text("One.")
    visit.ask("Of the first")
    expect(page.locator("#queue li")).to_have_count(2)
    for text in ("Three.", "Four."):
        replay.next(Said(text), Ended())
    gate.open()
    expect(page.locator(".answer")).to_have_text(["One.", "Four."])
    assert [[said["content"] for said in body["messages"]][::2] for body in replay.requests] == [
        ["First"], ["Edited"], ["Edited", "Follow-up"], ["First", "Of the first"],
    ]  # fmt: skip


def test_the_end_of_an_answer_is_told_to_who_is_elsewhere(visit: Visit, replay: Replay) -> None:
    page = visit.page
    visit.context.grant_permissions(["notifications"])
    page.evaluate(
        """() => {
            globalThis.notes = [];
            globalThis.Notification = class {
                static permission = "granted";
                static requestPermission = async () => "granted";
                constructor(title, { body }) { notes.push([title, body]); }
            };
            document.hasFocus = () => globalThis.focused ?? true;
        }"""
    )
    page.locator("#options-open").click()
    page.get_by_label("Notify me").check()
    page.keyboard.press("Escape")
    for focused, count in ((True, 1), (False, 2)):
        page.evaluate("(focused) => { globalThis.focused = focused; }", focused)
        replay.next(Thought("Hm."), Said("All done."), Ended())
        visit.ask("A long story")
        visit.answered(count)
    expect(page).to_have_title("✓ A long story · Magistral")
    assert page.evaluate("notes") == [["A long story", "All done."]]
    page.evaluate("() => { focused = true; dispatchEvent(new Event('focus')); }")
    expect(page).to_have_title("A long story · Magistral")


def test_every_option_reaches_the_server(visit: Visit, replay: Replay) -> None:
    page = visit.page
    page.locator("#options-open").click()
    page.get_by_text("More options").click()
    values = {
        "Top-p": ("top_p", 0.93), "Min-p": ("min_p", 0.05), "Top-k": ("top_k", 40),
        "Repetition penalty": ("repetition_penalty", 1.1),
        "Presence penalty": ("presence_penalty", -0.5),
        "Frequency penalty": ("frequency_penalty", 0.25),
        "Size of images": ("image_tokens", 256),
    }  # fmt: skip
    for label, (_, value) in values.items():
        page.get_by_label(label).fill(str(value))
    page.get_by_label("Stop texts").fill("END\n\n###\n")
    schema = page.get_by_label("JSON schema")
    schema.fill('{"type": "object"}')
    for wrong in ("{", "[]", "7", "null"):
        schema.fill(wrong)
        expect(schema).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Leave earlier thinking out").check()
    page.keyboard.press("Escape")
    replay.next(Said("{}"), Ended())
    visit.ask("Hello")
    visit.answered()
    body = replay.requests[-1]
    assert {name: body[name] for name, _ in values.values()} == dict(values.values())
    assert body["stop"] == ["END", "###"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["keep_thinking"] is False
    reload(page)
    page.locator("#options-open").click()
    page.get_by_text("More options").click()
    expect(page.get_by_label("Top-p")).to_have_value("0.93")
    for label in values:
        page.get_by_label(label).fill("")
    page.get_by_label("Stop texts").fill("")
    schema.fill("")
    page.get_by_label("Leave earlier thinking out").uncheck()
    page.keyboard.press("Escape")
    replay.next(Said("Yes."), Ended())
    visit.ask("Hello")
    visit.answered(2)
    fields = {"model", "messages", "stream", "stream_options", "thinking"}
    assert set(replay.requests[-1]) <= fields


def test_a_system_prompt_is_every_chats_or_one_chats_and_can_be_saved(
    visit: Visit, replay: Replay
) -> None:
    page = visit.page
    field, own = page.get_by_label("System prompt"), page.get_by_label("For this chat only")

    def system(text: str, count: int) -> str | None:
        replay.next(Said("Yes."), Ended())
        visit.ask(text)
        visit.answered(count)
        first = replay.requests[-1]["messages"][0]
        return first["content"] if first["role"] == "system" else None

    page.locator("#options-open").click()
    page.get_by_text("The model’s own", exact=True).click()
    expect(page.locator(".own-prompt")).to_have_text(OWN_PROMPT)
    field.fill("Be brief.")
    page.get_by_label("Name to save it under").fill("Brief")
    page.get_by_role("button", name="Save", exact=True).click()
    own.check()
    field.fill("Be a pirate.")
    page.keyboard.press("Escape")
    assert system("Pirate", 1) == "Be a pirate."
    page.locator("#new-chat").click()
    assert system("Plain", 1) == "Be brief."
    reload(page)
    page.locator(".conversation .open", has_text="Pirate").click()
    expect(page.locator(".user-text")).to_have_text("Pirate")
    assert system("Again", 2) == "Be a pirate."
    page.locator("#options-open").click()
    expect(own).to_be_checked()
    page.get_by_label("Saved prompts").select_option("Brief")
    expect(field).to_have_value("Be brief.")
    own.uncheck()
    field.fill("")
    page.keyboard.press("Escape")
    assert system("None", 3) is None
    page.locator("#options-open").click()
    page.get_by_label("Saved prompts").select_option("Brief")
    page.get_by_role("button", name="Delete the saved prompt").click()
    expect(page.get_by_label("Saved prompts").locator("option")).to_have_count(1)


def test_answers_are_changed_messages_removed_and_chats_pinned_and_exported(
    visit: Visit, replay: Replay, tmp_path: Path
) -> None:
    page = visit.page
    for count, text in enumerate(("One", "Two", "Three"), 1):
        replay.next(Thought(f"Thinking of {text}."), Said(f"Answer {text}."), Ended())
        visit.ask(text)
        visit.answered(count)
    answer = page.locator(".assistant").nth(1)
    facts = answer.locator(".facts")
    expect(facts).to_contain_text("magistral-small-2509-4bit")
    assert facts.evaluate(r"(element) => /\d\d:\d\d/.test(element.textContent)")
    expect(answer.locator("summary")).to_contain_text("%")

    answer.get_by_role("button", name="Change the answer").click()
    page.locator(".editor textarea").fill("Better answer.")
    page.locator(".editor").get_by_role("button", name="Save").click()
    expect(page.locator(".answer")).to_have_text(["Answer One.", "Better answer."])
    expect(answer.locator(".versions")).to_have_text("2/2")
    answer.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".answer")).to_have_count(3)

    page.locator(".user").nth(1).hover()
    page.locator(".user").nth(1).get_by_role("button", name="Remove from here on").click()
    expect(page.locator(".user-text")).to_have_text(["One"])
    page.reload()
    expect(page.locator(".user-text")).to_have_text(["One"])
    replay.next(Said("Answer Four."), Ended())
    visit.ask("Four")
    visit.answered(2)
    page.locator(".user").nth(1).hover()
    page.locator(".user").nth(1).get_by_role("button", name="Remove from here on").click()
    expect(page.locator(".user-text")).to_have_text(["One"])
    expect(page.locator(".toast")).to_contain_text("2 messages removed.")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".user-text")).to_have_text(["One", "Four"])
    page.reload()
    expect(page.locator(".user-text")).to_have_text(["One", "Four"])

    chat = page.locator(".conversation", has_text="One")
    chat.hover()
    with page.expect_download() as download:
        chat.get_by_role("button", name="More").click()
        page.get_by_role("menuitem", name="Export as Markdown").click()
    file = tmp_path / "chat.md"
    download.value.save_as(file)
    assert download.value.suggested_filename == "One.md"
    text = file.read_text()
    parts = ("# One", "## You", "One", "Thinking of One.", "Answer One.", "Four", "Answer Four.")
    places = [text.index(f"\n{part}\n") if part != "# One" else 0 for part in parts]
    assert places == sorted(places)

    page.locator("#new-chat").click()
    replay.next(Said("Yes."), Ended())
    visit.ask("Newer")
    visit.answered()
    names = page.locator("#conversations .conversation .name")
    expect(names).to_have_text(["Newer", "One"])
    chat.hover()
    chat.get_by_role("button", name="More").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("menuitem", name="Pin")).to_be_focused()
    page.keyboard.press("Enter")
    expect(names).to_have_text(["One", "Newer"])
    expect(page.locator("#conversations h2").first).to_have_text("Pinned")
    page.reload()
    expect(names).to_have_text(["One", "Newer"])

    # A search goes into the traces, and opens the one that it found.
    page.locator("#search").fill("thinking of one")
    expect(names).to_have_text(["One"])
    page.locator(".conversation .open").click()
    expect(page.locator("details[open] .thinking-body")).to_have_text("Thinking of One.")
    assert page.evaluate("String(getSelection())") == "Thinking of One"
    page.locator("#search").fill("")
    chat.hover()
    chat.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name="Unpin").click()
    expect(names).to_have_text(["Newer", "One"])


def test_chats_are_put_into_folders(visit: Visit, replay: Replay) -> None:
    page = visit.page
    for title in ("Bread", "Soup", "Taxes"):
        page.locator("#new-chat").click()
        replay.next(Said("Yes."), Ended())
        visit.ask(title)
        visit.answered()
    names = page.locator("#conversations .conversation .name")

    def move(title: str, folder: str) -> None:
        chat = page.locator(".conversation", has_text=title)
        chat.hover()
        chat.get_by_role("button", name="More").click()
        page.get_by_role("menuitem", name="Put into a folder").click()
        page.keyboard.type(folder)
        page.keyboard.press("Enter")

    move("Bread", "Cooking")
    expect(names).to_have_text(["Bread", "Taxes", "Soup"])
    move("Soup", "Cooking")
    expect(names).to_have_text(["Soup", "Bread", "Taxes"])
    assert complaints(page) == []
    page.reload()
    folder = page.locator(".folder")
    expect(folder.locator(".name")).to_have_text(["Soup", "Bread"])
    # A folded one stays folded, and a search looks into it.
    folder.locator("summary").click()
    page.reload()
    expect(folder).to_have_count(1)
    expect(folder.locator(".name").first).to_be_hidden()
    page.locator("#search").fill("soup")
    expect(folder.locator(".name")).to_have_text(["Soup"])
    expect(folder.locator(".name").first).to_be_visible()
    page.locator("#search").fill("")
    folder.locator("summary").click()
    chat = page.locator(".conversation", has_text="Soup")
    chat.hover()
    chat.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name="Put into a folder").click()
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(folder.locator(".name")).to_have_text(["Bread"])


def test_shortcuts_do_what_their_sheet_says(visit: Visit, replay: Replay) -> None:
    page = visit.page
    replay.next(Said("Yes."), Ended())
    visit.ask("Hello")
    visit.answered()
    page.keyboard.press("Control+b")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.keyboard.press("Control+Shift+F")
    expect(page.locator("#search")).to_be_focused()
    page.locator("#message").focus()
    page.keyboard.press("F2")
    expect(page.locator(".conversation input")).to_be_focused()
    page.keyboard.type("Named")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Named")
    page.locator("#message").focus()
    page.keyboard.type("?")
    expect(page.locator("#message")).to_have_value("?")
    page.keyboard.press("Control+/")
    sheet = page.locator("#shortcuts")
    expect(sheet).to_contain_text("Ctrl Shift F")
    page.keyboard.press("Escape")
    page.locator("#reading").focus()
    page.keyboard.press("?")
    expect(sheet).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+Backspace")
    expect(page.locator(".conversation")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()


def test_the_page_can_be_installed(visit: Visit) -> None:
    base = visit.page.url.split("#")[0].rstrip("/")
    found = visit.page.evaluate(
        """async () => {
            const link = document.querySelector("link[rel=manifest]");
            const manifest = await (await fetch(link.href)).json();
            const start = new URL(manifest.start_url, link.href).href;
            const icons = await Promise.all(manifest.icons.map(async ({ src, sizes }) => {
                const image = new Image();
                image.src = new URL(src, link.href);
                await image.decode();
                return sizes === "any" || sizes === `${image.naturalWidth}x${image.naturalHeight}`;
            }));
            return { start, icons, display: manifest.display };
        }"""
    )
    assert found == {"start": f"{base}/", "icons": [True] * 3, "display": "standalone"}
    devtools = visit.context.new_cdp_session(visit.page)
    assert devtools.send("Page.getAppManifest")["errors"] == []
    assert not list(STATIC.rglob("*worker*"))


def test_a_message_sent_while_the_first_is_being_stored_waits(visit: Visit, replay: Replay) -> None:
    page = visit.page
    replay.next(Said("One."), Gate())
    page.evaluate("""() => {
        for (const text of ["First", "Second"]) {
            const area = document.querySelector("#message");
            area.value = text;
            area.dispatchEvent(new Event("input"));
            document.querySelector("#composer").requestSubmit();
        }
    }""")
    expect(page.locator("#queue li")).to_have_count(1)
    expect(page.locator("#queue li")).to_contain_text("Second")
    expect(page.get_by_text("One.", exact=True)).to_be_visible()
