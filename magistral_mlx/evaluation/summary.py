"""Summaries of a run: scores, lengths and endings by task; and two runs by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from magistral_mlx.errors import EvaluationError
from magistral_mlx.evaluation.answers import Answer, read_answers, read_header
from magistral_mlx.evaluation.published import PUBLISHED
from magistral_mlx.evaluation.run import logs_of
from magistral_mlx.evaluation.statistics import paired, pass_at_1
from magistral_mlx.evaluation.tasks import TASKS

# Name of a task to Inspect -> to us.
_NAMES = {spec.function.rpartition(":")[2]: spec.name for spec in TASKS.values()}


def task_name(log: Path) -> str:
    """Return our name of a log's task, or Inspect's where it is none of ours."""
    name = read_header(log).eval.task.rpartition("/")[2]
    return _NAMES.get(name, name)


def summarise(name: str, answers: Iterable[Answer]) -> dict[str, Any]:
    """Return the figures of one task as JSON types; rates from 0 to 1, lengths in tokens."""
    found = list(answers)
    by_question = scores_by_question(found)
    estimate = pass_at_1(list(by_question.values()))
    scored = [answer for answer in found if answer.score is not None]
    right = [answer for answer in scored if answer.right]
    wrong = [answer for answer in scored if not answer.right]
    failed = [answer for answer in found if answer.score is None]
    return {
        "task": name,
        "questions": len(by_question),
        "answers": len(scored),
        "epochs": max((answer.epoch for answer in scored), default=0),
        "pass_at_1": estimate and estimate.mean,
        "low": estimate and estimate.low,
        "high": estimate and estimate.high,
        "right": _lengths(right),
        "wrong": _lengths(wrong),
        "truncated": sum(answer.truncated for answer in scored),
        "looping": sum(answer.looped for answer in scored),
        "failed": len(failed),
        "failure": failed[0].error if failed else None,
        "input_tokens": sum(answer.input_tokens for answer in found),
        "output_tokens": sum(answer.output_tokens for answer in found),
        "thinking_estimated": any(answer.estimated for answer in scored),
        "published": PUBLISHED.get(name, {}),
    }


def summarise_run(folder: Path) -> list[dict[str, Any]]:
    """Return the figures of each task in a run's folder, or of a single log."""
    return [summarise(task_name(logs[0]), read_answers(logs)) for logs in logs_of(folder)]


def compare_runs(first: Path, second: Path) -> list[dict[str, Any]]:
    """Compare two runs by question, task by task, as JSON types.

    Raises:
        EvaluationError: a folder holds no logs, or they share no question of any task.
    """
    runs = [_scores(folder) for folder in (first, second)]
    compared = []
    for name in runs[0]:
        if name in runs[1]:
            scores = [run[name] for run in runs]
            result = paired(*scores)
            if result is not None:
                compared.append({"task": name, **asdict(result), "questions_of": _of(*scores)})
    if not compared:
        raise EvaluationError(
            f"{first} and {second} share no question that both answered: they hold "
            f"{', '.join(runs[0])} and {', '.join(runs[1])}. Run the same task with both."
        )
    return compared


def scores_by_question(answers: Iterable[Answer]) -> dict[str, list[float]]:
    """Return the scores of each question's answers."""
    scores: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.score is not None:
            scores[answer.question].append(answer.score)
    return dict(scores)


def _scores(folder: Path) -> dict[str, dict[str, list[float]]]:
    if not folder.exists():
        raise EvaluationError(f"there is no {folder}. Give the folders of two runs, or two logs.")
    tasks = logs_of(folder)
    if not tasks:
        raise EvaluationError(
            f"{folder} holds no logs of an evaluation. Give a run's folder, or a .eval file."
        )
    return {task_name(logs[0]): scores_by_question(read_answers(logs)) for logs in tasks}


def _of(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[int]:
    return [len(first), len(second)]


def _lengths(answers: list[Answer]) -> dict[str, float | int | None]:
    thinking = [each.thinking_tokens for each in answers if each.thinking_tokens is not None]
    output = [answer.output_tokens for answer in answers]
    return {
        "answers": len(answers),
        "tokens": mean(output) if output else None,
        "thinking": mean(thinking) if thinking else None,
        "thinking_median": median(thinking) if thinking else None,
    }
