"""A screenshot of each state of the page, for people to look at.

Usage: python -m tests.e2e.server.screenshots DIR
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page

from magistral_mlx.demo.cases import make_case
from magistral_mlx.mcp.config import ServerSpec
from tests.e2e.server.browser import chromium, visiting
from tests.e2e.server.replay import (
    Called,
    Ended,
    Gate,
    Reading,
    Refused,
    Replay,
    Said,
    Thought,
    replaying,
)
from tests.mcp_servers import TIME
from tests.pdf_files import pdf_of
from tests.serving import live_server

ROOT = Path(__file__).resolve().parents[3]
TIME_SERVER = ServerSpec(name="time", command=TIME["command"], args=tuple(TIME["args"]))
COVER = 1_000_000_004  # the seed of the images of the cover
IMAGE = ROOT / "examples" / "circle.png"

QUESTION = "Why is the square root of 2 irrational? Then show me how to approximate it in Python."
TRACE = (
    "I should prove that $\\sqrt{2}$ is irrational. The classic way is by contradiction: assume "
    "$\\sqrt{2} = p/q$ in lowest terms.\n\nThen $p^2 = 2q^2$, so $p$ is even. Write $p = 2k$; "
    "then $4k^2 = 2q^2$, so $q^2 = 2k^2$ and $q$ is even too. That contradicts lowest terms.\n\n"
    "For the approximation, Newton's iteration converges quadratically:\n\n"
    "- start with 1\n- replace $x$ by the mean of $x$ and $2/x$\n- five steps are plenty\n\n"
    "Let me check the digits: 1, 1.5, 1.41667, 1.414216, 1.41421356"
)
ANSWER = """\
Suppose that $\\sqrt{2} = \\frac{p}{q}$ with $p$ and $q$ in lowest terms. Squaring gives

$$p^2 = 2q^2 \\quad\\Longrightarrow\\quad p = 2k \\quad\\Longrightarrow\\quad q^2 = 2k^2,$$

so **both** $p$ and $q$ are even, which cannot be. Hence $\\sqrt{2}$ is irrational. ∎

### Approximating it

Newton's method doubles the number of correct digits with every step:

```python
def sqrt2(steps: int = 5) -> float:
    \"\"\"The square root of 2 by Newton's method.\"\"\"
    x = 1.0
    for _ in range(steps):
        x = (x + 2 / x) / 2  # the mean of x and 2/x
    return x
```

