"""The folder of a run: found again by what the run asks, and how."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import StorageError
from magistral_mlx.evaluation.answers import read_answers
from magistral_mlx.evaluation.run import logs_of
from magistral_mlx.evaluation.summary import task_name

if TYPE_CHECKING:
    from magistral_mlx.evaluation.run import Questions

_FACTS = "run.json"
_HASH = 6  # digits of a folder's name that tell runs of one model apart


def run_folder(parent: Path, facts: dict[str, Any]) -> Path:
    """Return the folder of the run with these settings, made if it is new.

    The settings are those that change answers: model, context, cache, sampling.

    Raises:
        StorageError: it cannot be made.
    """
    text = json.dumps(facts, sort_keys=True)
    name = re.sub(r"[^\w.-]+", "-", str(facts["model"])).strip("-.")
    folder = parent / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror}). Name another folder with --logs."
        ) from error
    return folder


def answered(folder: Path, chosen: Sequence[Questions], epochs: int) -> int:
    """Return how many of the answers that a run wants are in its logs."""
    wanted = {questions.spec.name: {str(id) for id in questions.ids} for questions in chosen}
    count = 0
    for logs in logs_of(folder):
        ids = wanted.get(task_name(logs[0]), set())
        count += sum(
            answer.score is not None and answer.question in ids and answer.epoch <= epochs
            for answer in read_answers(logs)
        )
    return count
