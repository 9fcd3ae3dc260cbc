"""A server behind the protocol of `worker`: any that answers like OpenAI's completions or chat.

python -m magistral_mlx.bench.remote URL MODEL KEY_VARIABLE

Raw completions are asked for where the server has them, as there no template is added; else chat
completions. What the server does not tell, the model's own tokenizer counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magistral_mlx.bench.worker import serve
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.hub import find_tokenizer
from magistral_mlx.hub.client import http_module

_PATIENCE = 600.0  # seconds between two tokens
MOST_AT_ONCE = 256
_EXTRAS = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_NO_SUCH_PATH = (404, 405, 501)
_BAD_FIELD = (400, 422)


@dataclass(frozen=True)
class _Answer:
    """times: seconds from the request to each piece of the answer. written: tokens of it. prompt:
    tokens that were read for it. reported: tokens read, and written, per second, as llama-server
    and this package's server report them; None of others."""

    times: list[float]
    written: int
    prompt: int
    reported: tuple[float, float] | None


class RemoteServer:
    """A server at `url`, which ends in /v1 or the like.

    model: its name there; empty for the first one listed. key: the API key; empty for none.
    """

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        self._url, self.model = url.rstrip("/"), model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        http = http_module()
        limits = http.Limits(max_connections=MOST_AT_ONCE)
        self._client = http.Client(headers=headers, timeout=_PATIENCE, limits=limits)
        self._raw, self._extras = True, dict(_EXTRAS)
        self._tokenizer: Tokenizer | None = None

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

    def load(self, folder: str, dtype: str | None = None, **_: Any) -> dict[str, Any]:
        """Read the tokenizer of the checkpoint, which counts what the server does not."""
        begin = time.perf_counter()
        self.check()
        self._tokenizer = Tokenizer.load(find_tokenizer(Path(folder)))
        return {"seconds": time.perf_counter() - begin, "held": 0, "mlx": None}

    def generate(self, text: str, count: int, **_: Any) -> dict[str, Any]:
        """Send a prompt, and time the `count` tokens that come; see `worker.generate`.

        prompt: tokens that the server had to read. reported: those, and generated ones, per second
        by its own clock; None where it does not tell.

        Raises:
            BenchmarkError: the server refused, or ended too early to be measured.
        """
        answer = self._answer(text, count)
        if answer.written < 2:
            raise BenchmarkError(f"it ended after {answer.written} of {count} tokens")
        if len(answer.times) < 2:
            raise BenchmarkError(f"it sent {answer.written} tokens at once, which tells no speed")
        pieces = len(answer.times)  # of about as many tokens each
        step = (answer.times[-1] - answer.times[0]) / (answer.written * (pieces - 1) / pieces)
        return {
            "prompt": answer.prompt,
            "reported": answer.reported,
            "first": answer.times[0],
            "steps": [step] * (answer.written - 1),
            "peak": None,
        }

    def together(self, texts: Sequence[str], count: int) -> dict[str, Any]:
        """Send all prompts at once; return seconds, tokens in all, and each one's first token.

        Raises:
            BenchmarkError: the server refused one, or answered nothing.
        """
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(texts)) as pool:
            answers = list(pool.map(lambda text: self._answer(text, count), texts))
        if not all(answer.times for answer in answers):
            raise BenchmarkError("it left a request without an answer")
        return {
            "seconds": time.perf_counter() - begin,
            "tokens": sum(answer.written for answer in answers),
            "first": [answer.times[0] for answer in answers],
        }

    def _answer(self, text: str, count: int) -> _Answer:
        assert self._tokenizer is not None, "it is loaded first"
        begin = time.perf_counter()
        times: list[float] = []
        parts: list[str] = []
        usage: dict[str, Any] = {}
        timings: dict[str, Any] = {}
        for chunk in self._stream(text, count):
            found = "".join(_text_of(choice) for choice in chunk.get("choices") or ())
            if found:
                times.append(time.perf_counter() - begin)
                parts.append(found)
            usage = chunk.get("usage") or usage
            timings = chunk.get("timings") or timings
        written = usage.get("completion_tokens")
        if written is None:
            written = len(self._tokenizer.encode("".join(parts)))
        prompt = usage.get("prompt_tokens")
        if prompt is None:
            prompt = len(self._tokenizer.encode(text)) + 1
        return _Answer(times, written, max(1, prompt - _cached(usage)), _rates(timings))

    def _stream(self, text: str, count: int) -> Iterator[dict[str, Any]]:
        """Ask for an answer -> its chunks. What the server does not take is left out for good."""
        while True:
            raw, extras = self._raw, self._extras  # other threads may change them meanwhile
            path, body = "/chat/completions", {"messages": [{"role": "user", "content": text}]}
            if raw:
                path, body = "/completions", {"prompt": text}  # type: ignore[dict-item]
            body |= {"model": self.model, "max_tokens": count, "temperature": 0, "stream": True}  # type: ignore[dict-item]
            request = self._client.build_request("POST", self._url + path, json=body | extras)
            response = self._client.send(request, stream=True)
            try:
                if response.status_code == 200:
                    yield from _events(response.iter_lines())
                    return
                answer = response.read().decode(errors="replace")
            finally:
                response.close()
            if raw and response.status_code in _NO_SUCH_PATH:
                self._raw = False
            elif extras and response.status_code in _BAD_FIELD:
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


def _text_of(choice: Mapping[str, Any]) -> str:
    """Return what a chunk brings of the answer or of the thinking; empty for nothing."""
    delta = choice.get("delta") or choice
    names = ("text", "content", "reasoning_content", "reasoning", "thinking")
    return next((_plain(delta[name]) for name in names if delta.get(name)), "")


def _plain(content: Any) -> str:
    """Return text, or the text of a list of parts, such as Mistral's thinking."""
    if isinstance(content, list):
        return "".join(_text_of(part) for part in content if isinstance(part, dict))
    return str(content)


def _rates(timings: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the tokens per second of prefill and decode that a server reports, if both."""
    prefill, decode = timings.get("prompt_per_second"), timings.get("predicted_per_second")
    return (float(prefill), float(decode)) if prefill and decode else None


def _cached(usage: Mapping[str, Any]) -> int:
    """Return the tokens of a prompt that came from a cache."""
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


if __name__ == "__main__":
    url, model, variable = sys.argv[1:]
    remote = RemoteServer(url, model, os.environ.get(variable, ""))
    tasks = ("load", "generate", "together")
    serve(remote, {task: getattr(RemoteServer, task) for task in tasks})
