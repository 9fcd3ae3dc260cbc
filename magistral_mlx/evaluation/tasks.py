"""The tasks of `magistral-mlx eval` by name, and how each is made.

Most are those of inspect-evals, with its prompts and scorers; their data come from the hub, and
are kept there where other programs keep them too.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import EvaluationError, InvalidOption

if TYPE_CHECKING:
    from inspect_ai import Task


@dataclass(frozen=True)
class TaskSpec:
    """A task by its name here.

    function: where it is, as "module:function". arguments: of the function. least_answer: tokens
    that an answer must have room for. images: whether questions show images. sandbox: whether it
    runs the model's code. needs: a module that scores its answers, and what installs it.
    """

    name: str
    title: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    least_answer: int = 8192
    images: bool = False
    sandbox: bool = False
    needs: tuple[str, str] | None = None

    def make(self) -> Task:
        """Make the task, with its data downloaded.

        Raises:
            EvaluationError: its data cannot be had, or a package is missing that scores it.
        """
        if self.needs is not None and importlib.util.find_spec(self.needs[0]) is None:
            raise EvaluationError(
                f"{self.name} is scored by {self.needs[0]}, which is not installed. Install with "
                f"`{self.needs[1]}`."
            )
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        module, _, name = self.function.partition(":")
        try:
            task: Task = getattr(importlib.import_module(module), name)(**self.arguments)
        except EvaluationError:
            raise
        except Exception as error:
            # Three libraries fetch the data, each with errors of its own.
            raise EvaluationError(_download_problem(self.name, error)) from error
        return task


_IFEVAL = (
    "instruction_following_eval",
    "pip install langdetect git+https://github.com/josejg/instruction_following_eval",
)
_OURS = "magistral_mlx.evaluation"
_SPECS = (
    TaskSpec("aime24", "AIME 2024", "inspect_evals.aime2024:aime2024"),
    TaskSpec("aime25", "AIME 2025", "inspect_evals.aime2025:aime2025"),
    TaskSpec("gpqa", "GPQA Diamond", "inspect_evals.gpqa:gpqa_diamond"),
    TaskSpec(
        "livecodebench", "LiveCodeBench v5", f"{_OURS}.livecodebench:livecodebench", sandbox=True
    ),
    TaskSpec(
        "livecodebench6",
        "LiveCodeBench v6",
        f"{_OURS}.livecodebench:livecodebench6",
        sandbox=True,
    ),
    TaskSpec("ifeval", "IFEval", "inspect_evals.ifeval:ifeval", least_answer=4096, needs=_IFEVAL),
    TaskSpec("mmmu", "MMMU", "inspect_evals.mmmu:mmmu_multiple_choice", images=True),
    TaskSpec(
        "docvqa",
        "DocVQA",
        "inspect_evals.docvqa:docvqa",
        {"shuffle": False},
        least_answer=4096,
        images=True,
    ),
    TaskSpec(
        "mathvista",
        "MathVista",
        "inspect_evals.mathvista:mathvista",
        {"shuffle": False},
        images=True,
    ),
    TaskSpec(
        "demo", "the demo's problems", f"{_OURS}.demo_task:demo", least_answer=256, images=True
    ),
)
TASKS = {spec.name: spec for spec in _SPECS}


def task_specs(names: tuple[str, ...]) -> list[TaskSpec]:
    """Return the tasks of these names, each once.

    Raises:
        InvalidOption: there is no such task, or no name.
    """
    known = ", ".join(TASKS)
    if not names:
        raise InvalidOption(f"no task is named; give one or more of {known}.")
    for name in names:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"; {close[0]} is nearest" if close else ""
            raise InvalidOption(f"there is no task {name!r}{hint}. There are {known}.")
    return [TASKS[name] for name in dict.fromkeys(names)]


def _download_problem(name: str, error: Exception) -> str:
    """Say what kept the data of a task from being downloaded, in one sentence."""
    attempt = getattr(error, "last_attempt", None)  # of a download that was tried several times
    if attempt is not None and attempt.exception() is not None:
        error = attempt.exception()
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(" ".join(str(each).split()) for each in causes)
    repo = re.search(r"(?:Dataset '|datasets/|dataset )([\w.-]+/[\w.-]+)", text)
    if re.search(r"gated|restricted|\b40[13]\b", text, re.IGNORECASE):
        where = f"https://huggingface.co/datasets/{repo[1]}" if repo else "its page on the hub"
        return (
            f"{name}: its data are behind a licence. Accept it at {where}, make a token at "
            "https://huggingface.co/settings/tokens, and give it with `hf auth login` or as "
            "HF_TOKEN."
        )
    reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
    clients = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3", "aiohttp")
    remote = any(type(each).__module__.partition(".")[0] in clients for each in causes)
    if remote or isinstance(error, OSError):
        return (
            f"{name}: its data cannot be downloaded ({reason[:300]}). Check the connection, and "
            "give the same command again: what has come is kept."
        )
    return f"{name}: its data cannot be read ({type(error).__name__}: {reason[:300]})."
