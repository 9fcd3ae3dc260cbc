"""Answers as Inspect's logs hold them: scores, lengths, and how each ended."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.engine.loops import LoopDetector, LoopRule
from magistral_mlx.errors import EvaluationError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalSpec
    from inspect_ai.model import ModelOutput

_UNREAD = {"events", "store", "messages", "events_data", "timelines"}
# Scores that are several figures; the first of these that is there counts.
_FIGURES = ("prompt_level_strict", "accuracy", "correct", "score")
_RIGHT = 0.5  # scores from here on count as right
_CANCELLED = "CancelledError("  # begun as the run was stopped


@dataclass(frozen=True)
class Answer:
    """One answer to a question.

    score: 0 to 1; None where it failed. output_tokens: thinking and answer. thinking_tokens: None
    where nothing tells them. estimated: they are a share by characters. truncated: it ended at a
    limit. looped: its thinking ended in repetitions. error: what failed; "" for nothing.
    """

    question: str
    epoch: int
    score: float | None
    input_tokens: int
    output_tokens: int
    thinking_tokens: int | None
    estimated: bool
    truncated: bool
    looped: bool
    seconds: float
    error: str

    @property
    def right(self) -> bool | None:
        """Whether it counts as right where right and wrong are told apart; None without a score."""
        return None if self.score is None else self.score >= _RIGHT


def read_header(log: Path) -> EvalLog:
    """Return a log without its samples.

    Raises:
        EvaluationError: it is no log of Inspect's.
    """
    from inspect_ai.log import read_eval_log

    try:
        return read_eval_log(str(log), header_only=True)
    except Exception as error:  # a damaged archive raises what its part raises
        raise EvaluationError(
            f"{log} is no log of an evaluation ({error}). Give a run's folder, or a .eval file."
        ) from error


def grouped(logs: Iterable[Path], kind: Callable[[EvalSpec], Hashable]) -> list[list[Path]]:
    """Return the logs, given the newest first, of the newest run of each kind."""
    newest: dict[Hashable, str] = {}
    groups: dict[Hashable, list[Path]] = {}
    for log in logs:
        header = read_header(log).eval
        if newest.setdefault(kind(header), header.task_id) == header.task_id:
            groups.setdefault(kind(header), []).append(log)
    return list(groups.values())


def read_answers(logs: Sequence[Path]) -> Iterator[Answer]:
    """Yield the answers in the logs of a run, finished or not, one in memory at a time."""
    return map(answer_of, read_samples(logs))


def read_samples(logs: Sequence[Path]) -> Iterator[EvalSample]:
    """Yield the samples of a run that were answered, each once, one in memory at a time.

    Args:
        logs: of one task, in the order of what counts. A sample that failed counts last.
    """
    from inspect_ai.log import read_eval_log_sample

    found = [(log, kept_in(log)) for log in logs]
    seen: set[tuple[str | int, int]] = set()
    for scored in (True, False):
        for log, kept in found:
            for key in [key for key, each in kept.items() if each is scored and key not in seen]:
                seen.add(key)
                sample = read_eval_log_sample(
                    str(log), *key, resolve_attachments="core", exclude_fields=_UNREAD
                )
                if sample.error is None or not sample.error.message.startswith(_CANCELLED):
                    yield sample


def kept_in(log: Path) -> dict[tuple[str | int, int], bool]:
    """Return question and epoch of each answer in a log, and whether it did not fail."""
    from inspect_ai.log import read_eval_log_sample_summaries

    return {
        (summary.id, summary.epoch): not summary.error
        for summary in read_eval_log_sample_summaries(str(log))
        if summary.completed
    }


def score_of(value: Any) -> float:
    """Return a score's value as a number from 0 to 1; several figures as the first that counts."""
    if isinstance(value, Mapping):
        named = [value[name] for name in _FIGURES if name in value]
        return score_of(named[0] if named else next(iter(value.values()), 0))
    if isinstance(value, str):
        letters = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
        return letters[value] if value in letters else float(value.lower() in ("yes", "true"))
    return float(value) if isinstance(value, bool | int | float) else 0.0


def answer_of(sample: EvalSample) -> Answer:
    """Return what a sample says of its answer."""
    output = sample.output
    usage = output.usage
    score = None
    if sample.error is None and sample.scores:
        score = score_of(next(iter(sample.scores.values())).value)
    thinking, estimated = _thinking_tokens(output)
    reading = (usage.input_tokens_cache_read or 0) if usage else 0
    reason = output.choices[0].stop_reason if output.choices else "unknown"
    return Answer(
        question=str(sample.id),
        epoch=sample.epoch,
        score=score,
        input_tokens=usage.input_tokens + reading if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        thinking_tokens=thinking,
        estimated=estimated,
        truncated=reason in ("max_tokens", "model_length"),
        looped=_looped(output),
        seconds=output.time or 0.0,
        error=_plain(sample.error.message) if sample.error else output.error or "",
    )


def _plain(error: str) -> str:
    """Return the text of an error, of most of which Inspect's logs hold the `repr`."""
    found = re.fullmatch(r"[\w.]+\((.*)\)", error, re.DOTALL)
    try:
        text = ast.literal_eval(found[1]) if found else None
    except (ValueError, SyntaxError):
        return error
    return text if isinstance(text, str) and " " in text else error


def _thinking_tokens(output: ModelOutput) -> tuple[int | None, bool]:
    """Return the tokens of thinking, and whether they are an estimate by characters."""
    usage = output.usage
    if usage is None:
        return None, False
    if usage.reasoning_tokens is not None:
        return usage.reasoning_tokens, False
    thinking, text = len(thinking_of(output)), len(output.completion)
    if not thinking:
        return 0, False
    return round(usage.output_tokens * thinking / (thinking + text)), True


def thinking_of(output: ModelOutput) -> str:
    """Return the thinking of an output; empty for none."""
    from inspect_ai.model import ContentReasoning

    if not output.choices:
        return ""
    content = output.choices[0].message.content
    parts = content if isinstance(content, list) else []
    return "".join(part.reasoning for part in parts if isinstance(part, ContentReasoning))


def _looped(output: ModelOutput) -> bool:
    """Whether the thinking ended in repetitions: as the engine found, else by its words."""
    metadata = output.metadata or {}
    if "thinking_end" in metadata:
        return metadata["thinking_end"] == "loop"
    words = re.findall(r"\w+|[^\w\s]", thinking_of(output) or output.completion)
    ids: dict[str, int] = {}
    numbers = [ids.setdefault(word, len(ids)) for word in words]
    known = list(ids)
    detector = LoopDetector(LoopRule(), lambda id: any(map(str.isalpha, known[id])))
    return any([detector.add(number) for number in numbers][-64:])
