"""Several answers at once against one after the other: tokens a second, and memory.

    python -m benchmarks.batch [--full] [--model FOLDER]

The mid-size model at 4 bits through the Python API. 1, 2, 6 and, with --full, 4 and 8 requests with
prompts of their own come at once; the same ones are asked one after the other in the same round.
Every answer has the same number of tokens, greedily drawn, and must be the same both ways: where
one is not, there is no gain to tell, and the status at the end is not 0. Tokens a second count all
that is waited for, prompts included. "Each" is the decoding of one answer while others are written,
"limit" what memory allows it: together they read the weights once, and every cache, at the
bandwidth measured in the same run. The prediction of memory is what lets requests in: it must not
be below the measurement.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import (
    OURS_COLOUR,
    Figure,
    Record,
    console,
    interleave,
    options,
    ratio,
    ratios,
    show,
)
from benchmarks.midsize import midsize
from magistral_mlx import Magistral, Result
from magistral_mlx.backend import backend
from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.record import bytes_per_token
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory.peak import Shape, cache_bytes, pass_bytes, prefill_bytes, row_bytes
from magistral_mlx.memory.plan import Plan

COUNTS, ALL_COUNTS = (1, 2, 6), (1, 2, 4, 6, 8)
GREEDY: dict[str, Any] = {
    "temperature": 0,
    "thinking": "off",
    "system": None,
    "speculation": "off",  # it is for one that decodes alone
    "logit_bias": {2: -100},  # nothing ends before its last token
}


class Requests:
    """Requests that are asked at once, or one after the other."""

    def __init__(self, magistral: Magistral, count: int, tokens: int) -> None:
        self.count = count
        self.tokens = tokens
        self.prompts = [f"{n} {'how does it go on? ' * 8}" for n in range(count)]
        self.answers: dict[str, list[str]] = {}
        self.each: list[float] = []  # tokens a second of each answer while others were given
        self.peak = 0
        self._magistral = magistral

    def together(self) -> float:
        """Tokens a second, of all."""
        return self._measure("together", self._ask_together)

    def in_turn(self) -> float:
        return self._measure("in turn", self._ask_in_turn)

    def _measure(self, way: str, ask: Callable[[], list[Result]]) -> float:
        self._magistral.release_memory()  # or prompts were in the caches the second time
        start = time.perf_counter()
        results = ask()
        seconds = time.perf_counter() - start
        if way == "together":
            self.each += [result.stats.decode_tokens_per_second for result in results]
            self.peak = max(self.peak, *(result.stats.peak_memory for result in results))
        written = [result.text for result in results]
        if self.answers.setdefault(way, written) != written:
            raise SystemExit(f"The same requests {way} gave other answers.")
        assert all(result.stats.completion_tokens == self.tokens for result in results)
        return self.count * self.tokens / seconds

    def _ask_together(self) -> list[Result]:
        streams = [
            self._magistral.stream(prompt, max_tokens=self.tokens, **GREEDY)
            for prompt in self.prompts
        ]
        return [stream.result() for stream in streams]

    def _ask_in_turn(self) -> list[Result]:
        return [
            self._magistral.generate(prompt, max_tokens=self.tokens, **GREEDY)
            for prompt in self.prompts
        ]

    @property
    def same(self) -> int:
        """Answers that are the same both ways."""
        pairs = zip(self.answers["together"], self.answers["in turn"], strict=True)
        return sum(one == other for one, other in pairs)

    def prompt_tokens(self) -> list[int]:
        return [
            len(self._magistral.prompt(prompt, system=None, thinking="off"))
            for prompt in self.prompts
        ]

    def predicted(self) -> int:
        """Bytes of the largest footprint, as requests are let in by it."""
        requests = [(prompt, self.tokens) for prompt in self.prompt_tokens()]
        return footprint(self._magistral.plan, requests)

    def bytes_per_pass(self, checkpoint: Checkpoint) -> int:
        """Bytes that one token of every answer reads, half-way: the weights once, all caches."""
        scheme, size = self._magistral.plan.scheme, backend().dtype.size
        weights = bytes_per_token(checkpoint, 0, scheme, size)
        held = [prompt + self.tokens // 2 for prompt in self.prompt_tokens()]
        caches = [bytes_per_token(checkpoint, tokens, scheme, size) - weights for tokens in held]
        return weights + sum(caches)


def footprint(plan: Plan, requests: list[tuple[int, int]]) -> int:
    """Bytes of weights, caches and work of requests that run at once, (prompt, answer) tokens."""
    text, scheme, profile = plan.model.config.text, plan.scheme, plan.profile
    lengths = [prompt + answer for prompt, answer in requests]
    caches = sum(cache_bytes(text, scheme, tokens, profile.float_bytes) for tokens in lengths)
    rows = sum(row_bytes(text, scheme, tokens, profile) for tokens in lengths)
    shapes = [Shape(prompt, 0, plan.chunk) for prompt, _ in requests]
    filling = max(prefill_bytes(plan.model.config, scheme, shape, profile) for shape in shapes)
    together = pass_bytes(text, len(requests), profile)
    return plan.model.weights.decoder + caches + rows + max(filling, together)


def main() -> None:
    given = options(__doc__ or "", model={"type": Path, "help": "another checkpoint"})
    tokens = 64 if given.full else 16
    record = Record("batch")
    results: dict[int, dict[str, Any]] = {}
    checkpoint = Checkpoint.open(given.model or midsize())
    bandwidth = measure_bandwidth()
    with Magistral.load(checkpoint.folder, images=0) as magistral:
        magistral.generate("Hello", max_tokens=8, **GREEDY)
        for count in ALL_COUNTS if given.full else COUNTS:
            console.print(f"{count} at once", style="dim")
            asked = Requests(magistral, count, tokens)
            figures = interleave(
                {"together": asked.together, "in turn": asked.in_turn}, given.rounds
            )
            same = asked.same == count
            gain = ratios(figures["together"].values, figures["in turn"].values)
            results[count] = figures | {
                "gain": gain if same else None,
                "each": Figure.of(asked.each),
                "limit": bandwidth / asked.bytes_per_pass(checkpoint),
                "measured": asked.peak,
                "predicted": asked.predicted(),
                "same": asked.same,
            }
    _show(results)
    _plot(record, given.out, results)
    record.save(given.out, tokens=tokens, bandwidth=bandwidth, results=results)
    different = [str(count) for count, row in results.items() if row["same"] != count]
    if different:
        sys.exit(f"answers were not the same together and in turn: {', '.join(different)} at once")


def _show(results: dict[int, dict[str, Any]]) -> None:
    rows = []
    for count, row in results.items():
        together, in_turn, each = (row[kind].median for kind in ("together", "in turn", "each"))
        memory = [f"{row[kind] / 1e6:,.0f} MB" for kind in ("measured", "predicted")]
        speeds = [f"{value:.1f}" for value in (together, in_turn, each, row["limit"])]
        rows.append(
            [
                count,
                *speeds,
                f"{each / row['limit']:.1%}",
                ratio(row["together"], row["in turn"]) if row["gain"] else "",
                *memory,
                f"{row['same']} of {count}",
            ]
        )
    header = [
        "at once",
        "tokens/s in all",
        "in turn",
        "each",
        "limit",
        "share",
        "gain",
        "memory",
        "predicted",
        "same",
    ]
    show("Several answers at once", header, rows)


def _plot(record: Record, out: Path, results: dict[int, dict[str, Any]]) -> None:
    with record.plot(out, panels=2, title="Several answers at once, mid-size model") as axes:
        counts = list(results)
        for name, colour in (("together", OURS_COLOUR), ("in turn", "#868e96")):
            values = [row[name].median for row in results.values()]
            axes[0].plot(counts, values, marker="o", color=colour, label=name)
        axes[0].set(xlabel="requests at once", ylabel="tokens/s in all", ylim=(0, None))
        axes[0].legend(frameon=False, fontsize=8)
        for kind, style in (("measured", "-"), ("predicted", ":")):
            values = [row[kind] / 1e6 for row in results.values()]
            axes[1].plot(counts, values, style, marker="o", color=OURS_COLOUR, label=kind)
        axes[1].set(xlabel="requests at once", ylabel="peak memory in MB", ylim=(0, None))
        axes[1].legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
