"""A headless browser that lets the page talk to its own server alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Playwright,
    Route,
    expect,
    sync_playwright,
)

PATIENCE = 60_000  # ms that a busy machine may take for anything
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium, or Playwright's own. PAGE_BROWSER=firefox takes a Firefox instead."""
    with sync_playwright() as playwright:
        if os.environ.get("PAGE_BROWSER") == "firefox":
            browser = firefox(playwright)
        else:
            path = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def firefox(playwright: Playwright) -> Browser:
    """The machine's Firefox, by WebDriver BiDi, or Playwright's own."""
    path = shutil.which("firefox") or shutil.which("firefox-esr")
    if path is None:
        return playwright.firefox.launch()
    return playwright.firefox.launch(channel="moz-firefox", executable_path=path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module, not for the session: while it runs, its event loop does too."""
    with chromium() as running:
        yield running


@dataclass
class Visit:
    """A page that was opened, and what it did that a page must not do."""

    page: Page
    context: BrowserContext
    foreign: list[str] = field(default_factory=list)  # requests to other origins
    errors: list[str] = field(default_factory=list)  # exceptions of the page's scripts
    dialogs: list[str] = field(default_factory=list)  # alert() and the like

    @property
    def harm(self) -> tuple[list[str], list[str], list[str]]:
        return self.foreign, self.errors, self.dialogs

    def ask(self, text: str) -> None:
        """Type a message and send it."""
        self.page.locator("#message").fill(text)
        self.page.locator("#message").press("Enter")

    def answered(self, count: int = 1) -> Locator:
        """The last of `count` answers, once it is complete."""
        answer = self.page.locator(".message.assistant:not([aria-busy])")
        expect(answer).to_have_count(count)
        return answer.last


def wait_until_ready(page: Page) -> None:
    """Wait until the page can be used: what is typed before is lost."""
    page.locator("body[data-ready]").wait_for()


def reload(page: Page) -> None:
    """Load the page again, and wait until it can be used."""
    page.reload()
    wait_until_ready(page)


def export_all(page: Page, file: Path) -> None:
    """Export all conversations to a file; the options stay open."""
    page.locator("#options-open").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(file)


def second_tab(visit: Visit) -> Page:
    """Open what the page shows in another tab of its profile."""
    page = visit.context.new_page()
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.goto(visit.page.url)
    wait_until_ready(page)
    return page


@contextmanager
def visiting(browser: Browser, url: str, **context: Any) -> Iterator[Visit]:
    """Open the page in a profile of its own, and wait until it can be used."""
    options = {"locale": "en-GB", "viewport": {"width": 1180, "height": 800}} | context
    with browser.new_context(**options) as profile:
        profile.set_default_timeout(PATIENCE)
        visit = Visit(profile.new_page(), profile)
        origin = urlsplit(url)[:2]

        def judge(route: Route) -> None:
            parts = urlsplit(route.request.url)
            if parts[:2] == origin or parts.scheme in ("data", "blob"):
                route.continue_()
            else:
                visit.foreign.append(route.request.url)
                route.abort()

        profile.route("**/*", judge)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on(
            "dialog", lambda dialog: (visit.dialogs.append(dialog.message), dialog.dismiss())
        )
        visit.page.goto(url)
        wait_until_ready(visit.page)
        yield visit
        assert visit.harm == ([], [], [])
