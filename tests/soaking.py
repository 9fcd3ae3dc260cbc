"""Many clients at once against a live server, some of which hang up in the midst of an answer.

What each gets is held against what the same request got alone. Used by a test in the suite and, at
full size, by `benchmarks.soak`.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.serving import CHAT

_WORDS = ("red", "blue", "circle", "square", "three", "seven", "and", "of", "the", "on")
_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Ask:
    """One request. `leave_after` chunks it hangs up; 0 is right after asking, None never."""

    question: str
    temperature: float
    seed: int
    max_tokens: int
    stream: bool
    leave_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": self.question}],
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "stream": self.stream,
        }

    @property
    def key(self) -> tuple[object, ...]:
        """Requests with the same key have the same answer."""
        return self.question, self.temperature, self.seed, self.max_tokens


@dataclass
class Got:
    """What came of a request. `whole` tells that it came to its end."""

    thinking: str = ""
    text: str = ""
    finish_reason: str | None = None
    whole: bool = False
    refused: int = 0  # times it was told to come again
    seconds: float = 0.0

    @property
    def said(self) -> str:
        return f"{self.thinking}\0{self.text}" if self.text else self.thinking


@dataclass
class Outcome:
    """All of a soak: what was asked, what was got, and what was wrong."""

    asked: list[Ask]
    got: list[Got]
    seconds: float
    mistakes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        kinds = ("whole" if got.whole else "left" for got in self.got)
        return Counter(kinds) + Counter({"refused": sum(got.refused for got in self.got)})


def questions(
    count: int, distinct: int, seed: int, *, leaving: float = 0.3, long: float = 0.0
) -> list[Ask]:
    """`count` requests, `distinct` of them different.

    Args:
        leaving: share of those who hang up.
        long: share of those who send a document along, of up to 2,000 words.
    """
    draw = random.Random(seed)

    def document() -> str:
        words = draw.randrange(2000) if draw.random() < long else 0
        return " ".join(draw.choice(_WORDS) for _ in range(words))

    kinds = [
        (
            f"{document()} What is {draw.randrange(1000)} + {draw.randrange(1000)}?".lstrip(),
            draw.choice((0.0, 0.7)),
            draw.randrange(1 << 31),
            draw.choice((6, 20, 64)),
        )
        for _ in range(distinct)
    ]
    asks = []
    for _ in range(count):
        leave_after = draw.randrange(12) if draw.random() < leaving else None
        asks.append(Ask(*draw.choice(kinds), stream=draw.random() < 0.6, leave_after=leave_after))
    return asks


def alone(port: int, asks: Sequence[Ask]) -> dict[tuple[object, ...], Got]:
    """The answer of each different request, one after the other."""
    answers: dict[tuple[object, ...], Got] = {}
    for ask in asks:
        if ask.key not in answers:
            answers[ask.key] = send(port, Ask(*ask.key, stream=False))  # type: ignore[arg-type]
    return answers


def soak(
    port: int, asks: Sequence[Ask], clients: int, expected: dict[tuple[object, ...], Got]
) -> Outcome:
    """Ask all of it, `clients` at once, and compare."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        got = list(pool.map(lambda ask: send(port, ask), asks))
    outcome = Outcome(list(asks), got, time.perf_counter() - start)
    for ask, answer in zip(asks, got, strict=True):
        alone = expected[ask.key]
        if ask.leave_after is None and not answer.whole:
            outcome.mistakes.append(f"lost: {ask}")
        elif answer.whole and (answer.said, answer.finish_reason) != (
            alone.said,
            alone.finish_reason,
        ):
            outcome.mistakes.append(f"mixed up: {ask} got {answer}, alone {alone}")
        elif not answer.whole and not alone.said.startswith(answer.said):
            outcome.mistakes.append(f"mixed up: {ask} began with {answer}, alone {alone}")
    return outcome


def send(port: int, ask: Ask) -> Got:
    """Ask until there is a place, and read to the end or hang up before."""
    got = Got()
    start = time.perf_counter()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            connection.request("POST", CHAT, json.dumps(ask.body), _HEADERS)
            if ask.leave_after == 0:
                return got
            if not ask.stream and ask.leave_after is not None:
                return got
            response = connection.getresponse()
            if response.status == 429:
                got.refused += 1
                wait = int(response.headers["Retry-After"])
                response.read()
            elif response.status != 200:
                raise AssertionError(f"{ask}: {response.status} {response.read()!r}")
            else:
                _read(response, ask, got)
                return got
        finally:
            connection.close()
            got.seconds = time.perf_counter() - start
        time.sleep(wait)


def _read(response: http.client.HTTPResponse, ask: Ask, got: Got) -> None:
    if not ask.stream:
        choice = json.loads(response.read())["choices"][0]
        _add(choice["message"], got)
        got.finish_reason, got.whole = choice["finish_reason"], True
        return
    for n, chunk in enumerate(_chunks(response)):
        if chunk is None:
            got.whole = True
            return
        for choice in chunk["choices"]:
            _add(choice["delta"], got)
            got.finish_reason = choice["finish_reason"] or got.finish_reason
        if ask.leave_after is not None and n >= ask.leave_after:
            return


def _add(said: dict[str, Any], got: Got) -> None:
    got.thinking += said.get("reasoning_content") or ""
    got.text += said.get("content") or ""


def _chunks(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Chunks as they come, then None for the end."""
    for line in iter(response.readline, b""):
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield None if data == b"[DONE]" else json.loads(data)
