"""Tools of a real MCP server on the page: shown, confirmed, called, and told to the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from magistral_mlx.mcp.config import ServerSpec
from tests.e2e.server.browser import browser, reload, visiting  # noqa: F401  (a fixture)
from tests.e2e.server.replay import Called, Ended, Replay, Said, Thought, replaying
from tests.e2e.server.test_page_looks import complaints
from tests.mcp_servers import NOON, TIME

SPEC = ServerSpec(name="time", command=TIME["command"], args=tuple(TIME["args"]))
CALLS = (Thought("Let me see."), Called("time_convert_time", json.dumps(NOON)), Ended("tool_calls"))


@pytest.fixture(scope="module")
def tooled() -> Iterator[Replay]:
    with replaying([SPEC]) as replay:
        yield replay


def results(replay: Replay) -> list[dict[str, Any]]:
    """What the model was told of calls last."""
    return [m for m in replay.requests[-1]["messages"] if m["role"] == "tool"]


def test_a_call_is_shown_confirmed_and_told_to_the_model(
    browser: Browser,  # noqa: F811
    tooled: Replay,
) -> None:
    tooled.reset()
    with visiting(browser, tooled.url) as visit:
        page = visit.page
        call = page.locator(".call")
        tooled.next(*CALLS)
        tooled.next(Thought("So it is nine."), Said("It is 21:00 in Tokyo."), Ended())
        visit.ask("What is noon UTC in Tokyo?")
        expect(call.locator(".call-name")).to_have_text("convert_time · time")
        expect(call.locator("pre")).to_contain_text('"target_timezone": "Asia/Tokyo"')
        assert len(tooled.requests) == 1  # nothing is called before it is allowed
        assert complaints(page) == []
        call.get_by_role("button", name="Allow once").click()
        answer = visit.answered()
        expect(answer.locator(".answer")).to_have_text("It is 21:00 in Tokyo.")
        # Its result is folded.
        expect(call.locator(".call-state")).to_contain_text("characters")
        expect(call.locator("pre").last).to_be_hidden()
        call.locator("summary").click()
        expect(call.locator("pre").last).to_contain_text("T21:00:00+09:00")
        assert complaints(page) == []
        offered = [tool["function"]["name"] for tool in tooled.requests[0]["tools"]]
        assert offered == ["time_get_current_time", "time_convert_time"]
        question, said, result = tooled.requests[1]["messages"]
        assert said["reasoning_content"] == "Let me see."
        (made,) = said["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == NOON
        assert result["tool_call_id"] == made["id"]
        assert "T21:00:00+09:00" in result["content"]
        # All of it is there after a reload, and goes along with the next question.
        page.reload()
        expect(page.locator(".answer")).to_have_text("It is 21:00 in Tokyo.")
        expect(call.locator(".call-state")).to_contain_text("characters")
        tooled.next(Said("Yes."), Ended())
        visit.ask("Sure?")
        visit.answered(2)
        assert tooled.requests[-1]["messages"][:3] == [question, said, result]


def test_a_call_may_be_refused_or_allowed_from_now_on(
    browser: Browser,  # noqa: F811
    tooled: Replay,
) -> None:
    tooled.reset()
    with visiting(browser, tooled.url) as visit:
        page = visit.page
        calls = page.locator(".call")
        for choice, state in (("Do not allow", "not allowed"), ("Always this tool", "characters")):
            page.locator("#new-chat").click()
            tooled.next(*CALLS)
            tooled.next(Said("So."), Ended())
            visit.ask("Noon?")
            page.get_by_role("button", name=choice).click()
            visit.answered()
            expect(calls.locator(".call-state")).to_contain_text(state)
        assert "21:00" in results(tooled)[0]["content"]
        # It is called at once from now on, also after a reload; another tool asks.
        reload(page)
        page.locator("#new-chat").click()
        tooled.next(
            Called("time_convert_time", json.dumps(NOON)),
            Called("time_get_current_time", '{"timezone": "Nowhere"}'),
            Ended("tool_calls"),
        )
        tooled.next(Said("So."), Ended())
        visit.ask("Noon?")
        expect(calls.nth(0).locator(".call-state")).to_contain_text("characters")
        expect(calls.nth(1)).to_have_attribute("data-state", "asked")
        # Escape stops it, and the answer can be gone on with.
        page.keyboard.press("Escape")
        expect(page.locator(".note")).to_contain_text("Stopped.")
        expect(calls.nth(1).locator(".call-state")).to_have_text("not called")
        page.get_by_role("button", name="Continue").click()
        expect(visit.answered().locator(".answer")).to_have_text("So.")
        assert results(tooled)[1]["content"] == "This call was not made."
        # A server's tools can be turned off, and permissions forgotten.
        page.locator("#options-open").click()
        page.get_by_label("time", exact=True).uncheck()
        page.get_by_role("button", name="Ask for every call again").click()
        page.keyboard.press("Escape")
        page.locator("#new-chat").click()
        tooled.next(Said("No tools."), Ended())
        visit.ask("Noon?")
        visit.answered()
        assert "tools" not in tooled.requests[-1]


def test_servers_that_are_connected_later_are_found(
    browser: Browser,  # noqa: F811
    tooled: Replay,
) -> None:
    tooled.reset()
    with visiting(browser, tooled.url) as visit:
        page = visit.page
        refusals = iter([{"status": 503, "headers": {"Retry-After": "0.01"}}])

        def connect_later(route: Route) -> None:
            refusal = next(refusals, None)
            route.fulfill(**refusal) if refusal else route.fallback()

        page.route("**/v1/mcp/tools", connect_later)
        with page.expect_response(lambda answer: answer.url.endswith("/tools") and answer.ok):
            reload(page)
        tooled.next(Said("Yes."), Ended())
        visit.ask("Tools?")
        visit.answered()
        assert len(tooled.requests[-1]["tools"]) == 2


def test_a_page_of_another_origin_never_reaches_them(
    browser: Browser,  # noqa: F811
    tooled: Replay,
) -> None:
    call = {"name": "time_convert_time", "arguments": NOON}
    statuses: list[int] = []
    with replaying() as other, browser.new_context() as context:
        page = context.new_page()
        page.on(
            "response",
            lambda answer: statuses.append(answer.status) if "/v1/mcp/" in answer.url else None,
        )
        page.goto(f"{other.url}/metrics")  # which has no policy that would hold it back
        reached = page.evaluate(
            """async ([url, call]) => {
                const body = JSON.stringify(call);
                const tries = [
                    ["calls", { method: "POST", mode: "no-cors", body }],
                    ["calls", { method: "POST", body, headers: {
                        "Content-Type": "application/json" } }],
                    ["tools", { mode: "no-cors" }],
                    ["tools", {}],
                ];
                const read = [];
                for (const [path, options] of tries) {
                    const answer = await fetch(`${url}/v1/mcp/${path}`, options).catch(() => null);
                    read.push(answer ? await answer.text() : "");
                }
                return read.join("");
            }""",
            [tooled.url, call],
        )
    assert reached == ""
    assert statuses and 200 not in statuses
