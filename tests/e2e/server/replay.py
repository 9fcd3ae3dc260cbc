"""A server that answers as it is told: the page's requests, and a script instead of a model.

A script is a list of steps; text is sent in pieces of a few characters, as tokens come. Steps:

    Reading(done, total)   the prompt is being read       Gate()            wait until it is opened
    Thought(text)          a piece of the trace           Said(text)        a piece of the answer
    Called(name, …)        a call to a tool
    Ended(reason)          usage, timings, [DONE]         Broken(message)   an error in the stream
    Cut()                  the connection ends
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from magistral_mlx.mcp.config import ServerSpec
from magistral_mlx.mcp.servers import MCPServers
from magistral_mlx.server import mcp_tools
from magistral_mlx.server.document_parts import document_parts
from magistral_mlx.server.page import mount_page

OWN_PROMPT = "First draft your thinking process."
MODEL = "magistral-small-2509-4bit"
METRICS = """\
# TYPE magistral_memory_bytes gauge
magistral_memory_bytes{kind="weights"} 1.326e+10
magistral_memory_bytes{kind="kv_cache"} 6.1e+08
magistral_memory_bytes{kind="buffers"} 1.2e+08
magistral_memory_bytes{kind="peak"} 1.45e+10
magistral_memory_bytes{kind="limit"} 2.29e+10
magistral_queue_length 0.0
magistral_context_tokens{model="magistral-small-2509-4bit"} 40960.0
"""
PIECE = 4  # characters


@dataclass(frozen=True)
class Reading:
    done: int
    total: int


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class Said:
    text: str


@dataclass(frozen=True)
class Called:
    name: str
    arguments: str = "{}"


@dataclass(frozen=True)
class Ended:
    reason: str = "stop"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Broken:
    message: str


@dataclass(frozen=True)
class Cut:
    pass


class Gate:
    """The stream waits here until `open` is called, by the test."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        while not self._opened.is_set():
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Refused:
    """Instead of a stream: a status, with OpenAI's error shape."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Replay:
    """What the next requests get, and what the page has asked for."""

    scripts: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: [MODEL])
    specs: Sequence[ServerSpec] = ()  # MCP servers whose tools the page may call
    left: int = 0  # streams that the page has closed early
    documents: Gate | None = None  # files are read once it is opened
    url: str = ""

    def next(self, *steps: Any) -> None:
        """Answer one more request with these steps, or with a Refused."""
        self.scripts.append(steps[0] if isinstance(steps[0], Refused) else steps)

    def reset(self) -> None:
        """Forget what was asked, and what was not fetched."""
        self.scripts.clear()
        self.requests.clear()
        self.left = 0
        self.documents = None

    def app(self) -> Starlette:
        @asynccontextmanager
        async def life(app: FastAPI) -> AsyncIterator[None]:
            if not self.specs:
                yield
                return
            async with MCPServers(self.specs) as app.state.mcp:
                yield

        app = FastAPI(lifespan=life)
        if self.specs:
            app.include_router(mcp_tools.router)
        app.add_route("/v1/models", self._models)
        app.add_route("/metrics", self._metrics)
        app.add_route("/v1/chat/completions", self._chat, methods=["POST"])
        app.add_route("/v1/documents", self._documents, methods=["POST"])
        mount_page(app)
        return app

    async def _models(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "object": "list",
                "data": [{"id": name, "system_prompt": OWN_PROMPT} for name in self.models],
                "mcp": bool(self.specs),
            }
        )

    async def _documents(self, request: Request) -> Response:
        body = await request.json()
        if self.documents:
            await self.documents.passed()
        parts = document_parts(body["data"], body["name"], body["pdf"])
        return JSONResponse({"parts": parts, "tokens": 1234})

    async def _metrics(self, _request: Request) -> Response:
        return PlainTextResponse(METRICS)

    async def _chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        script = self.scripts.pop(0)
        if isinstance(script, Refused):
            error = {"error": {"message": script.message, "type": "error", "code": None}}
            return JSONResponse(error, script.status, script.headers)
        return StreamingResponse(self._stream(script), media_type="text/event-stream")

    async def _stream(self, script: tuple[Any, ...]) -> AsyncIterator[str]:
        counts = {"thinking": 0, "answer": 0, "calls": 0}
        finished = False
        try:
            for step in script:
                if isinstance(step, Gate):
                    await step.passed()
                    continue
                for chunk in _chunks(step, counts):
                    yield chunk
                    await asyncio.sleep(0)
            finished = True
        finally:
            self.left += not finished


def _chunks(step: Any, counts: dict[str, int]) -> Iterator[str]:
    match step:
        case Reading(done, total):
            progress = {"prompt_tokens": total, "done_tokens": done, "seconds_left": 12.0}
            yield _event(progress=progress)
        case Thought(text):
            for piece in _pieces(text):
                counts["thinking"] += 1
                yield _event({"reasoning_content": piece})
        case Said(text):
            for piece in _pieces(text):
                counts["answer"] += 1
                yield _event({"content": piece})
        case Called(name, arguments):
            function = {"name": name, "arguments": ""}
            call = {"index": counts["calls"], "id": f"call{counts['calls']:05}", "type": "function"}
            yield _event({"tool_calls": [call | {"function": function}]})
            for piece in _pieces(arguments):
                more = {"index": counts["calls"], "function": {"arguments": piece}}
                yield _event({"tool_calls": [more]})
            counts["calls"] += 1
        case Ended(reason, notes):
            yield _event(reason=reason, notes=notes)
            yield _last(counts)
            yield "data: [DONE]\n\n"
        case Broken(message):
            yield f"data: {json.dumps({'error': {'message': message}})}\n\n"
        case Cut():
            return


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def _event(
    delta: dict[str, Any] | None = None,
    reason: str | None = None,
    notes: tuple[str, ...] = (),
    **more: Any,
) -> str:
    choice: dict[str, Any] = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    if reason:
        choice["timings"] = {"decode_tokens_per_second": 24.6, "prefill_tokens_per_second": 310.0}
    if notes:
        choice["notes"] = notes
    return f"data: {json.dumps({'model': MODEL, 'choices': [choice], **more})}\n\n"


def _last(counts: dict[str, int]) -> str:
    written = counts["thinking"] + counts["answer"]
    usage = {
        "prompt_tokens": 412,
        "completion_tokens": written,
        "total_tokens": 412 + written,
        "completion_tokens_details": {"reasoning_tokens": counts["thinking"]},
    }
    body = {"model": MODEL, "choices": [], "usage": usage}
    return f"data: {json.dumps(body)}\n\n"


@contextmanager
def replaying(specs: Sequence[ServerSpec] = ()) -> Iterator[Replay]:
    """A replay on a free port of 127.0.0.1, in a thread of its own; with tools of MCP servers."""
    replay = Replay(specs=specs)
    lifespan = "on" if specs else "off"  # without, the app has nothing to begin or to end
    config = uvicorn.Config(replay.app(), port=0, log_level="critical", lifespan=lifespan)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the replay did not start"
        thread.join(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    replay.url = f"http://127.0.0.1:{port}"
    try:
        yield replay
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
