"""Images that are attached to a question are ones that the server takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import PIL.Image
from playwright.sync_api import Browser, expect

from magistral_mlx.server.settings import Limits, Settings
from tests.e2e.server.browser import browser, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.screenshots import IMAGE
from tests.e2e.server.test_page import SHAPE
from tests.serving import live_server

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L", (width, height)).save(file, "png")
    return file.getvalue()


def test_what_the_server_would_refuse_is_not_attached(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    good = IMAGE.read_bytes()
    bad = {
        "renamed.png": b"a text file",
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "damaged.heic": HEIC,
    }
    settings = Settings(models=("demo",), limits=Limits(images=3))
    with live_server(settings) as server, visiting(browser, server.url) as visit:
        page = visit.page
        tray = page.locator("#tray li")
        page.locator("#options-open").click()
        page.get_by_label("Longest answer").fill("8")
        page.keyboard.press("Escape")
        for name, data in bad.items():
            kind = "image/heic" if name.endswith("heic") else "image/png"
            file = {"name": name, "mimeType": kind, "buffer": data}
            page.locator("#files").set_input_files([file])
            expect(page.locator(".toast").last).to_have_text(
                f"{name} is not an image that can be read."
            )
        expect(tray).to_have_count(0)

        # One of 108 megapixels is made as small as the server takes it; a fourth is one too many.
        large = {"name": "large.png", "mimeType": "image/png", "buffer": png(12_000, 9_000)}
        page.locator("#files").set_input_files([large])
        expect(tray).to_have_count(1)
        expect(tray).to_contain_text("tokens")
        page.get_by_role("button", name="Remove large.png").click()
        page.locator("#files").set_input_files([IMAGE] * 4)
        expect(page.locator(".toast").last).to_contain_text("more than 3 images")
        expect(tray).to_have_count(3)
        visit.ask(SHAPE)
        expect(visit.answered().locator(".note")).to_contain_text("token limit")
        page.locator("#files").set_input_files([IMAGE])
        expect(page.locator(".toast").last).to_contain_text("more than 3 images")
        expect(tray).to_have_count(0)

        # A chat that holds a bad one all the same can be gone on with.
        message = {"id": "q", "conversation": "c", "parent": None, "role": "user", "created": 1}
        images = [{"name": "bad.png", "url": "data:image/png;base64,AAAA"}]
        chat = {"id": "c", "title": "Old", "created": 1, "updated": 1, "leaf": "q"} | {
            "messages": [message | {"text": SHAPE, "images": images}]
        }
        file = tmp_path / "old.json"
        content = {"format": "magistral-mlx conversations", "version": 2, "conversations": [chat]}
        file.write_text(json.dumps(content))
        page.locator("#import-file").set_input_files(file)
        page.locator(".conversation .open", has_text="Old").click()
        expect(page.locator(".no-preview")).to_contain_text("bad.png")
        visit.ask("And?")
        note = page.locator(".note.error")
        expect(note).to_contain_text("bad.png is not an image that can be opened")
        expect(note).not_to_contain_text("messages[")
        page.locator(".user").first.hover()
        page.get_by_role("button", name="Edit").first.click()
        page.locator(".editor").get_by_role("button", name="Remove bad.png").click()
        page.locator(".editor textarea").press("Enter")
        expect(visit.answered().locator(".note")).to_contain_text("token limit")
