"""The chat page in a real browser, with the demo model behind it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from magistral_mlx.server.settings import Settings
from tests.e2e.server.browser import Visit, browser, export_all, visiting  # noqa: F401  (a fixture)
from tests.serving import Server, live_server, server  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[3]
CIRCLE = ROOT / "examples" / "circle.png"
SUM = "What is 37 + 85?"
SHAPE = "What is in the picture?"


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:  # noqa: F811
    """The page as it is the first time, but greedy, so that answers are always the same."""
    with visiting(browser, server.url) as visit:
        greedy(visit.page)
        yield visit


def greedy(page: Page) -> None:
    page.locator("#options-open").click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")


def transfer(page: Page, kind: str) -> None:
    """Drop or paste the image of a circle."""
    page.evaluate(
        """([kind, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "circle.png", { type: "image/png" }));
            const target = document.querySelector("#message");
            const options = { bubbles: true, cancelable: true };
            const pasted = { ...options, clipboardData: files };
            if (kind === "paste") target.dispatchEvent(new ClipboardEvent("paste", pasted));
            else for (const type of ["dragenter", "dragover", "drop"]) {
                target.dispatchEvent(new DragEvent(type, { ...options, dataTransfer: files }));
            }
        }""",
        [kind, base64.b64encode(CIRCLE.read_bytes()).decode()],
    )


def conversations(page: Page) -> Locator:
    return page.locator("#conversations .conversation .name")


def test_a_question_gets_its_thinking_in_a_fold_and_its_answer(visit: Visit) -> None:
    page = visit.page
    visit.ask(SUM)
    answer = visit.answered()
    expect(answer.locator(".answer")).to_have_text("122")
    fold = answer.locator("details")
    expect(fold).not_to_have_attribute("open", "")
    expect(fold.locator("summary")).to_contain_text("25 tokens")
    fold.locator("summary").click()
    expect(fold.locator(".thinking-body")).to_contain_text("7+5+0=2,1")
    expect(page.locator("#title")).to_have_text(SUM)


def test_the_strip_tells_memory_speed_and_context(visit: Visit) -> None:
    visit.ask(SUM)
    visit.answered()
    strip = visit.page.locator("#strip")
    expect(strip).to_contain_text(re.compile(r"Memory.*GB of .*GB", re.S))
    expect(strip).to_contain_text(re.compile(r"Speed.*tokens/s", re.S))
    expect(strip).to_contain_text(re.compile(r"Context.*69 of 8,192", re.S))


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_that_is_dropped_or_pasted_is_seen(visit: Visit, kind: str) -> None:
    page = visit.page
    transfer(page, kind)
    expect(page.locator("#tray img")).to_have_attribute("alt", "circle.png")
    visit.ask(SHAPE)
    expect(visit.answered().locator(".answer")).to_have_text("A red circle.")
    expect(page.locator("#tray img")).to_have_count(0)
    expect(page.locator(".user-images img")).to_have_count(1)


def test_an_image_can_be_chosen_looked_at_and_taken_away(visit: Visit) -> None:
    page = visit.page
    page.locator("#files").set_input_files([CIRCLE, CIRCLE])
    expect(page.locator("#tray img")).to_have_count(2)
    page.get_by_role("button", name="Enlarge circle.png").first.click()
    expect(page.locator("#image img")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove circle.png").first.click()
    expect(page.locator("#tray img")).to_have_count(1)
    no_image = {"name": "no.png", "mimeType": "image/png", "buffer": b"text"}
    page.locator("#files").set_input_files([no_image])
    expect(page.locator("#toasts")).to_contain_text("no.png is not an image")
    expect(page.locator("#tray img")).to_have_count(1)


def test_a_question_can_be_edited_and_the_first_version_stays(visit: Visit) -> None:
    page = visit.page
    visit.ask(SUM)
    visit.answered()
    page.locator(".user").hover()
    page.get_by_role("button", name="Edit").click()
    field = page.locator(".editor textarea")
    expect(field).to_be_focused()
    field.fill("What is 12 + 30?")
    field.press("Enter")
    expect(visit.answered().locator(".answer")).to_have_text("42")
    expect(page.locator(".user .versions")).to_have_text("2/2")
    page.locator(".user").get_by_role("button", name="Earlier version").click()
    expect(page.locator(".user-text")).to_have_text(SUM)
    expect(visit.answered().locator(".answer")).to_have_text("122")


def test_an_answer_can_be_had_again_and_the_first_one_stays(visit: Visit) -> None:
    page = visit.page
    visit.ask(SUM)
    visit.answered().get_by_role("button", name="Answer again").click()
    expect(page.locator(".assistant .versions")).to_have_text("2/2")
    expect(visit.answered().locator(".answer")).to_have_text("122")


def test_an_answer_that_was_cut_short_goes_on_where_it_ended(visit: Visit) -> None:
    page = visit.page
    limit = page.get_by_label("Longest answer")
    for value in ("10", ""):
        page.locator("#options-open").click()
        limit.fill(value)
        page.keyboard.press("Escape")
        if value:
            visit.ask(SUM)
            expect(visit.answered().locator(".note")).to_contain_text("token limit")
        else:
            page.get_by_role("button", name="Continue").click()
            expect(page.locator(".answer")).to_have_text("122")
    answer = visit.answered()
    expect(answer.locator(".note")).to_be_hidden()
    expect(answer.locator(".tools")).to_contain_text("29 tokens")
    answer.locator("summary").click()
    expect(answer.locator(".thinking-body")).to_have_text("7+5+0=2,1; 3+8+1=2,1; 1")


def test_conversations_outlast_a_reload(visit: Visit) -> None:
    page = visit.page
    transfer(page, "drop")
    visit.ask(SHAPE)
    visit.answered()
    page.reload()
    expect(page.locator(".answer")).to_have_text("A red circle.")
    expect(page.locator(".user-images img")).to_have_count(1)
    expect(conversations(page)).to_have_text([SHAPE])


def test_conversations_are_found_renamed_deleted_and_brought_back(visit: Visit) -> None:
    page = visit.page
    visit.ask(SUM)
    visit.answered()
    page.keyboard.press("Control+k")
    visit.ask("What is 12 + 30?")
    visit.answered()
    expect(conversations(page)).to_have_text(["What is 12 + 30?", SUM])

    page.locator("#search").fill("122")  # stands in the answer alone
    expect(conversations(page)).to_have_text([SUM])
    page.locator(".conversation").hover()
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("A sum")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="A sum").first).to_be_focused()
    page.locator("#search").fill("")
    expect(conversations(page)).to_have_text(["What is 12 + 30?", "A sum"])

    page.locator(".conversation", has_text="A sum").hover()
    page.locator(".conversation", has_text="A sum").get_by_role("button", name="Delete").click()
    expect(conversations(page)).to_have_text(["What is 12 + 30?"])
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="A sum").first.click()
    expect(page.locator(".answer")).to_have_text("122")


def test_conversations_travel_as_json(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.ask(SUM)
    visit.answered()
    file = tmp_path / "chats.json"
    export_all(page, file)
    (conversation,) = json.loads(file.read_text())["conversations"]
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"]

    page.keyboard.press("Escape")
    page.locator(".conversation").hover()
    page.get_by_role("button", name="Delete").click()
    expect(conversations(page)).to_have_count(0)
    page.locator("#import-file").set_input_files(file)
    expect(conversations(page)).to_have_text([SUM])
    page.locator(".conversation .open").click()
    expect(visit.answered().locator(".tools")).to_contain_text("tokens/s")
    damaged = tmp_path / "damaged.json"
    damaged.write_text(file.read_text().replace('"role"', '"roll"'))
    page.locator("#import-file").set_input_files(damaged)
    expect(page.locator("#toasts")).to_contain_text("damaged.json holds no exported conversations")


def test_everything_can_be_done_with_keys_alone(visit: Visit) -> None:
    page = visit.page
    page.reload()
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("What is 37")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("+ 85?")
    expect(page.locator("#message")).to_have_value("What is 37\n+ 85?")
    page.locator("#message").fill("")
    page.keyboard.type(SUM)
    page.keyboard.press("Enter")
    answer = visit.answered()
    expect(page.locator("#message")).to_be_focused()

    def tab_to(target: Locator) -> None:
        for _ in range(20):
            page.keyboard.press("Shift+Tab")
            if target.evaluate("(element) => element === document.activeElement"):
                return
        raise AssertionError(f"Shift+Tab does not reach {target}")

    tab_to(answer.get_by_role("button", name="Answer again"))
    tab_to(answer.locator("summary"))
    page.keyboard.press("Enter")
    expect(answer.locator("details")).to_have_attribute("open", "")
    tab_to(page.get_by_role("button", name="Edit").first)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    tab_to(page.locator("#options-open"))
    page.keyboard.press("Enter")
    expect(page.locator("#options")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#options-open")).to_be_focused()
    tab_to(page.locator("#new-chat"))
    page.keyboard.press("Enter")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#message")).to_be_focused()


def test_a_server_with_a_key_is_asked_once(browser: Browser) -> None:  # noqa: F811
    with (
        live_server(Settings(models=("demo",), api_key="open sesame")) as guarded,
        visiting(browser, guarded.url) as visit,
    ):
        page = visit.page
        expect(page.locator("#key")).to_be_visible()
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key")).to_contain_text("did not accept that key")
        page.get_by_label("API key").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#model-name")).to_have_text("demo")
        visit.ask(SUM)
        expect(visit.answered().locator(".answer")).to_be_visible()
        page.reload()
        expect(page.locator("#model-name")).to_have_text("demo")
        expect(page.locator("#key")).to_be_hidden()
        assert "open sesame" not in json.dumps(page.evaluate("({ ...localStorage })"))
