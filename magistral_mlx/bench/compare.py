"""Comparison of this runtime with its peers, on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magistral_mlx.bench.conditions import read_conditions
from magistral_mlx.bench.process import Program, RuntimeProcess
from magistral_mlx.bench.prompts import WordPrompts
from magistral_mlx.bench.rounds import ENOUGH, MOST, Figure
from magistral_mlx.errors import BenchmarkError

_CHECKED = 16  # tokens in which peers must agree with us before they are timed
_AT_LEAST = 4  # of those, if rounding differs: after a near-tie two outputs diverge
_WARM_UP = 4  # tokens generated before a context is measured
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """The workload to measure.

    folder: the checkpoint. contexts: prompt lengths in tokens. count: tokens generated after each.
    dtype: dtype to which peers widen their floats, None for no change. exact: results are
    bit-identical on this backend, so outputs must be equal. most: largest number of rounds.
    warm_up: prompt tokens of the warm-up, None for the whole prompt. parallel: numbers of requests
    at once to measure as well.
    """

    folder: Path
    contexts: Sequence[int]
    count: int
    vocabulary: int
    dtype: str | None
    exact: bool
    most: int = MOST
    warm_up: int | None = None
    parallel: Sequence[int] = ()


@dataclass(frozen=True)
class Speed:
    """Speed of one runtime at one context: prefill and decode in tokens per second, time to first
    token in seconds."""

    label: str
    context: int
    prefill: Figure
    decode: Figure
    first: Figure
    peak: int | None  # bytes of MLX; None of a server, which does not tell
    reported: bool = False  # prefill and decode are by the server's own clock

    @property
    def steady(self) -> bool:
        return self.prefill.steady and self.decode.steady and self.first.steady


@dataclass(frozen=True)
class ParallelSpeed:
    """Speed of one runtime with several requests at once.

    rate: tokens per second of all answers, prompts included in the time. first: seconds to the
    first token, of each request of each round.
    """

    label: str
    requests: int
    context: int
    rate: Figure
    first: Figure


@dataclass
class Comparison:
    """All speeds, the runtimes that were left out with the reason, and disturbances.

    took_turns: all runtimes were loaded at once, so that a slow round affected all of them alike.
    equal_tokens: tokens in which a peer agreed with us. mlx_versions: MLX in each environment.
    """

    took_turns: bool
    speeds: list[Speed] = field(default_factory=list)
    parallel: list[ParallelSpeed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    disturbances: set[str] = field(default_factory=set)
    equal_tokens: dict[str, int] = field(default_factory=dict)
    mlx_versions: dict[str, str] = field(default_factory=dict)


def compare(
    programs: Sequence[Program], work: Workload, *, together: bool, on_stage: OnStage
) -> Comparison:
    """Measure the first program, which is ours, and the others.

    The prompts are random tokens, or words where a server is among them: it takes no tokens.

    Args:
        together: load all at once and let them take turns; otherwise one after the other.
        on_stage: called with a description of each stage.

    Raises:
        BenchmarkError: our runtime failed.
    """
    result = Comparison(together)
    words = any(program.remote for program in programs)
    prompts = WordPrompts(work.folder) if words else None
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
            bench = _Bench(workers, programs[0], work, result, on_stage, prompts)
            for context in work.contexts:
                result.speeds += bench.speeds(context)
    if len(groups) > 1:
        _check_drift(programs[0], work, result, on_stage, prompts)
    return result


def _check_drift(
    ours: Program,
    work: Workload,
    result: Comparison,
    on_stage: OnStage,
    prompts: WordPrompts | None,
) -> None:
    """Measure ours again: without turns, later runtimes may have run on a warmer machine."""
    with RuntimeProcess(ours) as worker:
        worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        bench = _Bench([worker], ours, work, result, on_stage, prompts)
        last = bench.speeds(work.contexts[0])[0]
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
    """Load the model and check that the output equals ours, which sets `expected`."""
    try:
        loaded = worker.ask("load", folder=str(work.folder), dtype=work.dtype)
        if worker.program.remote:  # its prompts are words, and its tokens its own
            return True
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
            f"its results differ: of {_CHECKED} greedy tokens the first {equal} equal ours."
        )
        return False
    return True


def equal_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return place
    return len(ours)


@dataclass
class _Bench:
    """Runtimes that take turns. A peer that fails is reported, closed and left out."""

    workers: list[RuntimeProcess]
    ours: Program
    work: Workload
    result: Comparison
    on_stage: OnStage
    prompts: WordPrompts | None = None

    def speeds(self, context: int) -> list[Speed]:
        """Measure one context with all runtimes in turn, until the figures are steady.

        Raises:
            BenchmarkError: our runtime failed.
        """
        for worker in list(self.workers):
            self._warm_up(worker, context)
        answers: dict[str, list[dict[str, Any]]] = {}
        for done in range(1, self.work.most + 1):
            for worker in list(self.workers):
                answer = self._generate(worker, context, done, count=self.work.count)
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
        """Have kernels compiled for prompts of this length before the first round."""
        prompt = min(context, self.work.warm_up or context)
        self._generate(worker, prompt, 0, count=_WARM_UP)

    def _generate(
        self, worker: RuntimeProcess, context: int, number: int, count: int
    ) -> dict[str, Any] | None:
        """Return the runtime's answer in a round, or in the warm-up, which has the number 0.

        None if a peer failed, which is then left out.
        """
        label, work = worker.program.label, self.work
        stage = f"round {number}" if number else "warming up"
        self.on_stage(f"{context:,} tokens, {label}, {stage}")
        asked: dict[str, Any] = {}
        if self.prompts is not None:
            text = self.prompts.text(context, number)
            remote = worker.program.remote
            asked = {"text": text} if remote else {"tokens": self.prompts.tokens(text)}
        try:
            return worker.ask(
                "generate", prompt=context, count=count, vocabulary=work.vocabulary, **asked
            )
        except BenchmarkError as error:
            if worker.program is self.ours:
                raise
            self.result.left_out[label] = f"at {context:,} tokens: {error}"
            self.workers.remove(worker)
            worker.close()
            return None


def _speed(label: str, context: int, answers: list[dict[str, Any]]) -> Speed:
    """Summarize a runtime's answers, one per round."""
    first = [answer["first"] for answer in answers]
    read = [answer.get("prompt", context) / answer["first"] for answer in answers]
    written = [decode_rate(answer) for answer in answers]
    reported = all(answer.get("reported") for answer in answers)
    if reported:
        read = [answer["reported"][0] for answer in answers]
        written = [answer["reported"][1] for answer in answers]
    return Speed(
        label,
        context,
        prefill=Figure.of(read),
        decode=Figure.of(written),
        first=Figure.of(first),
        peak=max((answer["peak"] for answer in answers if answer["peak"]), default=None),
        reported=reported,
    )


def decode_rate(answer: dict[str, Any]) -> float:
    """Tokens per second after the first token."""
    return len(answer["steps"]) / sum(answer["steps"])
