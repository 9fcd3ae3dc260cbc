"""The chat page loses nothing: random sequences of what people do, several tabs, full disks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.server.browser import Visit, browser, export_all, reload, second_tab, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import Cut, Ended, Gate, Refused, Replay, Said, Thought, replaying
from tests.e2e.server.screenshots import IMAGE

# All that the browser has stored.
STORED = """async () => {
    const store = await import("/static/js/store.js");
    const all = await store.conversations();
    return Promise.all(all.map(async (conversation) =>
        ({ ...conversation, messages: await store.messages(conversation.id) })));
}"""
# A browser that has no room for an image aborts the transaction, with this reason.
FULL = """() => {
    const put = IDBObjectStore.prototype.put;
    globalThis.full = true;
    IDBObjectStore.prototype.put = function (value) {
        const request = put.call(this, value);
        if (globalThis.full && JSON.stringify(value).includes("data:image/")) {
            const error = new DOMException("No room.", "QuotaExceededError");
            Object.defineProperty(this.transaction, "error", { value: error });
            queueMicrotask(() => this.transaction.abort());
        }
        return request;
    };
}"""
COUNT = 20  # steps of a sequence
STEPS = ("ask", "ask", "retry", "retry", "edit", "branch", "new", "open", "delete", "reload",
         "travel")  # fmt: skip


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


class User:
    """Does something at random, and knows what must be there after it."""

    def __init__(self, visit: Visit, replay: Replay, seed: int, folder: Path) -> None:
        self.visit = visit
        self.page = visit.page
        self.replay = replay
        self.draw = random.Random(seed)
        self.folder = folder
        self.count = 0
        self.said: set[str] = set()  # texts that were sent or answered
        self.log: list[str] = []

    def step(self) -> None:
        kind = self.draw.choice(STEPS)
        self.log.append(kind)
        getattr(self, kind)()
        expect(self.page.locator("[aria-busy]")).to_have_count(0)
        assert self.said <= self.texts(), self.log

    def texts(self) -> set[str]:
        """What is stored; every message hangs on one that is stored too."""
        found = set()
        for conversation in self.page.evaluate(STORED):
            ids = {message["id"] for message in conversation["messages"]}
            assert conversation["leaf"] in ids, self.log
            for message in conversation["messages"]:
                assert message["parent"] is None or message["parent"] in ids, self.log
                found.add(message["text"])
        return found

    def word(self, kind: str) -> str:
        self.count += 1
        self.said.add(f"{kind} {self.count}.")
        return f"{kind} {self.count}."

    def answer(self) -> None:
        """What the server does next: mostly answer, sometimes fail, at once or in the middle."""
        chance = self.draw.random()
        if chance < 0.4:
            self.replay.next(Refused(503, "the model is not ready."))
        elif chance < 0.5:
            self.replay.next(Said(self.word("Half")), Cut())
        else:
            self.replay.next(Thought("Hm."), Said(self.word("Answer")), Ended())

    def ask(self) -> None:
        self.answer()
        text = self.word("Question")
        self.visit.ask(text)
        expect(self.page.locator(".user-text").last).to_have_text(text)

    def retry(self) -> None:
        buttons = self.page.get_by_role("button", name="Try again").or_(
            self.page.get_by_role("button", name="Answer again")
        )
        if buttons.count():
            self.answer()
            with self.page.expect_request("**/v1/chat/completions"):
                buttons.nth(self.draw.randrange(buttons.count())).click()

    def edit(self) -> None:
        questions = self.page.locator(".user")
        if questions.count():
            question = questions.nth(self.draw.randrange(questions.count()))
            question.hover()
            question.get_by_role("button", name="Edit").click()
            self.answer()
            text = self.word("Edited")
            self.page.locator(".editor textarea").fill(text)
            self.page.locator(".editor textarea").press("Enter")
            expect(self.page.locator(".user-text").last).to_have_text(text)

    def branch(self) -> None:
        steps = self.page.locator(".versions button:enabled")
        if steps.count():
            step = steps.nth(self.draw.randrange(steps.count()))
            step.locator("xpath=ancestor::article").hover()
            step.click()

    def new(self) -> None:
        self.page.locator("#new-chat").click()
        expect(self.page.locator(".message")).to_have_count(0)

    def open(self) -> None:
        chats = self.page.locator(".conversation .open")
        if chats.count():
            chats.nth(self.draw.randrange(chats.count())).click()
            expect(self.page.locator(".message").first).to_be_visible()

    def delete(self) -> None:
        chats = self.page.locator(".conversation")
        if not chats.count():
            return
        before = self.texts()
        chat = chats.nth(self.draw.randrange(chats.count()))
        chat.hover()
        left = chats.count() - 1
        chat.get_by_role("button", name="Delete").click()
        expect(chats).to_have_count(left)
        if self.draw.random() < 0.5:
            self.page.get_by_role("button", name="Undo").last.click()
            expect(chats).to_have_count(left + 1)
        else:
            self.said -= before - self.texts()
        self.page.evaluate("document.querySelector('#toasts').replaceChildren()")

    def reload(self) -> None:
        reload(self.page)

    def travel(self) -> None:
        """Export, and import into a browser that has nothing."""
        file = self.folder / f"{self.count}.json"
        page = self.page
        export_all(page, file)
        page.locator("#import-file").set_input_files(file)
        expect(page.locator(".toast").last).to_contain_text("0 conversations imported.")
        page.keyboard.press("Escape")


@pytest.mark.parametrize("seed", [1, 2])
def test_no_sequence_of_steps_loses_a_message(
    browser: Browser,  # noqa: F811
    replay: Replay,
    tmp_path: Path,
    seed: int,
) -> None:
    replay.reset()
    with visiting(browser, replay.url) as visit:
        user = User(visit, replay, seed, tmp_path)
        for _ in range(COUNT):
            user.step()
        user.ask()
        user.travel()
        (file,) = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)[-1:]
        texts, count = user.texts(), len(visit.page.evaluate(STORED))
    with visiting(browser, replay.url) as visit:
        visit.page.locator("#import-file").set_input_files(file)
        expect(visit.page.locator(".toast")).to_have_text(
            f"{count} conversation{'s' * (count > 1)} imported."
        )
        assert User(visit, replay, seed, tmp_path).texts() == texts


def test_an_answer_that_failed_is_filled_where_it_stands(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    replay.reset()
    with visiting(browser, replay.url) as visit:
        page = visit.page
        replay.next(Refused(503, "the model is not ready."))
        visit.ask("First")
        expect(page.locator(".note.error")).to_be_visible()
        replay.next(Said("Second answer."), Ended())
        visit.ask("Second")
        visit.answered(2)
        replay.next(Said("First answer."), Ended())
        page.get_by_role("button", name="Try again").click()
        for _ in range(2):
            expect(page.locator(".user-text")).to_have_text(["First", "Second"])
            expect(page.locator(".answer")).to_have_text(["First answer.", "Second answer."])
            page.reload()


def test_a_file_with_damage_gives_what_is_sound(
    browser: Browser,  # noqa: F811
    replay: Replay,
    tmp_path: Path,
) -> None:
    def message(id: str, parent: str | None, role: str = "user", **more: Any) -> dict[str, Any]:
        common = {"conversation": "c", "created": 1, "text": f"Text {id}", "state": "done"}
        return common | {"id": id, "parent": parent, "role": role} | more

    def entry(id: str, messages: list[Any], **more: Any) -> dict[str, Any]:
        return {"id": id, "title": id, "updated": 5, "leaf": "gone", "messages": messages} | more

    damaged = [
        message("1", None),
        message("2", "1", text=None),  # is left out; what follows it moves up
        message("3", "2"),
        message("4", "nowhere", "assistant", usage="many", thinking=7),
        message("5", "6", created=None),  # round in circles
        message("6", "5", images=[{"name": 1}, {"name": "x", "url": "https://evil.example/x"}]),
        None,
        {"role": "user"},
    ]
    content = {
        "format": "magistral-mlx conversations",
        "version": 2,
        "conversations": [entry("c", damaged, title=None, updated="never"), None, entry("e", [])],
    }
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(content))
    with visiting(browser, replay.url) as visit:
        page = visit.page
        page.locator("#import-file").set_input_files(file)
        expect(page.locator(".toast")).to_have_text(
            "1 conversation imported; 3 damaged messages mended, 5 left out."
        )
        page.locator(".conversation .open").click()
        expect(page.locator(".message").first).to_be_visible()
        (stored,) = page.evaluate(STORED)
        assert {message["id"]: message["parent"] for message in stored["messages"]} == {
            "1": None, "3": "1", "4": None, "5": None, "6": "5",
        }  # fmt: skip
        for content in ({}, [], {"format": "magistral-mlx conversations"}, 1, None):
            file.write_text(json.dumps(content))
            page.locator("#import-file").set_input_files(file)
            expect(page.locator(".toast").last).to_contain_text("no exported conversations")


def test_two_tabs_show_the_same_and_lose_nothing(browser: Browser, replay: Replay) -> None:  # noqa: F811
    replay.reset()
    with visiting(browser, replay.url) as visit:
        first = visit.page
        more, last = Gate(), Gate()
        replay.next(Thought("Hm."), Said("One "), more, Said("two "), last, Said("three."), Ended())
        visit.ask("Count")
        expect(first.locator(".answer")).to_have_text("One")

        # The second follows, and is told who writes.
        second = second_tab(visit)
        expect(second.locator(".answer")).to_have_text("One")
        expect(second.locator(".assistant[aria-busy]")).to_have_count(1)
        expect(second.locator("#composer-notes")).to_have_text("Another tab is answering here.")
        expect(second.locator("#stop")).to_be_visible()
        expect(second.locator(".note")).to_be_hidden()
        more.open()
        expect(second.locator(".answer")).to_have_text("One two")
        last.open()
        for page in (first, second):
            expect(page.locator(".answer")).to_have_text("One two three.")
            expect(page.locator("[aria-busy]")).to_have_count(0)
            expect(page.locator("#composer-notes")).to_have_text("")

        # An answer of the first is stopped in the second, and gone on with there.
        replay.next(Said("Begun"), Gate())
        visit.ask("Again")
        expect(second.locator(".answer").last).to_have_text("Begun")
        second.get_by_role("button", name="Stop").click()
        expect(first.locator(".note:visible")).to_contain_text("Stopped.")
        replay.next(Said(" and ended."), Ended())
        second.get_by_role("button", name="Continue").click()
        for page in (first, second):
            expect(page.locator(".answer").last).to_have_text("Begun and ended.")
            expect(page.locator("[aria-busy]")).to_have_count(0)

        # What one edits stays when the other sends.
        replay.next(Said("Other."), Ended())
        second.locator(".user").last.hover()
        second.locator(".user").last.get_by_role("button", name="Edit").click()
        second.locator(".editor textarea").fill("Edited")
        second.keyboard.press("Enter")
        expect(first.locator(".user-text").last).to_have_text("Edited")
        expect(first.locator(".answer").last).to_have_text("Other.")
        replay.next(Said("Third."), Ended())
        visit.ask("Third")
        expect(second.locator(".answer").last).to_have_text("Third.")
        expect(second.locator(".user").nth(1).locator(".versions")).to_have_text("2/2")

        # A tab that is closed over its answer leaves it to be gone on with.
        replay.next(Said("Half"), Gate())
        second.locator("#message").fill("Fourth")
        second.keyboard.press("Enter")
        expect(first.locator(".answer").last).to_have_text("Half")
        second.close()
        expect(first.locator(".note:visible")).to_contain_text("Stopped.")
        replay.next(Said(" done."), Ended())
        first.get_by_role("button", name="Continue").click()
        expect(first.locator(".answer").last).to_have_text("Half done.")
        expect(first.locator("[aria-busy]")).to_have_count(0)

        # A chat that is renamed or deleted elsewhere is so here.
        second = second_tab(visit)
        second.locator(".conversation").hover()
        second.get_by_role("button", name="Rename").click()
        second.keyboard.type("Counting")
        second.keyboard.press("Enter")
        expect(first.locator("#title")).to_have_text("Counting")
        replay.next(Said("Fifth."), Ended())
        visit.ask("Fifth")
        expect(second.locator(".answer").last).to_have_text("Fifth.")
        expect(second.locator(".conversation .name")).to_have_text("Counting")
        second.locator(".conversation").hover()
        second.get_by_role("button", name="Delete").click()
        expect(first.locator("#empty")).to_be_visible()
        expect(first.locator(".conversation")).to_have_count(0)


def test_what_waits_in_two_tabs_is_asked_one_after_the_other(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    replay.reset()
    with visiting(browser, replay.url) as visit:
        gate = Gate()
        replay.next(Said("One "), gate, Said("done."), Ended())
        visit.ask("First")
        expect(visit.page.locator(".answer")).to_have_text("One")
        pages = [visit.page, second_tab(visit)]
        for number, page in enumerate(pages):
            expect(page.locator(".assistant[aria-busy]")).to_have_count(1)
            page.locator("#message").fill(f"Of tab {number}")
            page.locator("#message").press("Enter")
            expect(page.locator("#queue li")).to_have_count(1)
            replay.next(Said("Yes."), Ended())
        gate.open()
        for page in pages:
            expect(page.locator(".answer")).to_have_text(["One done.", "Yes.", "Yes."])
            expect(page.locator("#queue li")).to_have_count(0)
        asked = [len(body["messages"]) for body in replay.requests]
        assert asked == [1, 3, 5]
        assert {body["messages"][-1]["content"] for body in replay.requests[1:]} == {
            "Of tab 0", "Of tab 1",
        }  # fmt: skip


def test_what_is_attached_belongs_to_its_chat_and_survives_a_reload(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    replay.reset()
    with visiting(browser, replay.url) as visit:
        page = visit.page
        tray = page.locator("#tray li")
        replay.next(Said("Yes."), Ended())
        visit.ask("A chat")
        visit.answered()
        page.locator("#files").set_input_files([IMAGE, IMAGE])
        expect(tray).to_have_count(2)
        page.locator("#message").fill("About two")
        page.locator("#new-chat").click()
        expect(tray).to_have_count(0)
        page.locator("#files").set_input_files(IMAGE)
        expect(tray).to_have_count(1)
        for _ in range(2):
            page.locator(".conversation .open").click()
            expect(tray).to_have_count(2)
            expect(page.locator("#message")).to_have_value("About two")
            page.reload()
            expect(tray).to_have_count(2)
            page.locator("#new-chat").click()
            expect(tray).to_have_count(1)
        replay.next(Said("One."), Ended())
        visit.ask("About one")
        visit.answered()
        assert len(replay.requests[-1]["messages"][0]["content"]) == 2
        expect(tray).to_have_count(0)
        page.reload()
        expect(page.locator(".user-images img")).to_have_count(1)
        expect(tray).to_have_count(0)
        page.locator(".conversation .open", has_text="A chat").click()
        expect(tray).to_have_count(2)


def test_a_question_stays_when_the_browser_has_no_room_for_its_image(
    browser: Browser,  # noqa: F811
    replay: Replay,
    tmp_path: Path,
) -> None:
    replay.reset()
    with visiting(browser, replay.url) as visit:
        page = visit.page
        page.locator("#files").set_input_files(IMAGE)
        expect(page.locator("#tray img")).to_have_count(1)
        page.evaluate(FULL)
        replay.next(Said("A circle."), Ended())
        visit.ask("What is it?")
        visit.answered()
        expect(page.locator("#banner")).to_contain_text("no room left")
        expect(page.locator(".user-images img")).to_have_count(1)
        page.locator("#banner").get_by_role("button", name="Close").click()
        expect(page.locator("#banner")).to_be_hidden()

        # It is tried again with the next question.
        replay.next(Said("Still."), Ended())
        visit.ask("And now?")
        expect(page.locator("#banner")).to_be_visible()
        visit.answered(2)
        (stored,) = page.evaluate(STORED)
        assert stored["messages"][0]["unstored"] == ["circle.png"]
        page.evaluate("globalThis.full = false")
        replay.next(Said("Room."), Ended())
        visit.ask("And now?")
        visit.answered(3)
        expect(page.locator("#banner")).to_be_hidden()
        page.reload()
        expect(page.locator(".user-text")).to_have_count(3)
        expect(page.locator(".user-images img")).to_have_count(1)
