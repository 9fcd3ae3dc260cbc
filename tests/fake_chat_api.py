"""A chat API on 127.0.0.1 whose answers a test writes: OpenAI's protocol, or Mistral's.

    with FakeChatAPI(lambda prompt: ("thinking", "answer")) as api:
        ...  # api.url

Mistral's thinking comes as chunks of content, OpenAI-compatible servers' as `reasoning_content`.
Answers are streamed where that is asked for. Every request is recorded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = Callable[[str], tuple[str, str]]  # prompt -> thinking and answer


class FakeChatAPI:
    """The server, from `with` to its end.

    model: the one that it lists. key: the one that it takes; None for any. mistral: whether
    thinking comes as chunks.
    """

    def __init__(
        self, answer: Answer, *, model: str = "tiny", key: str | None = None, mistral: bool = False
    ) -> None:
        self.answer, self.model, self.key, self.mistral = answer, model, key, mistral
        self.requests: list[dict[str, Any]] = []

    def __enter__(self) -> FakeChatAPI:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.api = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def base(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The address up to /v1."""
        return f"{self.base}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> FakeChatAPI:
        return self.server.api  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        if self._allowed():
            self._send(200, {"object": "list", "data": [{"id": self.api.model}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.api.requests.append(body)
        prompt = "\n".join(_text(message["content"]) for message in body["messages"])
        thinking, text = self.api.answer(prompt)
        usage = {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60}
        if body.get("stream"):
            self._stream(thinking, text, usage)
            return
        message = {"role": "assistant", **self._whole(thinking, text)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send(200, self._envelope("chat.completion", choice, usage))

    def _whole(self, thinking: str, text: str) -> dict[str, Any]:
        if not self.api.mistral:
            return {"content": text, "reasoning_content": thinking}
        return {"content": [_chunk(thinking), {"type": "text", "text": text}]}

    def _stream(self, thinking: str, text: str, usage: dict[str, int]) -> None:
        if self.api.mistral:
            half = len(thinking) // 2
            deltas: list[dict[str, Any]] = [
                {"role": "assistant", "content": [_chunk(thinking[:half])]},
                {"content": [_chunk(thinking[half:])]},
                {"content": text},
            ]
        else:
            deltas = [
                {"role": "assistant", "content": "", "reasoning_content": thinking},
                {"content": text},
            ]
        deltas.append({"content": ""})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number, delta in enumerate(deltas):
            last = number == len(deltas) - 1
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
            event = self._envelope("chat.completion.chunk", choice, usage if last else None)
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _envelope(self, kind: str, choice: object, usage: object) -> dict[str, Any]:
        envelope = {"id": "answer-1", "object": kind, "created": 1, "model": self.api.model}
        return envelope | {"choices": [choice]} | ({"usage": usage} if usage else {})

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization")
        if self.api.key is None or given == f"Bearer {self.api.key}":
            return True
        self._send(401, {"message": "Unauthorized"})
        return False

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _chunk(thinking: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": thinking}], "closed": True}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or ())
