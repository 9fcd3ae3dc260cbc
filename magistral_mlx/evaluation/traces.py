"""How a model each in the logs of an evaluation, right answers against wrong ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import EvaluationError
from magistral_mlx.evaluation.answers import (
    Answer,
    answer_of,
    grouped,
    read_header,
    read_samples,
    thinking_of,
)
from magistral_mlx.evaluation.languages import LanguageUse, language_use
from magistral_mlx.evaluation.reached import share_before
from magistral_mlx.percentiles import known, percentiles

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

_JSON_LOG = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"')


@dataclass(frozen=True)
class AnswerTrace:
    """The thinking of one answer.

    languages: of the thinking. reached: share of the thinking before it first stated the answer
    that it ended with; None where it never did, or where there is no thinking.
    """

    answer: Answer
    languages: LanguageUse
    reached: float | None

    @property
    def answer_tokens(self) -> int:
        """Tokens after the thinking."""
        return self.answer.output_tokens - (self.answer.thinking_tokens or 0)


@dataclass(frozen=True)
class EvaluationTrace:
    """A run of one task and model, by its newest log."""

    log: Path
    task: str
    model: str
    answers: tuple[AnswerTrace, ...]


def candidate_logs(path: Path) -> list[Path]:
    """Return the files that look like logs of Inspect's in a folder and below, or a single file.

    Hidden ones are passed over, as macOS writes `._NAME` beside each file on other file systems.
    """
    if path.is_file():
        return [path]
    found = [file for file in path.rglob("[!.]*") if file.suffix in (".eval", ".json")]
    return [file for file in found if file.suffix == ".eval" or _is_json_log(file)]


def newest_logs(logs: Iterable[Path]) -> list[list[Path]]:
    """Return the logs of the newest run of each task and model in each folder, the newest first.

    Raises:
        EvaluationError: a file that is no log of Inspect's.
    """
    folders: dict[Path, list[Path]] = {}
    for log in sorted(logs, key=lambda file: file.name, reverse=True):
        folders.setdefault(log.parent, []).append(log)
    groups = [grouped(each, lambda run: (run.task, run.model)) for each in folders.values()]
    return sorted(group for each in groups for group in each)


def read_evaluations(
    runs: Iterable[Sequence[Path]], on_log: Callable[[Path], None] | None = None
) -> list[EvaluationTrace]:
    """Read the logs of evaluations, one answer at a time.

    Args:
        runs: the logs of each, the newest first.
        on_log: called with the newest log of each before it is read.

    Raises:
        EvaluationError: a file that is no log of Inspect's.
        MissingExtra: a package that this needs is not installed.
    """
    traces = []
    for logs in runs:
        if on_log:
            on_log(logs[0])
        header = read_header(logs[0]).eval
        traces.append(EvaluationTrace(logs[0], header.task, header.model, tuple(_answers(logs))))
    return traces


def summarise_evaluation(trace: EvaluationTrace) -> dict[str, Any]:
    """Return the figures of a log as JSON types, of all answers and of right and wrong ones."""
    groups = {
        "all": trace.answers,
        "right": [each for each in trace.answers if each.answer.right],
        "wrong": [each for each in trace.answers if each.answer.right is False],
    }
    return {
        "log": str(trace.log),
        "task": trace.task,
        "model": trace.model,
        "failed": sum(bool(each.answer.error) for each in trace.answers),
        "answers": {name: _figures(some) for name, some in groups.items()},
    }


def answer_facts(trace: AnswerTrace) -> dict[str, Any]:
    """Return one answer's figures as JSON types."""
    answer = trace.answer
    return {
        "question": answer.question,
        "epoch": answer.epoch,
        "score": answer.score,
        "thinking_tokens": answer.thinking_tokens,
        "estimated": answer.estimated,
        "answer_tokens": trace.answer_tokens,
        "truncated": answer.truncated,
        "looped": answer.looped,
        "reached": trace.reached,
        "languages": trace.languages.letters,
        "switches": trace.languages.switches,
    }


def _figures(traces: Sequence[AnswerTrace]) -> dict[str, Any]:
    languages: Counter[str] = Counter()
    for trace in traces:
        languages.update(trace.languages.letters)
    answers = [trace.answer for trace in traces]
    return {
        "count": len(traces),
        "thinking_tokens": percentiles(known(answer.thinking_tokens for answer in answers)),
        "answer_tokens": percentiles([trace.answer_tokens for trace in traces]),
        "reached": percentiles(known(trace.reached for trace in traces)),
        "stated_while_thinking": sum(trace.reached is not None for trace in traces),
        "thought": sum(bool(answer.thinking_tokens) for answer in answers),
        "truncated": sum(answer.truncated for answer in answers),
        "looped": sum(answer.looped for answer in answers),
        "switched": sum(trace.languages.switches > 0 for trace in traces),
        "switches": sum(trace.languages.switches for trace in traces),
        "languages": dict(languages.most_common()),
    }


def _answers(logs: Sequence[Path]) -> Iterator[AnswerTrace]:
    for sample in read_samples(logs):
        answer, thinking = answer_of(sample), thinking_of(sample.output)
        stated = _stated(sample, is_right=bool(answer.right))
        yield AnswerTrace(answer, language_use(thinking), share_before(thinking, stated))


def _stated(sample: EvalSample, *, is_right: bool) -> str:
    """Return the answer that a scorer read, or of a right one the expected; "" if none tells."""
    for score in (sample.scores or {}).values():
        if isinstance(score.answer, str) and score.answer.strip():
            return score.answer
    return sample.target if is_right and isinstance(sample.target, str) else ""


def _is_json_log(file: Path) -> bool:
    """Whether a JSON file begins as Inspect's logs do, and not as its list of logs."""
    try:
        with file.open("rb") as opened:
            head = opened.read(300)
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}.") from error
    return _JSON_LOG.match(head) is not None
