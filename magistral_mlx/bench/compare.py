"""Ours beside its peers, on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magistral_mlx.bench.conditions import read_conditions
from magistral_mlx.bench.process import Program, RuntimeProcess
from magistral_mlx.bench.rounds import ENOUGH, MOST, Figure
from magistral_mlx.errors import BenchmarkError

_CHECKED = 16  # tokens that peers must answer as we do before they are timed
_AT_LEAST = 4  # of them where rounding differs: after a near-tie two answers go apart
_WARM_UP = 4  # tokens generated before a context is measured
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """What is measured.

    folder: the checkpoint. contexts: tokens of each prompt. count: tokens generated after it.
    dtype: what peers widen their floats to, None for none. exact: the backend computes alike to
    the last bit, so answers must be the same. most: rounds at most. warm_up: tokens of a prompt
    that are enough to warm up with, None for all of it.
    """

    folder: Path
    contexts: Sequence[int]
    count: int
    vocabulary: int
    dtype: str | None
    exact: bool
    most: int = MOST
    warm_up: int | None = None


@dataclass(frozen=True)
class Speed:
    """One runtime at one context. Prefill and decode in tokens per second, first in seconds."""

    label: str
    context: int
    prefill: Figure
    decode: Figure
    first: Figure
    peak: int  # bytes of MLX

    @property
    def steady(self) -> bool:
        return self.prefill.steady and self.decode.steady and self.first.steady


@dataclass
class Comparison:
    """All speeds, the runtimes that were left out and why, and what disturbed the runs.

    took_turns: all runtimes were loaded at once, so that what slowed a round slowed all of them.
    """

    took_turns: bool
    speeds: list[Speed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    disturbances: set[str] = field(default_factory=set)
    equal_tokens: dict[str, int] = field(default_factory=dict)  # of a peer, before it went apart
    mlx_versions: dict[str, str] = field(default_factory=dict)  # of MLX, in each environment


def compare(
    programs: Sequence[Program], work: Workload, *, together: bool, on_stage: OnStage
) -> Comparison:
    """Measure the first program, ours, and the others beside it.

    Args:
        together: all are loaded at once and take turns; otherwise one after the other.
        on_stage: told what happens next.

    Raises:
        BenchmarkError: ours failed.
    """
    result = Comparison(together)
    expected: list[int] = []
    groups = [list(programs)] if together else [[program] for program in programs]
    for group in groups:
        with ExitStack() as stack:
            workers = []
            for program in group:
                on_stage(f"loading {program.label}")
                worker = stack.enter_context(RuntimeProcess(program))
                if _answers(worker, work, expected, result, is_ours=program is programs[0]):
                    workers.append(worker)
                else:
                    worker.close()
            bench = _Bench(workers, programs[0], work, result, on_stage)
            for context in work.contexts:
                result.speeds += bench.speeds(context)
    if len(groups) > 1:
        _check_drift(programs[0], work, result, on_stage)
    return result


def _check_drift(ours: Program, work: Workload, result: Comparison, on_stage: OnStage) -> None:
    """Measure ours once more: without turns, the last ones may have met a warmer machine."""
    with RuntimeProcess(ours) as worker:
        worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        last = _Bench([worker], ours, work, result, on_stage).speeds(work.contexts[0])[0]
    change = last.decode.median / result.speeds[0].decode.median - 1
    if abs(change) > ENOUGH:
        kind = "faster" if change > 0 else "slower"
        result.disturbances.add(f"{ours.label} was {abs(change):.0%} {kind} at the end")


def _answers(
    worker: RuntimeProcess,
    work: Workload,
    expected: list[int],
    result: Comparison,
    *,
    is_ours: bool,
) -> bool:
    """Load, and see whether it answers as ours does; `expected` is set by ours."""
    try:
        loaded = worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        result.mlx_versions[worker.program.label] = loaded["mlx"]
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


@dataclass
class _Bench:
    """Workers that take turns. A peer that fails is named, closed and left out from then on."""

    workers: list[RuntimeProcess]
    ours: Program
    work: Workload
    result: Comparison
    on_stage: OnStage

    def speeds(self, context: int) -> list[Speed]:
        """One context, all workers in turn, until the figures are steady.

        Raises:
            BenchmarkError: ours failed.
        """
        for worker in list(self.workers):
            self._warm_up(worker, context)
        answers: dict[str, list[dict[str, Any]]] = {}
        for done in range(1, self.work.most + 1):
            for worker in list(self.workers):
                answer = self._generate(worker, context, f"round {done}", count=self.work.count)
                if answer is not None:
                    answers.setdefault(worker.program.label, []).append(answer)
            self.result.disturbances |= set(read_conditions(working=True).disturbances)
            speeds = [
                _speed(worker.program.label, context, answers[worker.program.label])
                for worker in self.workers
            ]
            if all(speed.steady for speed in speeds):
                break
        return speeds

    def _warm_up(self, worker: RuntimeProcess, context: int) -> None:
        """Have kernels made for prompts of this length, so that no round pays for them."""
        prompt = min(context, self.work.warm_up or context)
        self._generate(worker, prompt, "warming up", count=_WARM_UP)

    def _generate(
        self, worker: RuntimeProcess, context: int, stage: str, count: int
    ) -> dict[str, Any] | None:
        """The worker's answer; None from a peer that failed, which takes no more turns."""
        label, work = worker.program.label, self.work
        self.on_stage(f"{context:,} tokens, {label}, {stage}")
        try:
            return worker.ask("generate", prompt=context, count=count, vocabulary=work.vocabulary)
        except BenchmarkError as error:
            if worker.program is self.ours:
                raise
            self.result.left_out[label] = f"at {context:,} tokens: {error}"
            self.workers.remove(worker)
            worker.close()
            return None


def _speed(label: str, context: int, answers: list[dict[str, Any]]) -> Speed:
    """The figures of a runtime's answers, one a round."""
    first = [answer["first"] for answer in answers]
    return Speed(
        label,
        context,
        prefill=Figure.of([context / seconds for seconds in first]),
        decode=Figure.of([decode_rate(answer) for answer in answers]),
        first=Figure.of(first),
        peak=max(answer["peak"] for answer in answers),
    )


def decode_rate(answer: dict[str, Any]) -> float:
    """Tokens per second after the first one."""
    return len(answer["steps"]) / sum(answer["steps"])
