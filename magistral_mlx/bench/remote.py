"""A server behind the protocol of `worker`: any that answers like OpenAI's completions or chat.

python -m magistral_mlx.bench.remote URL MODEL KEY_VARIABLE

Prompts are random words that the model's own tokenizer counts, new ones each time, so that no
cached prefix answers for the server. Raw completions are asked for where the server has them, as
there no template is added; else chat completions.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magistral_mlx.bench.worker import serve
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.hub.client import http_module

_PATIENCE = 600.0  # seconds between two tokens
_FEWEST_WORDS = 16
_EXTRAS = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_NO_SUCH_PATH = (404, 405, 501)
_BAD_FIELD = (400, 422)


class RemoteServer:
    """A server at `url`, which ends in /v1 or the like.

    model: its name there; empty for the first one listed. key: the API key; empty for none.
    """

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        self._url, self.model = url.rstrip("/"), model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = http_module().Client(headers=headers, timeout=_PATIENCE)
        self._raw, self._extras = True, dict(_EXTRAS)
        self._words: list[str] = []
        self._random = random.Random()  # without a seed: no two runs share a prompt

    def check(self) -> None:
        """Find the model.

        Raises:
            BenchmarkError: the server does not answer, or has no such model.
        """
        http = http_module()
        try:
            response = self._client.get(f"{self._url}/models", timeout=10)
        except (http.HTTPError, http.InvalidURL) as error:
            raise BenchmarkError(
                f"{self._url} does not answer ({str(error) or type(error).__name__}). Start the "
                "server, or give its address up to /v1."
            ) from None
        if response.status_code in (401, 403):
            raise BenchmarkError(
                f"{self._url} wants an API key. Name the variable that holds it by --api-key-env."
            )
        try:
            names = [model["id"] for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise BenchmarkError(
                f"{self._url}/models lists no models (status {response.status_code}). Give the "
                "address up to /v1."
            ) from None
        if not names or (self.model and self.model not in names):
            raise BenchmarkError(
                f"{self._url} has no model {self.model or 'at all'}; it lists "
                f"{', '.join(names) or 'none'}. Load it there first."
            )
        self.model = self.model or names[0]

    def load(self, folder: str, dtype: str | None = None) -> dict[str, Any]:
        """Read the tokenizer of the checkpoint, which counts what is sent."""
        begin = time.perf_counter()
        self.check()
        tokenizer = Tokenizer.load(Path(folder))
        pieces = (tokenizer.token_bytes(id) for id in range(1000, tokenizer.vocab_size))
        self._words = [piece.decode() for piece in pieces if _is_word(piece)]
        if len(self._words) < _FEWEST_WORDS:
            raise BenchmarkError("the tokenizer has too few words to make prompts of")
        return {"seconds": time.perf_counter() - begin, "held": 0, "mlx": None}

    def generate(self, prompt: int, count: int, **_: Any) -> dict[str, Any]:
        """Send `prompt` words, and time the `count` tokens that come; see `worker.generate`.

        Raises:
            BenchmarkError: the server refused, or ended too early to be measured.
        """
        text = "".join(self._random.choices(self._words, k=prompt))
        begin = time.perf_counter()
        times: list[float] = []
        usage: dict[str, int] = {}
        for chunk in self._stream(text, count):
            if any(_text_of(choice) for choice in chunk.get("choices") or ()):
                times.append(time.perf_counter())
            usage = chunk.get("usage") or usage
        written = usage.get("completion_tokens", len(times))
        if len(times) < 2 or written < 2:
            raise BenchmarkError(f"it ended after {written} of {count} tokens")
        step = (times[-1] - times[0]) / (written - 1)
        return {
            "prompt": usage.get("prompt_tokens", prompt),
            "first": times[0] - begin,
            "steps": [step] * (written - 1),
            "peak": None,
        }

    def _stream(self, text: str, count: int) -> Iterator[dict[str, Any]]:
        """Ask for an answer -> its chunks. What the server does not take is left out for good."""
        while True:
            path, body = "/chat/completions", {"messages": [{"role": "user", "content": text}]}
            if self._raw:
                path, body = "/completions", {"prompt": text}  # type: ignore[dict-item]
            body |= {"model": self.model, "max_tokens": count, "temperature": 0, "stream": True}  # type: ignore[dict-item]
            request = self._client.build_request("POST", self._url + path, json=body | self._extras)
            response = self._client.send(request, stream=True)
            try:
                if response.status_code == 200:
                    yield from _events(response.iter_lines())
                    return
                answer = response.read().decode(errors="replace")
            finally:
                response.close()
            if self._raw and response.status_code in _NO_SUCH_PATH:
                self._raw = False
            elif self._extras and response.status_code in _BAD_FIELD:
                self._extras = {}
            else:
                raise BenchmarkError(f"status {response.status_code}, {answer[:200]}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events.

    Raises:
        BenchmarkError: one of them is an error.
    """
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise BenchmarkError(str(event["error"])[:200])
        yield event


def _text_of(choice: dict[str, Any]) -> Any:
    """Return what a chunk brings of the answer or of the thinking; falsy for nothing."""
    delta = choice.get("delta") or choice
    names = ("text", "content", "reasoning_content", "reasoning", "thinking")
    return next((delta[name] for name in names if delta.get(name)), None)


def _is_word(piece: bytes) -> bool:
    return len(piece) > 3 and piece[:1] == b" " and piece[1:].isalpha() and piece.islower()


if __name__ == "__main__":
    url, model, variable = sys.argv[1:]
    remote = RemoteServer(url, model, os.environ.get(variable, ""))
    serve(remote, {"load": RemoteServer.load, "generate": RemoteServer.generate})