| step | value | error |
|-----:|------:|:------|
| 1 | 1.5 | $8.6 \\cdot 10^{-2}$ |
| 2 | 1.4166667 | $2.5 \\cdot 10^{-3}$ |
| 3 | 1.4142157 | $2.1 \\cdot 10^{-6}$ |
"""


class Camera:
    """Takes the screenshots of one run into a folder."""

    def __init__(self, folder: Path, browser: Browser, replay: Replay) -> None:
        self.folder = folder
        self.browser = browser
        self.replay = replay

    def shoot(self, page: Page, name: str) -> None:
        page.screenshot(path=self.folder / f"{name}.png", animations="disabled")

    def ask(self, page: Page, text: str, *script: object) -> None:
        self.replay.next(*script)
        page.locator("#message").fill(text)
        page.keyboard.press("Enter")

    def history(self, page: Page) -> None:
        for text in ("Plan a week of vegetarian dinners", "Explain rotary embeddings", "Haiku"):
            page.locator("#new-chat").click()
            self.ask(page, text, Said("Here it is."), Ended())
            page.locator(".assistant .tools").wait_for()
        page.locator("#new-chat").click()

    def states(self, prefix: str = "", **context: object) -> None:
        """The states of a conversation."""
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            self.shoot(page, f"{prefix}empty")
            narrow = page.viewport_size["width"] < 800
            if not narrow:
                self.history(page)
            reading, thinking, answering = Gate(), Gate(), Gate()
            head, tail = ANSWER[:620], ANSWER[620:]
            self.ask(
                page, QUESTION, Reading(96, 412), reading, Thought(TRACE), thinking,
                Said(head), answering, Said(tail), Ended(),
            )  # fmt: skip
            page.get_by_text("412").first.wait_for()
            self.shoot(page, f"{prefix}reading")
            reading.open()
            page.locator(".thinking-body").get_by_text("1.41421356").wait_for()
            self.shoot(page, f"{prefix}thinking")
            thinking.open()
            page.locator(".answer pre").wait_for()
            self.shoot(page, f"{prefix}answering")
            answering.open()
            page.locator(".assistant .tools").wait_for()
            self.shoot(page, f"{prefix}answered")

    def images(self, prefix: str = "", **context: object) -> None:
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            page.locator("#files").set_input_files([IMAGE, IMAGE])
            page.locator("#tray img").nth(1).wait_for()
            page.locator("#message").fill("What is in this image?")
            self.shoot(page, f"{prefix}image-attached")
            self.replay.next(Thought("I see a red circle."), Said("A red circle."), Ended())
            page.keyboard.press("Enter")
            page.locator(".assistant .tools").wait_for()
            self.shoot(page, f"{prefix}image")
            page.locator(".user-images button").first.click()
            self.shoot(page, f"{prefix}image-large")

    def documents(self, prefix: str = "", **context: object) -> None:
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            files = {
                "primes.py": b"def primes(n): ...\n",
                "report.pdf": pdf_of(["Revenue grew."] * 3),
            }
            page.locator("#files").set_input_files(
                [{"name": n, "mimeType": "", "buffer": data} for n, data in files.items()]
            )
            page.locator("#tray select").wait_for()
            page.locator("#message").fill("What does the report say?")
            self.shoot(page, f"{prefix}documents-attached")
            self.replay.next(Said("Revenue grew."), Ended())
            page.keyboard.press("Enter")
            page.locator(".assistant .tools").wait_for()
            self.shoot(page, f"{prefix}documents")
            page.locator(".user-images button").first.click()
            self.shoot(page, f"{prefix}document-large")

    def tools(self, prefix: str = "", **context: object) -> None:
        """Calls to tools of an MCP server: asked for, and made."""
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            arguments = (
                '{"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}'
            )
            call = Called("time_convert_time", arguments)
            self.replay.next(Thought("I should convert it."), call, Ended("tool_calls"))
            self.ask(page, "What is noon UTC in Tokyo?", Said("It is 21:00 there."), Ended())
            page.locator(".call button").first.wait_for()
            self.shoot(page, f"{prefix}call-asked")
            page.locator(".call button").first.click()
            page.locator(".assistant .tools").wait_for()
            page.locator(".call summary").click()
            self.shoot(page, f"{prefix}call-made")
            page.locator("#options-open").click()
            page.locator(".tool-options").scroll_into_view_if_needed()
            self.shoot(page, f"{prefix}tool-options")

    def ends(self, prefix: str = "", **context: object) -> None:
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            self.ask(page, "Count to a million.", Said("One, two, three, four, five, "), Gate())
            page.get_by_text("five").wait_for()
            page.keyboard.press("Escape")
            page.locator(".note").wait_for()
            self.shoot(page, f"{prefix}stopped")
            words = "the queue is full: 128 requests wait already."
            self.ask(page, "And now?", Refused(429, words, {"Retry-After": "5"}))
            page.locator(".note.error").wait_for()
            self.shoot(page, f"{prefix}error")
            page.locator(".user").first.hover()
            page.locator(".user").first.get_by_role("button").last.click()
            self.shoot(page, f"{prefix}editing")

    def dialogs(self, prefix: str = "", **context: object) -> None:
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            page.locator("#options-open").click()
            page.locator("#options input[value=budget]").check(force=True)
            self.shoot(page, f"{prefix}options")
            page.keyboard.press("Escape")
            self.ask(page, "Hello", Refused(401, "a valid API key is missing."))
            page.locator("#key-field").wait_for()
            self.shoot(page, f"{prefix}key")

    def more(self, prefix: str = "", **context: object) -> None:
        """Long questions, waiting messages, scripts from right to left, the sheet, a full tray."""
        with visiting(self.browser, self.replay.url, **context) as visit:
            page = visit.page
            arabic = (
                "جذر العدد $\\sqrt{2} \\approx 1.414$ غير نسبي.\n\n- أول\n- ثان\n\n```\nx = 1\n```"
            )
            self.ask(page, "\n".join(f"Line {n} of a long question" for n in range(30)),
                     Said("- [x] done\n- [ ] open\n\n```\nno language\n```"), Ended())  # fmt: skip
            page.locator(".assistant .tools").wait_for()
            self.ask(page, "لماذا جذر 2 غير نسبي؟", Said(arabic), Ended())
            page.locator(".assistant .tools").nth(1).wait_for()
            self.ask(page, "Count", Said("One, two, "), Gate())
            page.locator(".answer").nth(2).wait_for()
            for text in ("And then count backwards", "In French too"):
                page.locator("#message").fill(text)
                page.keyboard.press("Enter")
            page.locator("#queue li").nth(1).wait_for()
            self.shoot(page, f"{prefix}queue")
            page.keyboard.press("Escape")
            page.locator(".note").last.wait_for()
            page.locator("#reading").evaluate("(element) => element.scrollTo(0, 0)")
            self.shoot(page, f"{prefix}folded")
            page.locator("#files").set_input_files([IMAGE] * 24)
            page.locator("#tray li").nth(23).wait_for()
            self.shoot(page, f"{prefix}tray")
            page.keyboard.press("Control+/")
            self.shoot(page, f"{prefix}sheet")
            page.keyboard.press("Escape")
            page.locator("#options-open").click()
            page.locator(".more-options summary").click()
            self.shoot(page, f"{prefix}more-options")

    def list(self) -> None:
        with visiting(self.browser, self.replay.url) as visit:
            page = visit.page
            self.history(page)
            page.locator(".conversation").nth(1).hover()
            self.shoot(page, "list")
            page.locator(".conversation").first.hover()
            page.locator(".conversation").first.get_by_label("More").click()
            page.get_by_role("menuitem", name="Put into a folder").click()
            self.shoot(page, "folder-named")
            page.keyboard.type("Poems")
            page.keyboard.press("Enter")
            page.locator(".folder").wait_for()
            self.shoot(page, "folder")
            page.locator(".conversation").nth(1).get_by_label("Delete").click()
            page.locator(".toast").wait_for()
            page.evaluate("document.querySelector('#drop').hidden = false")
            self.shoot(page, "deleted-and-drop")
            page.evaluate("document.querySelector('#drop').hidden = true")
            page.set_viewport_size({"width": 360, "height": 740})
            page.locator("#sidebar-open").click()
            self.shoot(page, "narrow-list")


def cover(browser: Browser, path: Path) -> None:
    """What the page is, for the front page of the project: the demo model, and its own figures."""
    size = {"width": 1040, "height": 700}
    with (
        live_server() as server,
        visiting(browser, server.url, viewport=size, device_scale_factor=2) as visit,
    ):
        page = visit.page
        for question in ("What is 615 - 268?", "What is 37 + 85?"):
            page.locator("#new-chat").click()
            visit.ask(question)
            visit.answered()
        page.locator("#new-chat").click()
        case = make_case("two_images", COVER, ((280, 200), (280, 200)))
        files = []
        for drawing in case.drawings:
            png = io.BytesIO()
            drawing.image.save(png, "png")
            name = f"{drawing.name}.png"
            files.append({"name": name, "mimeType": "image/png", "buffer": png.getvalue()})
        page.locator("#files").set_input_files(files)
        page.locator("#tray img").nth(1).wait_for()
        visit.ask(case.question)
        visit.answered().locator("summary").click()
        page.locator("#strip").get_by_text("Speed").wait_for()
        page.locator("#message").blur()
        page.mouse.move(0, 0)
        page.screenshot(path=path, animations="disabled")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replaying([TIME_SERVER]) as replay, chromium() as browser:
        camera = Camera(folder, browser, replay)
        camera.states()
        camera.states("dark-", color_scheme="dark")
        camera.states("german-", locale="de-DE")
        narrow = {"width": 375, "height": 740}
        narrowest = {"width": 320, "height": 560}
        camera.states("narrow-", viewport=narrow, has_touch=True)
        camera.images()
        camera.images("narrow-dark-", viewport=narrow, color_scheme="dark", has_touch=True)
        camera.ends()
        camera.ends("german-dark-", locale="de-DE", color_scheme="dark")
        camera.dialogs()
        camera.dialogs("german-narrow-", locale="de-DE", viewport=narrow)
        camera.more(viewport={"width": 1280, "height": 800})
        camera.more("dark-", viewport={"width": 1280, "height": 800}, color_scheme="dark")
        camera.more("narrow-", viewport=narrow, has_touch=True)
        camera.more("narrowest-dark-", viewport=narrowest, has_touch=True, color_scheme="dark")
        camera.states("narrowest-", viewport=narrowest, has_touch=True)
        camera.list()
        for prefix, context in {
            "": {"viewport": {"width": 1280, "height": 800}},
            "narrow-dark-": {"viewport": narrow, "has_touch": True, "color_scheme": "dark"},
            "narrowest-": {"viewport": narrowest, "has_touch": True},
            "german-dark-": {"locale": "de-DE", "color_scheme": "dark"},
        }.items():
            camera.documents(prefix, **context)
            camera.tools(prefix, **context)
        cover(browser, folder / "cover.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
