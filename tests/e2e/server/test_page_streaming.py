"""The chat page while an answer is being written, slowly enough to watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.server.browser import Visit, browser, reload, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import (
    Broken,
    Cut,
    Ended,
    Gate,
    Reading,
    Refused,
    Replay,
    Said,
    Thought,
    replaying,
)
from tests.serving import wait_until


class Play(NamedTuple):
    visit: Visit
    replay: Replay
    page: Page


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


@pytest.fixture
def play(browser: Browser, replay: Replay) -> Iterator[Play]:  # noqa: F811
    replay.reset()
    with visiting(browser, replay.url) as visit:
        yield Play(visit, replay, visit.page)


def test_the_prompt_then_the_thinking_then_the_answer_are_watched(play: Play) -> None:
    visit, replay, page = play
    reading, thinking, answering = Gate(), Gate(), Gate()
    replay.next(
        Reading(100, 400), reading, Thought("First, **add** the ones."), thinking,
        Said("It is "), answering, Said("122."), Ended(),
    )  # fmt: skip
    visit.ask("A sum")
    expect(page.locator(".waiting")).to_contain_text("Reading 400 tokens: 25 %, about 12 s left")
    reading.open()
    fold = page.locator("details.thinking")
    expect(fold).to_have_attribute("open", "")
    expect(fold.locator("summary")).to_contain_text("Thinking")
    expect(fold.locator("summary")).to_contain_text("6 tokens")
    expect(fold.locator("strong")).to_have_text("add")
    expect(page.locator(".waiting")).to_be_hidden()
    thinking.open()
    expect(fold).not_to_have_attribute("open", "")
    expect(fold.locator("summary")).to_contain_text("Thought")
    expect(page.locator(".answer")).to_have_text("It is")
    answering.open()
    expect(visit.answered().locator(".answer")).to_have_text("It is 122.")


def test_a_fold_that_was_closed_stays_closed_for_the_next_trace(play: Play) -> None:
    visit, replay, page = play
    gate = Gate()
    replay.next(Thought("Long thoughts"), gate, Said("Yes."), Ended())
    visit.ask("One")
    page.locator("details.thinking[open] summary").click()
    gate.open()
    visit.answered()
    second = Gate()
    replay.next(Thought("More thoughts"), second, Said("No."), Ended())
    visit.ask("Two")
    fold = page.locator("details.thinking").nth(1)
    expect(fold.locator("summary")).to_contain_text("Thinking")
    expect(fold).not_to_have_attribute("open", "")
    second.open()
    visit.answered(2)


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_an_answer_is_stopped_and_the_server_hears_of_it(play: Play, how: str) -> None:
    visit, replay, page = play
    replay.next(Said("One, two, three"), Gate())
    visit.ask("Count")
    expect(page.locator(".answer")).to_have_text("One, two, three")
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(visit.answered().locator(".answer")).to_have_text("One, two, three")
    expect(page.locator(".note")).to_contain_text("Stopped.")
    wait_until(lambda: replay.left == 1)


def test_what_has_come_survives_a_reload_in_the_middle(play: Play) -> None:
    visit, replay, page = play
    replay.next(Thought("Hm."), Said("The first half and"), Gate())
    visit.ask("A long story")
    expect(page.locator(".answer")).to_have_text("The first half and")
    page.reload()
    expect(page.locator(".answer")).to_have_text("The first half and")
    expect(page.locator(".note")).to_contain_text("Stopped.")
    replay.next(Said(" the second."), Ended())
    page.get_by_role("button", name="Continue").click()
    expect(visit.answered().locator(".answer")).to_have_text("The first half and the second.")
    assert replay.requests[-1]["messages"][-1] == {
        "role": "assistant",
        "content": "The first half and",
        "reasoning_content": "Hm.",
        "prefix": True,
    }


def test_an_answer_goes_on_while_another_conversation_is_on_the_screen(play: Play) -> None:
    visit, replay, page = play
    gate = Gate()
    replay.next(Said("Working on "), gate, Said("it: done."), Ended())
    visit.ask("Slow")
    expect(page.locator(".answer")).to_have_text("Working on")
    page.keyboard.press("Control+k")
    expect(page.locator("#empty")).to_be_visible()
    replay.next(Said("Quick."), Ended())
    visit.ask("Fast")
    expect(visit.answered().locator(".answer")).to_have_text("Quick.")
    gate.open()
    page.locator(".conversation", has_text="Slow").locator(".open").click()
    expect(visit.answered().locator(".answer")).to_have_text("Working on it: done.")


def test_finished_blocks_are_not_rendered_again_and_code_only_grows(play: Play) -> None:
    visit, replay, page = play
    first, second = Gate(), Gate()
    replay.next(
        Said("One.\n\nTwo.\n\n```python\nx = 1\n"), first, Said("y = 2\n"), second,
        Said("```\n\nThree."), Ended(),
    )  # fmt: skip
    visit.ask("Write")
    expect(page.locator(".answer code")).to_have_text("x = 1\n")
    kept = page.locator(".answer > p").first.element_handle()
    code = page.locator(".answer code").element_handle()
    first.open()
    expect(page.locator(".answer code")).to_have_text("x = 1\ny = 2\n")
    assert code.evaluate("(node) => node.isConnected && node.childNodes.length === 1")
    second.open()
    expect(visit.answered().locator(".answer")).to_contain_text("Three.")
    assert kept.evaluate("(node) => node.isConnected")
    expect(page.locator(".answer .hljs-number")).to_have_text(["1", "2"])


def test_a_stream_ends_up_as_the_same_text_rendered_at_once(play: Play) -> None:
    visit, replay, page = play
    text = (
        "# Title\nText with `code`, [a link][1] and $x_1$.\n\n"
        "1. one\n\n   ```\n   in a list\n   ```\n"
        "2. two\n\n> quote\n> more\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n$$\n\\frac12\n$$\n\n"
        "~~~~js\nlet a = `b`;\n~~~\n~~~~\n- [x] done\n- [ ] open\n\nSetext\n---\n\n\\[ y^2 \\]\n"
        "$5 and $6\n\n[1]: https://example.com/\n"
    )
    replay.next(Said(text), Ended())
    visit.ask("Everything")
    dressed = (page.locator(".answer .katex"), page.locator(".answer .hljs-keyword"))
    visit.answered()
    expect(dressed[0]).to_have_count(3)  # formulas and code are dressed when their libraries come
    expect(dressed[1]).to_have_count(1)
    streamed = visit.answered().locator(".answer").inner_html()
    assert page.locator(".answer a").get_attribute("href") == "https://example.com/"
    page.reload()
    expect(dressed[0]).to_have_count(3)
    expect(dressed[1]).to_have_count(1)
    assert visit.answered().locator(".answer").inner_html() == streamed


def test_a_link_that_the_last_words_define_is_one(play: Play) -> None:
    visit, replay, page = play
    gate = Gate()
    replay.next(
        Said("See [here][1].\n\nMore.\n\n"), gate, Said("[1]: https://example.com/"), Ended()
    )
    visit.ask("Where?")
    expect(page.locator(".answer")).to_contain_text("More.")
    gate.open()
    visit.answered()
    expect(page.locator(".answer a")).to_have_attribute("href", "https://example.com/")


def test_screen_readers_hear_whole_sentences(play: Play) -> None:
    visit, replay, page = play
    gate = Gate()
    replay.next(Said("The **sum** is 122. And the "), gate, Said("rest follows"), Ended())
    visit.ask("A sum")
    spoken = page.locator("#spoken[aria-live=polite] p")
    expect(spoken).to_have_text(["The sum is 122."])
    gate.open()
    visit.answered()
    expect(spoken).to_have_text(
        ["The sum is 122.", "And the rest follows", "The answer is complete."]
    )


def test_code_and_answers_can_be_copied(play: Play) -> None:
    visit, replay, page = play
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    replay.next(Said("Run **this**:\n\n```sh\nls -l\n```"), Ended())
    visit.ask("How?")
    answer = visit.answered()
    for button, text in {
        "Copy code": "ls -l\n",
        "Copy": "Run **this**:\n\n```sh\nls -l\n```",
    }.items():
        answer.get_by_role("button", name=button, exact=True).click()
        expect(page.locator(".toast").last).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == text


def test_a_browser_that_stores_nothing_can_still_talk(play: Play) -> None:
    visit, replay, page = play
    page.add_init_script("Object.defineProperty(globalThis, 'indexedDB', { value: undefined })")
    reload(page)
    replay.next(Said("Hello."), Ended())
    visit.ask("Hello")
    expect(visit.answered().locator(".answer")).to_have_text("Hello.")
    expect(page.locator("#banner")).to_contain_text("could not store")


FAILURES = {
    "busy": (
        (Refused(429, "the queue is full.", {"Retry-After": "7"}),),
        "The server is busy. Try again in 7 seconds.",
    ),
    "refused": ((Refused(400, "the context is too long."),), "the context is too long."),
    "broken": ((Said("So far "), Broken("out of memory.")), "out of memory."),
    "cut": ((Said("So far "), Cut()), "The connection broke before the answer was complete."),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_told_in_words_and_can_be_tried_again(play: Play, name: str) -> None:
    visit, replay, page = play
    script, words = FAILURES[name]
    replay.next(*script)
    visit.ask("Please")
    expect(page.locator(".note.error")).to_contain_text(words)
    replay.next(Said("Here."), Ended())
    page.get_by_role("button", name="Try again").click()
    expect(visit.answered().locator(".answer")).to_have_text("Here.")


def test_a_server_that_is_away_is_told_and_can_be_tried_again(play: Play) -> None:
    visit, replay, page = play
    visit.context.set_offline(True)
    visit.ask("Anybody there?")
    expect(page.locator(".note.error")).to_contain_text("Is magistral-mlx serve running?")
    visit.context.set_offline(False)
    replay.next(Said("Yes."), Ended())
    page.get_by_role("button", name="Try again").click()
    expect(visit.answered().locator(".answer")).to_have_text("Yes.")
    expect(page.locator(".versions")).to_have_count(0)


def test_the_options_reach_the_server_with_the_earlier_turns(play: Play) -> None:
    visit, replay, page = play
    page.locator("#options-open").click()
    page.get_by_label("Limited").check()
    for label, value in {
        "Tokens at most": "500", "Temperature": "0.2", "Longest answer": "900", "Seed": "7",
        "System prompt": "Be brief.",
    }.items():  # fmt: skip
        page.get_by_label(label).fill(value)
    page.keyboard.press("Escape")
    for text in ("One", "Two"):
        replay.next(Thought("Hm."), Said(f"{text}."), Ended())
        visit.ask(text)
        visit.answered(("One", "Two").index(text) + 1)
    body = replay.requests[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "One.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Two"},
    ]
    options = {"thinking": 500, "temperature": 0.2, "max_tokens": 900, "seed": 7}
    assert {name: body[name] for name in options} == options
