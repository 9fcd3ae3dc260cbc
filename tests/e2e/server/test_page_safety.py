"""What a model writes can neither run anything on the chat page nor load anything into it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, expect

from magistral_mlx.server.page import CONTENT_SECURITY_POLICY, STATIC
from tests.e2e.server.browser import Visit, browser, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import Ended, Replay, Said, Thought, replaying
from tests.e2e.server.screenshots import IMAGE

ROOT = Path(__file__).resolve().parents[3]
LARGEST = 1_500_000  # bytes of everything that the page is made of

# Each piece tries to call alert or to reach evil.example.
HOSTILE = r"""
<script>alert(1)</script>
<script src="https://evil.example/script.js"></script>

<img src=x onerror="alert(2)"> <img src="https://evil.example/pixel.png">
<svg onload="alert(3)"><use href="https://evil.example/sprite.svg#a"/></svg>
<svg><style><img src=x onerror=alert(4)></style></svg>
<iframe src="https://evil.example/"></iframe><iframe srcdoc="<script>alert(5)</script>"></iframe>
<style>@import "https://evil.example/style.css"; p { background: url(https://evil.example/bg) }
</style>
<link rel="stylesheet" href="https://evil.example/style.css"><base href="https://evil.example/">
<meta http-equiv="refresh" content="0;url=https://evil.example/">
<object data="https://evil.example/o">
<form action="https://evil.example/"><button autofocus onfocus="alert(6)">Press</button></form>
<details open ontoggle=alert(7)><video src="https://evil.example/v" onerror=alert(8)></details>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src onerror=alert(9)&gt;">
<a id="composer" name="composer" href="java&#115;cript:alert(10)">clobber</a>

![remote](https://evil.example/picture.png) ![data](data:image/svg+xml,<svg/onload=alert(11)>)
![title](https://evil.example/p.png "x\" onerror=\"alert(12)")
[![in](https://evil.example/i.png)](javascript:alert(13))

[one](javascript:alert(14)) [two](JaVaScRiPt:alert(15))
[three](data:text/html,<script>alert(16)</script>) [four](vbscript:alert(17))
[five](file:///etc/passwd) [six](&#x6A;avascript:alert(18)) <javascript:alert(19)>
[seven](//evil.example/) [eight]( javascript:alert(20)) [nine][ref] [ten](/v1/models)

[ref]: javascript:alert(21)

$\href{javascript:alert(22)}{x}$ $\url{javascript:alert(23)}$
$\includegraphics{https://evil.example/math.png}$ $\htmlId{composer}{x}$
$\htmlStyle{position:fixed;inset:0}{x}$ $\htmlClass{scrim}{x}$ $\htmlData{said=a}{x}$
$</span><img src=x onerror=alert(24)>$ $\def\a{\a\a}\a$ $\rule{99999em}{99999em}$

$$\text{<img src=x onerror=alert(25)>} \href{https://evil.example/}{y}$$

```html"><img src=x onerror=alert(26)>
<img src=x onerror=alert(27)><script>alert(28)</script>
```

| <img src=x onerror=alert(29)> | b |
|:--|--:|
| `<script>alert(30)</script>` | https://evil.example/auto |
"""

# What there must not be in a message: elements that do something, handlers, names for scripts.
LIVE = """(elements) => {
    const tags = "script img iframe object embed style link meta base form video audio use";
    const bad = (name) => name.startsWith("on") || ["srcdoc", "id", "name"].includes(name);
    return elements.flatMap((element) => [
        ...tags.split(" ").filter((tag) => element.localName === tag),
        ...element.getAttributeNames().filter(bad),
    ]);
}"""


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with replaying() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, replay: Replay) -> Iterator[Visit]:  # noqa: F811
    with visiting(browser, replay.url) as visit:
        yield visit


def test_hostile_markdown_runs_nothing_and_loads_nothing(visit: Visit, replay: Replay) -> None:
    page = visit.page
    page.evaluate("() => { globalThis.alert = () => { globalThis.ran = true; }; }")
    replay.next(Thought(HOSTILE), Said(HOSTILE), Ended())
    visit.ask(HOSTILE)
    answer = visit.answered()
    answer.locator("summary").click()
    page.wait_for_load_state("networkidle")
    found = page.locator(".message *").evaluate_all(LIVE)
    assert found == []
    links = page.locator(".assistant a").evaluate_all(
        "(links) => links.map((link) => [link.protocol, link.target, link.rel])"
    )
    assert {tuple(link) for link in links} == {("https:", "_blank", "noopener noreferrer")}
    assert page.evaluate("globalThis.ran") is None
    expect(page.locator("#composer")).to_be_visible()
    box = page.locator(".assistant .answer").bounding_box()
    column = page.locator("#messages").bounding_box()
    assert box and column and box["width"] <= column["width"]
    page.reload()
    visit.answered()
    assert visit.foreign == []


def test_markup_is_shown_as_it_was_written(visit: Visit, replay: Replay) -> None:
    replay.next(Said("Use <b>bold</b> & `<i>`."), Ended())
    visit.ask("How?")
    expect(visit.answered().locator(".answer")).to_have_text("Use <b>bold</b> & <i>.")


def test_titles_and_names_are_text(visit: Visit, replay: Replay) -> None:
    page, png = visit.page, IMAGE.read_bytes()
    page.locator("#files").set_input_files(
        {"name": "<img src=x onerror=alert(1)>.png", "mimeType": "image/png", "buffer": png}
    )
    expect(page.locator("#tray img")).to_have_attribute("alt", "<img src=x onerror=alert(1)>.png")
    replay.next(Said("Yes"), Ended())
    visit.ask("<img src=x onerror=alert(2)>")
    visit.answered()
    expect(page.locator(".conversation .name")).to_have_text("<img src=x onerror=alert(2)>")


def test_the_policy_comes_with_every_file_and_allows_only_this_server(visit: Visit) -> None:
    for path in ("/", "/static/js/main.js", "/static/css/base.css"):
        response = visit.context.request.get(visit.page.url.split("#")[0].rstrip("/") + path)
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    with pytest.raises(Error, match="TrustedHTML"):
        visit.page.evaluate("() => { document.createElement('p').innerHTML = '<b>x</b>'; }")


def test_the_page_is_small_and_its_libraries_are_the_pinned_ones() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    subprocess.run([sys.executable, ROOT / "scripts" / "vendor_page.py", "--check"], check=True)
