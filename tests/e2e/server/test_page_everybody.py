"""The chat page for every script, input method, browser and way of reading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from magistral_mlx.server.page import STATIC
from tests.e2e.server.browser import Visit, browser, reload, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import Ended, Gate, Replay, Said, Thought, replaying
from tests.serving import wait_until

ARABIC = "جذر العدد $\\sqrt{2} \\approx 1.414$ غير نسبي."
PERSIAN = "ریشهٔ دو گنگ است."
HEBREW = "שורש שתיים"
ANSWER = f"""{ARABIC}

English stands here, $x$ too.

- {PERSIAN}
- one

| {HEBREW} | b |
|---|---|
| ארבע | 4 |

$$x^2$$

```
{HEBREW} = 1
```

> {PERSIAN} `code`

1. 12 {ARABIC}
"""
# A key as a browser reports it while an input method has it, once the composition has ended.
INPUT_METHOD = """(element, key) => element.dispatchEvent(
    new KeyboardEvent("keydown", { key, keyCode: 229, bubbles: true, cancelable: true }))"""


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, replay: Replay) -> Iterator[Visit]:  # noqa: F811
    replay.reset()
    with visiting(browser, replay.url) as visit:
        yield visit


def directions(page: Page, selector: str) -> list[str]:
    return page.locator(selector).evaluate_all(
        "(all) => all.map((element) => getComputedStyle(element).direction)"
    )


def test_each_block_has_the_direction_of_its_words(visit: Visit, replay: Replay) -> None:
    page = visit.page
    for text in (ARABIC, PERSIAN, HEBREW, "English", "42"):
        page.locator("#message").fill(text)
        expected = "ltr" if text in ("English", "42") else "rtl"
        assert directions(page, "#message") == [expected]
    replay.next(Thought(PERSIAN), Said(ANSWER), Ended())
    visit.ask(ARABIC)
    visit.answered()
    expect(page.locator(".answer .katex").first).to_be_visible()
    page.locator("details.thinking summary").click()
    for _ in range(2):
        for selector, expected in {
            ".user-text": ["rtl"],
            "#title": ["rtl"],
            ".conversation .name": ["rtl"],
            ".thinking-body > p": ["rtl"],
            ".answer > p": ["rtl", "ltr"],
            ".answer ul > li": ["rtl", "ltr"],
            ".answer table": ["rtl"],
            ".answer th, .answer td": ["rtl", "ltr", "rtl", "ltr"],
            ".answer blockquote": ["rtl"],
            ".answer ol > li": ["rtl"],
            ".answer code, .answer pre": ["ltr"] * 3,
            ".answer .math": ["ltr"] * 4,
        }.items():
            assert directions(page, selector) == expected, selector
        # The formula is a run of its own: its digits stand right of its sign, and so does what it
        # is said to be equal to.
        edges = page.locator(".answer > p .math").first.evaluate(
            """(math) => [".sqrt", ".mrel", ".mord"]
                .map((part) => [...math.querySelectorAll(`.katex-html ${part}`)].at(-1))
                .map((element) => element.getBoundingClientRect().left)"""
        )
        assert edges == sorted(edges)
        page.reload()
        visit.answered()
        expect(page.locator(".answer .katex").first).to_be_visible()
        page.locator("details.thinking[open]").wait_for()


def test_keys_of_an_input_method_do_nothing_else(visit: Visit, replay: Replay) -> None:
    page = visit.page
    message = page.locator("#message")
    message.fill("日本語")
    message.evaluate(INPUT_METHOD, "Enter")
    expect(page.locator(".message")).to_have_count(0)
    assert replay.requests == []
    gate = Gate()
    replay.next(Said("はい。"), gate, Said("終わり。"), Ended())
    message.press("Enter")
    expect(page.locator(".answer")).to_have_text("はい。")
    message.evaluate(INPUT_METHOD, "Escape")
    page.locator("#search").evaluate(INPUT_METHOD, "Escape")
    gate.open()
    expect(visit.answered().locator(".answer")).to_have_text("はい。終わり。")
    expect(page.locator(".note")).to_be_hidden()

    page.locator(".conversation").hover()
    page.get_by_role("button", name="Rename").click()
    field = page.locator(".conversation input")
    for key in ("Enter", "Escape"):
        field.evaluate(INPUT_METHOD, key)
        expect(field).to_be_visible()
    page.keyboard.type("名前")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("名前")
    page.locator(".user").hover()
    page.locator(".user").get_by_role("button", name="Edit").click()
    editor = page.locator(".editor textarea")
    for key in ("Enter", "Escape"):
        editor.evaluate(INPUT_METHOD, key)
        expect(editor).to_be_visible()
    page.keyboard.press("Escape")
    expect(editor).to_have_count(0)


# How many pixels below what is seen of the conversation.
LEFT = """(({ scrollHeight, scrollTop, clientHeight }) =>
  scrollHeight - scrollTop - clientHeight)(document.querySelector("#reading"))"""


def test_scrolling_up_slowly_lets_go_and_the_end_takes_hold(visit: Visit, replay: Replay) -> None:
    page = visit.page
    gates = [Gate() for _ in range(4)]
    text = "\n\n".join(f"Paragraph {n}." for n in range(40))
    steps = [step for gate in gates for step in (gate, Said(f"\n\n{text} Piece."))]
    replay.next(Thought(text), Said(text), *steps, Ended())
    visit.ask("A long story")
    reading = page.locator("#reading")
    expect(page.locator(".answer > p")).to_have_count(40)

    def grow(pieces: int) -> None:
        gates[pieces - 1].open()
        expect(page.locator(".answer p", has_text="Piece.")).to_have_count(pieces)

    grow(1)
    wait_until(lambda: page.evaluate(LEFT) <= 8)
    reading.hover()
    page.mouse.wheel(0, -12)
    wait_until(lambda: page.evaluate(LEFT) > 8)
    grow(2)
    assert page.evaluate(LEFT) > 200  # it was let go of, though by a few pixels alone
    expect(page.locator("#jump")).to_be_visible()
    page.mouse.wheel(0, 100_000)
    wait_until(lambda: page.evaluate(LEFT) <= 8)
    grow(3)
    wait_until(lambda: page.evaluate(LEFT) <= 8)
    reading.focus()
    page.keyboard.press("ArrowUp")
    grow(4)
    assert page.evaluate(LEFT) > 200
    page.locator("#jump").click()
    visit.answered()
    wait_until(lambda: page.evaluate(LEFT) <= 8)


def test_a_jump_to_the_end_stops_a_scroll_under_way(visit: Visit, replay: Replay) -> None:
    page = visit.page
    gate = Gate()
    text = "\n\n".join(f"Paragraph {n}." for n in range(80))
    replay.next(Thought("Hm."), Said(text), gate, Said("\n\nThe end."), Ended())
    visit.ask("A long story")
    expect(page.locator(".answer > p")).to_have_count(80)
    wait_until(lambda: page.evaluate(LEFT) <= 8)
    page.evaluate(
        """() => {
          const frame = document.querySelector("#reading");
          window.places = [];
          frame.addEventListener("scroll", () => {
            places.push(frame.scrollTop);
            if (places.length === 1) document.querySelector("#jump").click();
          });
        }"""
    )
    page.locator("#reading").focus()
    page.keyboard.press("PageUp")  # scrolls over many frames: the first is where it is stopped
    wait_until(lambda: page.evaluate("places.length >= 2"))
    gate.open()
    visit.answered()
    wait_until(lambda: page.evaluate(LEFT) <= 8)
    places = page.evaluate("places")
    assert sorted(places) == places  # never upwards again


def test_what_is_selected_stays_and_formulas_are_copied_as_tex(
    visit: Visit, replay: Replay
) -> None:
    page = visit.page
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    gates = [Gate(), Gate(), Gate()]
    replay.next(
        Said("Start **here** and"), gates[0], Said(" go on with `code` and"), gates[1],
        Said(" more.\n\nNext: $\\frac{a}{b}$ is one,\n\n$$\\sqrt{2}$$\n\n"), gates[2],
        Said("```\nbare\n```\n\n- [x] done\n- [ ] open\n"), Ended(),
    )  # fmt: skip
    visit.ask("Write")
    paragraph = page.locator(".answer p").first
    expect(paragraph).to_have_text("Start here and")
    paragraph.evaluate(
        """(element) => getSelection().setBaseAndExtent(
            element.firstChild, 2, element.querySelector("strong").firstChild, 3)"""
    )
    for gate, text in zip(gates, ("go on with code", "more.", "bare"), strict=True):
        gate.open()
        expect(page.locator(".answer")).to_contain_text(text)
        assert page.evaluate("String(getSelection())") == "art her"
    visit.answered()
    assert page.evaluate("String(getSelection())") == "art her"
    expect(page.locator(".answer .katex")).to_have_count(2)

    # Half a formula is all of it.
    page.evaluate(
        """() => {
            const math = document.querySelectorAll(".answer .math");
            const end = math[1].querySelector(".katex-html");
            getSelection().setBaseAndExtent(math[0].closest("p").firstChild, 0, end, 1);
        }"""
    )
    page.keyboard.press("Control+c")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "Next: $\\frac{a}{b}$ is one,\n\n$$\\sqrt{2}$$"

    ticks = page.locator(".answer [data-task]").evaluate_all(
        "(all) => all.map((task) => getComputedStyle(task, '::before').content)"
    )
    assert ticks == ['"✓"', '""']
    head = page.locator(".code-head")
    expect(head.get_by_role("button", name="Copy code")).to_be_visible()
    assert head.evaluate("(element) => getComputedStyle(element).position") == "absolute"


def test_what_is_said_in_the_drawer_is_said_there(
    visit: Visit, replay: Replay, tmp_path: Path
) -> None:
    page = visit.page
    page.locator("#options-open").click()
    file = tmp_path / "none.json"
    file.write_text("{}")
    page.locator("#import-file").set_input_files(file)
    toast = page.locator("#options [role=status] .toast")
    expect(toast).to_contain_text("no exported conversations")
    assert toast.evaluate(
        """(element) => {
            const { left, top, width, height } = element.getBoundingClientRect();
            const there = document.elementFromPoint(left + width / 2, top + height / 2);
            return element.contains(there);
        }"""
    )
    expect(page.locator("#options")).to_contain_text("localhost has its own")
    for count, value in enumerate(("0.33", "1.999", "0.07"), 1):
        page.get_by_label("Temperature").fill(value)
        page.keyboard.press("Escape")
        replay.next(Said("Yes."), Ended())
        visit.ask("Hello")
        visit.answered(count)
        assert replay.requests[-1]["temperature"] == float(value)
        page.locator("#options-open").click()
    page.get_by_label("Temperature").fill("2.5")
    page.keyboard.press("Escape")
    assert json.loads(page.evaluate("localStorage['magistral.settings']"))["temperature"] == 0.07

    # A key that no request can carry is asked for anew; the server is not said to be away.
    page.evaluate("sessionStorage.setItem('magistral.key', 'ключ')")
    page.reload()
    expect(page.locator("#key")).to_contain_text("did not accept that key")
    page.locator("#key input").fill("key")
    page.keyboard.press("Enter")
    expect(page.locator("#model-name")).not_to_be_empty()

    # Toasts stand above the composer.
    page.locator(".conversation").hover()
    page.get_by_role("button", name="Delete").click()
    toast = page.locator("#toasts .toast").bounding_box()
    composer = page.locator("#composer").bounding_box()
    assert toast and composer and toast["y"] + toast["height"] <= composer["y"]


def test_a_long_chat_is_printed_whole_and_long_questions_fold(
    visit: Visit, replay: Replay, tmp_path: Path
) -> None:
    page = visit.page
    question = "\n".join(f"Line {n}" for n in range(30))
    replay.next(Said("\n\n".join(f"Paragraph {n}." for n in range(200))), Ended())
    visit.ask(question)
    visit.answered()
    text = page.locator(".user-text")
    folded = text.bounding_box()
    page.get_by_role("button", name="Show all").click()
    unfolded = text.bounding_box()
    assert folded and unfolded and folded["height"] * 2 < unfolded["height"]
    page.get_by_role("button", name="Show less").click()
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
    assert pages > 5
    page.emulate_media(media="print")
    for hidden in ("#composer", "#sidebar", ".tools"):
        expect(page.locator(hidden).first).to_be_hidden()


def test_the_composer_shows_the_focus_to_who_uses_keys(visit: Visit) -> None:
    page = visit.page

    def ring() -> str:
        return page.locator("#composer").evaluate("(form) => getComputedStyle(form).borderColor")

    page.locator("#message").click()
    neutral = ring()
    page.keyboard.type("words")
    assert ring() == neutral
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#message")).to_be_focused()
    assert ring() != neutral


def test_a_mac_keeps_its_key_for_deleting_the_rest_of_a_line(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    with visiting(browser, replay.url) as visit:
        page = visit.page
        page.add_init_script(
            "Object.defineProperty(navigator, 'platform', { get: () => 'MacIntel' })"
        )
        reload(page)
        replay.next(Said("Yes."), Ended())
        visit.ask("Hello")
        visit.answered()
        page.keyboard.press("Control+k")
        expect(page.locator(".message")).to_have_count(2)
        page.keyboard.press("Meta+k")
        expect(page.locator(".message")).to_have_count(0)


def test_nothing_is_used_that_safari_17_0_lacks() -> None:
    newer = re.compile(
        r"light-dark\(|\b(Map|Object)\.groupBy|Promise\.(withResolvers|try)|Array\.fromAsync"
        r"|\.(union|intersection|difference|isSubsetOf)\(|URL\.parse\(|@starting-style|text-box:"
        r"|Iterator\.from|RegExp\.escape|field-sizing"
    )
    own = [path for kind in ("js", "css", "strings") for path in (STATIC / kind).iterdir()]
    assert [path.name for path in own if newer.search(path.read_text())] == []
