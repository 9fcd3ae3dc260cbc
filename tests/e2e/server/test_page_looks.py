"""The chat page for everybody: languages, themes, narrow screens, assistive technology."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.server.browser import Visit, browser, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import Ended, Gate, Replay, Said, Thought, replaying
from tests.e2e.server.screenshots import ANSWER, IMAGE, TRACE

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
# A language's keys, each with the number of arguments of its string.
SAID = """async (tag) => {
    const strings = (await import(`/static/strings/${tag}.js`)).default;
    const takes = (string) => (typeof string === "function" ? string.length : 0);
    return Object.entries(strings).map(([key, string]) => [key, takes(string)]);
}"""
WIDE = {"width": 1180, "height": 800}
NARROW = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


def converse(visit: Visit, replay: Replay) -> None:
    """A conversation with everything in it."""
    replay.reset()
    visit.page.locator("#files").set_input_files(IMAGE)
    expect(visit.page.locator("#tray img")).to_be_visible()
    replay.next(Thought(TRACE), Said(ANSWER), Ended())
    visit.ask("A question that is long enough to take more than one line on a narrow screen")
    visit.answered()


def complaints(page: Page) -> list[str]:
    """What axe-core finds: WCAG 2.2 at level AA, and best practices."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        """async () => (await axe.run({ runOnly: [
            "wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice",
        ] })).violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) =>
            `${id}: ${html} ${failureSummary}`))"""
    )
    return list(found)


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", NARROW)])
def test_axe_has_nothing_to_say(
    browser: Browser,  # noqa: F811
    replay: Replay,
    scheme: str,
    viewport: dict[str, int],
) -> None:
    context = {"color_scheme": scheme, "viewport": viewport, "reduced_motion": "reduce"}
    with visiting(browser, replay.url, **context) as visit:
        page = visit.page
        assert complaints(page) == []
        converse(visit, replay)
        page.locator("details.thinking summary").click()
        assert complaints(page) == []
        replay.next(Said("Never"), Gate())
        visit.ask("Stop me")
        expect(page.get_by_text("Never")).to_be_visible()
        page.keyboard.press("Escape")
        visit.answered(2)
        replay.next(Said("Forever"), Gate())
        visit.ask("Wait for it")
        visit.ask("Then this")
        expect(page.locator("#queue li")).to_have_count(1)
        assert complaints(page) == []
        page.keyboard.press("Escape")
        visit.answered(3)
        page.locator(".user-images button").click()
        assert complaints(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("Control+/")
        assert complaints(page) == []
        page.keyboard.press("Escape")
        page.locator("#options-open").click()
        page.locator(".more-options summary").click()
        page.get_by_text("The model’s own", exact=True).click()
        assert complaints(page) == []
        page.keyboard.press("Escape")
        if viewport is NARROW:
            page.locator("#sidebar-open").click()
            assert complaints(page) == []


def test_nothing_is_wider_than_a_narrow_screen(browser: Browser, replay: Replay) -> None:  # noqa: F811
    with visiting(browser, replay.url, viewport=NARROW) as visit:
        page = visit.page
        converse(visit, replay)
        page.locator("details.thinking summary").click()
        replay.next(Said("word" * 200), Ended())
        visit.ask("W" * 300)
        visit.answered(2)
        wide = page.evaluate(
            """() => [...document.querySelectorAll(".main, .message, .composer, .top > *, .strip")]
                .filter((element) => element.getBoundingClientRect().right > innerWidth)
                .map((element) => element.outerHTML.slice(0, 80))"""
        )
        assert wide == []
        reading = page.locator("#reading")
        assert reading.evaluate("(element) => element.scrollWidth <= element.clientWidth")
        page.locator("#sidebar-open").click()
        page.locator(".conversation .open").click()
        expect(page.locator("#sidebar")).to_be_hidden()


def test_the_language_is_the_browsers_until_another_is_chosen(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    with visiting(browser, replay.url, locale="de-AT") as visit:
        page = visit.page
        converse(visit, replay)
        expect(page.locator("#message")).to_have_attribute(
            "placeholder", "Etwas fragen oder eine Datei ablegen"
        )
        expect(page.locator("details.thinking summary")).to_contain_text("Nachgedacht")
        expect(page.locator("#strip")).to_contain_text("14,0 GB von 22,9 GB")
        page.locator("#options-open").click()
        page.get_by_label("Sprache").select_option("en")
        expect(page.locator("#options-title")).to_have_text("Options")
        expect(page.locator("details.thinking summary")).to_contain_text("Thought")
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.locator("#strip")).to_contain_text("14.0 GB of 22.9 GB")


def test_both_languages_say_the_same_things(browser: Browser, replay: Replay) -> None:  # noqa: F811
    with visiting(browser, replay.url) as visit:
        english, german = (visit.page.evaluate(SAID, tag) for tag in ("en", "de"))
    assert english == german


def test_the_theme_is_the_systems_until_another_is_chosen(
    browser: Browser,  # noqa: F811
    replay: Replay,
) -> None:
    def paper(page: Page) -> str:
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    with visiting(browser, replay.url, color_scheme="dark") as visit:
        page = visit.page
        dark = paper(page)
        page.emulate_media(color_scheme="light")
        light = paper(page)
        assert light != dark
        page.locator("#options-open").click()
        page.get_by_label("Dark").check(force=True)
        assert paper(page) == dark
        page.reload()
        assert paper(page) == dark
