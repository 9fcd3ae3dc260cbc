"""Text, code and PDF files that are attached to a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Request, expect

from tests.e2e.server.browser import browser, export_all, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.screenshots import IMAGE
from tests.e2e.server.test_page_looks import complaints
from tests.pdf_files import pdf_of
from tests.serving import Server
from tests.unit.test_documents import ENCRYPTED


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "", "buffer": data}


def shorten(page: Page) -> None:
    """Answers of four tokens, and images of sixteen at most."""
    page.locator("#options-open").click()
    page.get_by_label("Longest answer").fill("4")
    page.get_by_text("More options").click()
    page.get_by_label("Size of images").fill("16")
    page.keyboard.press("Escape")


def test_files_are_read_and_sent_in_a_named_block(
    browser: Browser,  # noqa: F811
    server: Server,
    tmp_path: Path,
) -> None:
    report = pdf_of(["Revenue grew.", "It ends."])
    sent: list[Any] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            sent.append(request.post_data_json)

    with visiting(browser, server.url) as visit:
        page = visit.page
        page.on("request", note)
        shorten(page)
        tray = page.locator("#tray li")
        page.locator("#files").set_input_files([
            file("sum.py", b"total = 37 + 85\n"),
            file("report.pdf", report),
        ])  # fmt: skip
        expect(tray).to_have_count(2)
        expect(tray.first).to_contain_text("tokens")
        for name, data, words in (
            ("secret.pdf", ENCRYPTED.read_bytes(), "secret.pdf is encrypted."),
            ("half.pdf", report[:300], "half.pdf is damaged"),
            ("program.bin", bytes(999), "program.bin is a binary file."),
            ("none.txt", b"", "none.txt is empty"),
        ):
            page.locator("#files").set_input_files([file(name, data)])
            expect(page.locator(".toast").last).to_contain_text(words)
        expect(tray).to_have_count(2)
        assert complaints(page) == []
        # A PDF is its text or its pages; a scan has no text.
        as_text = tray.nth(1).locator("small").inner_text()
        tray.nth(1).get_by_role("combobox").select_option(label="Pages")
        expect(tray.nth(1).locator("small")).not_to_have_text(as_text)
        page.locator("#files").set_input_files([file("scan.pdf", pdf_of([""]))])
        expect(tray.nth(2).get_by_role("combobox")).to_have_value("images")
        # All of it is there after a reload.
        page.reload()
        expect(tray).to_have_count(3)
        expect(tray.nth(1).get_by_role("combobox")).to_have_value("images")
        page.get_by_role("button", name="Remove scan.pdf").click()
        visit.ask("What is total?")
        visit.answered()
        content = sent[-1]["messages"][-1]["content"]
        assert [part["type"] for part in content] == [
            "text", "text", "image_url", "image_url", "text",
        ]  # fmt: skip
        assert content[0]["text"] == "File: sum.py\n```py\ntotal = 37 + 85\n```"
        assert content[1]["text"] == "File: report.pdf (2 pages, as images)"
        # They are seen in the question, and go along with the next one.
        page.locator(".user-images button").first.click()
        expect(page.locator("#image pre")).to_contain_text("total = 37 + 85")
        assert complaints(page) == []
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#image figcaption")).to_have_text("report.pdf · 1")
        page.keyboard.press("Escape")
        visit.ask("And?")
        visit.answered(2)
        assert sent[-1]["messages"][0]["content"] == content
        # They are part of an exported chat.
        export_all(page, tmp_path / "all.json")
    with visiting(browser, server.url) as visit:
        page = visit.page
        page.locator("#import-file").set_input_files(tmp_path / "all.json")
        page.locator(".conversation .open").click()
        expect(page.locator(".user-images button")).to_have_count(2)


def test_the_tokens_of_an_image_follow_the_size_of_images(
    browser: Browser,  # noqa: F811
    server: Server,
) -> None:
    with visiting(browser, server.url) as visit:
        page = visit.page
        page.locator("#files").set_input_files([IMAGE])
        figure = page.locator("#tray small")
        expect(figure).to_contain_text("tokens")
        full = int(figure.inner_text().split()[0].replace(",", ""))
        page.locator("#options-open").click()
        page.get_by_text("More options").click()
        page.get_by_label("Size of images").fill("16")
        page.keyboard.press("Escape")
        expect(figure).not_to_have_text(f"{full} tokens")
        assert int(figure.inner_text().split()[0]) <= 16 < full
