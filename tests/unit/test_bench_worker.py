"""What the process of a runtime answers, whichever runtime it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magistral_mlx.backend import mx
from magistral_mlx.bench import worker


class Counting:
    """A runtime that notes what it is made to do, and sees numbers instead of images."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def start(self, tokens: list[int], filled: int) -> Iterator[int]:
        self.did.append(f"fill {filled}")
        return self._steps(tokens)

    def _steps(self, tokens: list[int]) -> Iterator[int]:
        self.did.append(f"prefill {len(tokens)}")
        yield from range(99)

    def see(self, count: int, side: int) -> mx.array:
        return mx.arange(count * 20).reshape(count, 20)


def test_filling_the_caches_counts_neither_as_time_nor_as_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    runtime = Counting()
    clock = worker.time.perf_counter
    monkeypatch.setattr(worker.time, "perf_counter", lambda: runtime.did.append("clock") or clock())
    monkeypatch.setattr(mx, "reset_peak_memory", lambda: runtime.did.append("reset"))
    answer = worker.generate(runtime, prompt=3, count=2, vocabulary=1280, filled=50)
    assert runtime.did[:5] == ["fill 50", "reset", "clock", "prefill 3", "clock"]
    assert answer["ids"] == [0, 1]


def test_images_are_answered_with_features_of_the_first_and_the_last():
    answer = worker.images(Counting(), count=2, side=196)
    assert answer["features"] == [*range(8), *range(20, 28)]
