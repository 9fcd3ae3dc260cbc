"""What the chat page keeps in the browser, and what it writes into files and takes from them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.server.browser import (
    Visit,
    browser,  # noqa: F401  (a fixture)
    export_all,
    reload,
    second_tab,
    visiting,
    wait_until_ready,
)
from tests.e2e.server.replay import Ended, Gate, Replay, Said, replaying
from tests.e2e.server.screenshots import IMAGE

IMAGE_URL = f"data:image/png;base64,{base64.b64encode(IMAGE.read_bytes()).decode()}"

# The database as the first version of the page left it.
FIRST_DATABASE = """async ({ conversations, messages, pictures }) => {
    const done = (request) => new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
    await done(indexedDB.deleteDatabase("magistral"));
    const request = indexedDB.open("magistral", 1);
    request.onupgradeneeded = () => {
        request.result.createObjectStore("conversations", { keyPath: "id" });
        for (const [name, keyPath] of [["messages", "id"], ["pictures", "message"]]) {
            request.result.createObjectStore(name, { keyPath })
                .createIndex("conversation", "conversation");
        }
    };
    const database = await done(request);
    for (const [name, values] of Object.entries({ conversations, messages, pictures })) {
        for (const value of values) {
            await done(database.transaction(name, "readwrite").objectStore(name).put(value));
        }
    }
    database.close();
}"""

# How many files are kept with the draft of a conversation.
KEPT = """async (id) => {
    const drafts = await import("/static/js/drafts.js");
    return (await drafts.attachments(id)).length;
}"""
# The last words of two answers, which another tab takes over as soon as this one reads of one.
FASTER = """(() => {
    const names = ["one", "two"].map((id) => `magistral.rescue.${id}`);
    const kept = JSON.stringify({ id: "gone", text: "", thinking: "" });
    for (const name of names) localStorage.setItem(name, kept);
    const get = Storage.prototype.getItem;
    Storage.prototype.getItem = function (name) {
        const value = get.call(this, name);
        if (names.includes(name)) for (const name of names) this.removeItem(name);
        return value;
    };
})()"""
NOTES = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"37 + 85 = 122"}


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, replay: Replay) -> Iterator[Visit]:  # noqa: F811
    replay.reset()
    with visiting(browser, replay.url) as visit:
        yield visit


def conversation(id: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "title": id, "created": 1, "updated": 1, "leaf": f"{id}-a"} | fields


def turn(id: str, **question: Any) -> list[dict[str, Any]]:
    """A question and its answer."""
    common = {"conversation": id, "created": 1, "text": f"Text of {id}"}
    return [
        common | {"id": f"{id}-q", "role": "user", "parent": None} | question,
        common | {"id": f"{id}-a", "role": "assistant", "parent": f"{id}-q", "state": "done"},
    ]


def test_what_the_first_version_stored_and_exported_is_taken_over(
    browser: Browser,  # noqa: F811
    replay: Replay,
    tmp_path: Path,
) -> None:
    pictures = [{"name": "circle.png", "url": IMAGE_URL}]
    with visiting(browser, replay.url) as visit:
        page = visit.page
        ids = ("one", "two", "bare")
        stored = {
            "conversations": [conversation(id) for id in ids],
            "messages": [message for id in ids for message in turn(id)],
            "pictures": [
                {"message": "one-q", "conversation": "one", "pictures": pictures},
                {"message": "two-q", "conversation": "two", "pictures": pictures * 2},
            ],
        }
        page.evaluate(FIRST_DATABASE, stored)
        reload(page)
        exported = {
            "format": "magistral-mlx conversations",
            "version": 1,
            "conversations": [
                conversation("three") | {"messages": turn("three", pictures=pictures * 3)}
            ],
        }
        file = tmp_path / "first.json"
        file.write_text(json.dumps(exported))
        page.locator("#import-file").set_input_files(file)
        for id, count in {"one": 1, "two": 2, "three": 3, "bare": 0}.items():
            page.locator(".conversation .open", has_text=id).click()
            expect(page.locator(".user-text")).to_have_text(f"Text of {id}")
            expect(page.locator(".user-images img")).to_have_count(count)
        written = tmp_path / "second.json"
        export_all(page, written)
        content = json.loads(written.read_text())
        assert "pictures" not in written.read_text()
        assert content["version"] == 3
        attached = {
            message["conversation"]: len(message["attachments"])
            for conversation in content["conversations"]
            for message in conversation["messages"]
            if message["role"] == "user"
        }
        assert attached == {"one": 1, "two": 2, "three": 3, "bare": 0}


def test_what_waits_for_its_file_is_sent_in_no_other_chat(visit: Visit, replay: Replay) -> None:
    page = visit.page
    message, tray = page.locator("#message"), page.locator("#tray li")

    def go(title: str) -> None:
        page.locator(".conversation .open", has_text=title).click()
        expect(page.locator(".user-text")).to_have_text(title)

    for title in ("First", "Second"):
        page.locator("#new-chat").click()
        replay.next(Said("Yes."), Ended())
        visit.ask(title)
        visit.answered()
    second = page.url.split("#/")[1]
    go("First")
    message.fill("Half typed")
    go("Second")
    replay.documents = Gate()
    page.locator("#files").set_input_files(NOTES)
    visit.ask("What does it say?")
    go("First")
    replay.documents.open()
    page.wait_for_function(KEPT, arg=second)
    expect(message).to_have_value("Half typed")
    go("Second")
    expect(message).to_have_value("What does it say?")
    expect(tray).to_have_count(1)
    replay.next(Said("A sum."), Ended())
    message.press("Enter")
    visit.answered(2)
    assert "37 + 85" in str(replay.requests[-1]["messages"][-1])
    assert len(replay.requests) == 3

    # Coming back before it is read finds it, and nothing else.
    replay.documents = Gate()
    page.locator("#files").set_input_files(NOTES)
    message.fill("And this?")
    page.locator(".conversation .open", has_text="First").click()
    expect(message).to_have_value("Half typed")
    page.locator(".conversation .open", has_text="Second").click()
    expect(message).to_have_value("And this?")
    replay.next(Said("The same."), Ended())
    message.press("Enter")
    replay.documents.open()
    visit.answered(3)
    assert "37 + 85" in str(replay.requests[-1]["messages"][-1])


def test_a_message_stays_a_draft_when_its_file_cannot_be_attached(
    visit: Visit, replay: Replay
) -> None:
    page = visit.page
    replay.documents = Gate()
    empty = {"name": "empty.png", "mimeType": "image/png", "buffer": b""}
    page.locator("#files").set_input_files([NOTES, empty])
    visit.ask("What do they show?")
    replay.documents.open()
    expect(page.locator(".toast")).to_contain_text("empty.png")
    expect(page.locator("#message")).to_have_value("What do they show?")
    expect(page.locator("#tray li")).to_have_count(1)
    replay.next(Said("A sum."), Ended())
    page.locator("#message").press("Enter")
    visit.answered()
    assert "37 + 85" in str(replay.requests[-1]["messages"][-1])


def test_a_page_that_starts_beside_another_shows_its_chats(visit: Visit, replay: Replay) -> None:
    page = visit.page
    replay.next(Said("Yes."), Ended())
    visit.ask("A chat")
    visit.answered()
    page.add_init_script(FASTER)
    reload(page)
    expect(page.locator(".conversation .name")).to_have_text("A chat")
    expect(page.locator("#banner")).to_be_hidden()
    # Nor does an entry that cannot be read keep them away.
    page.add_init_script("localStorage.setItem('magistral.rescue.damaged', '{')")
    reload(page)
    expect(page.locator(".conversation .name")).to_have_text("A chat")


def test_options_that_another_tab_changes_are_shown_and_sent(visit: Visit, replay: Replay) -> None:
    page, other = visit.page, second_tab(visit)
    other.locator("#options-open").click()
    other.get_by_text("More options").click()
    other.locator("input[name=thinking][value=budget]").check(force=True)
    for label, value in {
        "Tokens at most": "500", "Temperature": "1.5", "Stop texts": "END",
        "System prompt": "Be brief.", "Name to save it under": "Brief",
    }.items():  # fmt: skip
        other.get_by_label(label).fill(value)
    other.get_by_role("button", name="Save", exact=True).click()
    other.get_by_label("Leave earlier thinking out").check()
    other.locator("input[name=theme][value=dark]").check(force=True)
    other.get_by_label("Language").select_option("de")

    expect(page.locator("html")).to_have_attribute("lang", "de")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("#options-open").click()
    page.locator(".more-options summary").click()
    expect(page.locator("input[name=thinking][value=budget]")).to_be_checked()
    expect(page.locator(".budget input")).to_have_value("500")
    expect(page.locator("#option-temperature")).to_have_value("1.5")
    expect(page.locator("#option-stop")).to_have_value("END")
    expect(page.locator("#option-system")).to_have_value("Be brief.")
    expect(page.locator(".presets option").last).to_have_text("Brief")
    expect(page.locator(".more-options input[type=checkbox]")).to_be_checked()
    page.keyboard.press("Escape")
    replay.next(Said("Yes."), Ended())
    visit.ask("Hello")
    visit.answered()
    body = replay.requests[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["thinking"], body["temperature"], body["stop"]) == (500, 1.5, ["END"])
    assert body["keep_thinking"] is False


def test_what_a_file_adds_to_the_chat_on_the_screen_is_shown_and_gone_on_with(
    visit: Visit, replay: Replay, tmp_path: Path
) -> None:
    page = visit.page
    for count, text in enumerate(("First", "Second"), 1):
        replay.next(Said(f"Answer {count}."), Ended())
        visit.ask(text)
        visit.answered(count)
    file = tmp_path / "all.json"
    export_all(page, file)
    content = json.loads(file.read_text())
    page.keyboard.press("Escape")
    page.locator(".user").last.hover()
    page.locator(".user").last.get_by_role("button", name="Remove from here on").click()
    expect(page.locator(".user-text")).to_have_text(["First"])
    content["conversations"][0]["updated"] += 1
    file.write_text(json.dumps(content))
    page.locator("#import-file").set_input_files(file)
    expect(page.locator(".user-text")).to_have_text(["First", "Second"])
    replay.next(Said("Answer 3."), Ended())
    visit.ask("Third")
    visit.answered(3)
    asked = [said["content"] for said in replay.requests[-1]["messages"] if said["role"] == "user"]
    assert asked == ["First", "Second", "Third"]


def test_a_duplicated_tab_has_the_draft_and_nothing_of_what_waits(
    visit: Visit, replay: Replay
) -> None:
    page = visit.page
    replay.next(Said("One "), Gate())
    visit.ask("First")
    expect(page.locator(".answer")).to_have_text("One")
    visit.ask("Second")
    expect(page.locator("#queue li")).to_have_count(1)
    page.locator("#files").set_input_files(IMAGE)
    page.locator("#message").fill("About it")
    expect(page.locator("#tray img")).to_have_count(1)
    with visit.context.expect_page() as opened:
        page.evaluate("() => { window.open(location.href); }")
    copy = opened.value
    wait_until_ready(copy)
    expect(copy.locator("#tray img")).to_have_count(1)
    expect(copy.locator("#message")).to_have_value("About it")
    expect(copy.locator("#queue li")).to_have_count(0)
    # A tab that is loaded again is the one that it was.
    reload(page)
    expect(page.locator("#queue li")).to_have_count(1)
    expect(page.locator("#tray img")).to_have_count(1)
