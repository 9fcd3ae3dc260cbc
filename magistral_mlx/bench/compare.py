"""Ours beside its peers, on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magistral_mlx.bench.conditions import read_conditions
from magistral_mlx.bench.process import Program, Worker
from magistral_mlx.bench.rounds import ENOUGH, MOST, Figure, repeat
from magistral_mlx.errors import BenchmarkError

_CHECKED = 16  # tokens that peers must answer as we do before they are timed
_AT_LEAST = 4  # of them where rounding differs: after a near-tie two answers go apart
OnRound = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What is measured.

    folder: the checkpoint. contexts: tokens of each prompt. count: tokens generated after it.
    dtype: what peers widen their floats to, None for none. exact: the backend computes alike to
    the last bit, so answers must be the same. most: rounds at most.
    """

    folder: Path
    contexts: Sequence[int]
    count: int
    vocabulary: int
    dtype: str | None
    exact: bool
    most: int = MOST


@dataclass(frozen=True)
class Speed:
    """One runtime at one context. Prefill and decode in tokens per second, first in seconds."""

    label: str
    context: int
    prefill: Figure
    decode: Figure
    first: Figure
    peak: int  # bytes of MLX


@dataclass
class Comparison:
    """All speeds, the runtimes that were left out and why, and what disturbed the runs."""

    speeds: list[Speed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    disturbances: set[str] = field(default_factory=set)
    equal_tokens: dict[str, int] = field(default_factory=dict)  # of a peer, before it went apart


def compare(
    programs: Sequence[Program], work: Work, *, together: bool, on_round: OnRound
) -> Comparison:
    """Measure the first program, ours, and the others beside it.

    Args:
        together: all are loaded at once and take turns; otherwise one after the other.
        on_round: told what happens next.

    Raises:
        BenchmarkError: ours failed.
    """
    result = Comparison()
    expected: list[int] = []
    groups = [list(programs)] if together else [[program] for program in programs]
    for group in groups:
        with ExitStack() as stack:
            workers = []
            for program in group:
                on_round(f"loading {program.label}")
                worker = stack.enter_context(Worker(program))
                if _answers(worker, work, expected, result, is_ours=program is programs[0]):
                    workers.append(worker)
            for context in work.contexts if workers else ():
                result.speeds += _speeds(workers, work, context, result, on_round)
    if len(groups) > 1:
        _check_drift(programs[0], work, result, on_round)
    return result


def _check_drift(ours: Program, work: Work, result: Comparison, on_round: OnRound) -> None:
    """Measure ours once more: without turns, the last ones may have met a warmer machine."""
    with Worker(ours) as worker:
        worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        last = _speeds([worker], work, work.contexts[0], result, on_round)[0]
    change = last.decode.median / result.speeds[0].decode.median - 1
    if abs(change) > ENOUGH:
        kind = "faster" if change > 0 else "slower"
        result.disturbances.add(f"{ours.label} was {abs(change):.0%} {kind} at the end")


def _answers(
    worker: Worker, work: Work, expected: list[int], result: Comparison, *, is_ours: bool
) -> bool:
    """Load, and see whether it answers as ours does; `expected` is set by ours."""
    try:
        worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        prompt = min(_CHECKED, *work.contexts)
        answer = worker.ask(
            "generate", prompt=prompt, count=_CHECKED, vocabulary=work.vocabulary, seed=1
        )
    except BenchmarkError as error:
        if is_ours:
            raise
        result.left_out[worker.program.label] = str(error)
        return False
    if is_ours:
        expected += answer["ids"]
        return True
    equal = equal_start(expected, answer["ids"])
    result.equal_tokens[worker.program.label] = equal
    if equal < (_CHECKED if work.exact else _AT_LEAST):
        result.left_out[worker.program.label] = (
            f"it computes something else: of {_CHECKED} greedy tokens the first {equal} are ours."
        )
        return False
    return True


def equal_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens at the start are the same."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return place
    return len(ours)


def _speeds(
    workers: list[Worker], work: Work, context: int, result: Comparison, on_round: OnRound
) -> list[Speed]:
    """One context, all workers in turn, until the figures are steady."""
    peaks: dict[str, int] = {}
    rounds = 0

    def measure() -> list[float]:
        nonlocal rounds
        rounds += 1
        values: list[float] = []
        for worker in workers:
            on_round(f"{context:,} tokens, {worker.program.label}, round {rounds}")
            answer = _generate(worker, work, context)
            peaks[worker.program.label] = answer["peak"]
            values += [context / answer["first"], decode_rate(answer), answer["first"]]
        result.disturbances |= set(read_conditions(working=True).disturbances)
        return values

    for worker in workers:
        on_round(f"{context:,} tokens, {worker.program.label}, warming up")
        _generate(worker, work, min(context, 16), count=4)
    columns = [Figure.of(values) for values in zip(*repeat(measure, most=work.most), strict=True)]
    speeds = []
    for n, worker in enumerate(workers):
        prefill, decode, first = columns[3 * n : 3 * n + 3]
        label = worker.program.label
        speeds.append(Speed(label, context, prefill, decode, first, peaks[label]))
    return speeds


def _generate(worker: Worker, work: Work, context: int, count: int | None = None) -> dict[str, Any]:
    tokens = work.count if count is None else count
    return worker.ask("generate", prompt=context, count=tokens, vocabulary=work.vocabulary)


def decode_rate(answer: dict[str, Any]) -> float:
    """Tokens per second after the first one."""
    return len(answer["steps"]) / sum(answer["steps"])
