"""A run: one model asked the questions of tasks, into a folder that the same run goes on in.

Each answer is kept twice: by Inspect's cache as soon as it has come, and in the task's log once it
is scored. So a run that was killed asks nothing again that was answered.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import anyio
from inspect_ai import Epochs, Task, eval_set
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.hooks import Hooks, SampleEnd, hooks
from inspect_ai.log import EvalSample, list_eval_logs
from inspect_ai.model import CachePolicy, GenerateConfig, Model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from magistral_mlx.errors import EvaluationError
from magistral_mlx.evaluation.answers import grouped, kept_in, read_header
from magistral_mlx.evaluation.tasks import TaskSpec

_DRAW_SEED = 2509  # of the questions that --samples draws: the same ones for every model


@dataclass(frozen=True)
class Questions:
    """A task with the questions that a run asks."""

    spec: TaskSpec
    task: Task
    ids: list[str | int]


def choose_questions(spec: TaskSpec, samples: int | None) -> Questions:
    """Make a task, with `samples` of its questions drawn at random, always the same; None for all.

    Raises:
        EvaluationError: its data cannot be had.
    """
    with silent():
        task = spec.make()
    ids = []
    for number, sample in enumerate(task.dataset, 1):
        if sample.id is None:
            sample.id = number
        ids.append(sample.id)
    if samples is not None and samples < len(ids):
        drawn = Random(_DRAW_SEED).sample(range(len(ids)), len(ids))[:samples]
        ids = [ids[index] for index in sorted(drawn)]
    return Questions(spec, task, ids)


class AnswerLimit:
    """The answers of one call: at most `limit` are begun, None for no limit."""

    def __init__(
        self, limit: int | None = None, on_answer: Callable[[EvalSample], None] | None = None
    ) -> None:
        """`on_answer`: called with each answer as it is scored."""
        self.limited = limit is not None
        self._left, self._on_answer = limit, on_answer
        self._running: set[str] = set()
        self._waits = False  # whether answers beyond the limit wait
        self.spent = False

    async def begin(self, sample: str) -> None:
        """Wait for ever once the limit is reached."""
        if self._left is not None:
            if self._left == 0:
                self._waits = True
                self._end_if_spent()
                await anyio.sleep_forever()
            self._left -= 1
        self._running.add(sample)

    def end(self, sample: str, answer: EvalSample) -> None:
        """Take in an answer, the last of which ends the run where more would follow."""
        if sample not in self._running:
            return
        self._running.discard(sample)
        if self._on_answer and not self.spent:
            self._on_answer(answer)
        self._end_if_spent()

    def _end_if_spent(self) -> None:
        if self._left == 0 and self._waits and not self._running and not self.spent:
            self.spent = True
            signal.raise_signal(signal.SIGINT)  # the way that Ctrl-C takes: all is kept


_current = AnswerLimit()


@solver
def within_limit() -> Solver:
    """Begin an answer, if the limit allows another one."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        await _current.begin(state.uuid)
        return state

    return solve


@hooks(name="magistral_mlx_eval", description="Progress of magistral-mlx eval")
class _Progress(Hooks):
    async def on_sample_end(self, data: SampleEnd) -> None:
        _current.end(data.sample_id, data.sample)


def run(
    chosen: Sequence[Questions],
    model: Model,
    config: GenerateConfig,
    folder: Path,
    *,
    epochs: int,
    answers: AnswerLimit,
    local_sandbox: bool = False,
) -> bool:
    """Ask what is not answered yet -> whether all is answered.

    Args:
        answers: limits and watches the answers of this call.
        local_sandbox: run the model's code on this machine, unprotected.

    Raises:
        EvaluationError: a sandbox or a server that does not work.
        KeyboardInterrupt: after Ctrl-C; what was answered is kept.
    """
    global _current
    _current = answers
    for questions in chosen:
        questions.task.setup = within_limit()
    ids = [f"{questions.task.name}:{id}" for questions in chosen for id in questions.ids]
    _put_fullest_first(folder, chosen, epochs)
    keep = CachePolicy(expiry=None, scopes={"magistral-mlx": "eval"})
    try:
        with (
            _environment({"INSPECT_CACHE_DIR": str(folder.resolve() / "answers")}),
            _interruptible() if answers.limited else contextlib.nullcontext(),
            silent(),
        ):
            success, logs = eval_set(
                [questions.task for questions in chosen],
                log_dir=str(folder),
                log_dir_allow_dirty=True,
                retry_cleanup=False,  # it would drop what a run of more questions answered
                model=model,
                epochs=Epochs(epochs),
                sample_id=ids,
                sandbox="local" if local_sandbox else None,
                max_tasks=1,
                retry_attempts=1,
                retry_immediate=False,
                fail_on_error=True,
                continue_on_fail=True,
                display="none",
                score_display=False,
                log_level="critical",
                log_buffer=1,
                ctl_server=False,
                acp_server=False,
                cache=keep,
                **config.model_dump(exclude_none=True),
            )
    except KeyboardInterrupt:
        success, logs = False, []
    except PrerequisiteError as error:
        raise EvaluationError(" ".join(str(error.message).split())) from error
    _drop_superseded(folder)
    if answers.spent:
        return False
    if not logs or any(log.status == "cancelled" for log in logs):
        raise KeyboardInterrupt  # Inspect has dealt with it, and tells by what it returns
    return success


def logs_of(folder: Path) -> list[list[Path]]:
    """Return the logs of each task in a folder of Inspect's logs, or a single log.

    They are those of the newest run of a task, the newest log first: it need not hold what an
    older one does, of more questions or more epochs.
    """
    files = [Path(folder)] if folder.is_file() else []
    if folder.is_dir():
        found = list_eval_logs(str(folder), recursive=False, descending=True)
        files = [Path(log.name.removeprefix("file://")) for log in found]
    return grouped(files, lambda header: header.task.rpartition("/")[2])


def _put_fullest_first(folder: Path, chosen: Sequence[Questions], epochs: int) -> None:
    """Make the log with the most of the wanted answers the newest, with which Inspect goes on."""
    wanted = {str(id) for questions in chosen for id in questions.ids}

    def count(log: Path) -> int:
        kept = kept_in(log).items()
        return sum(ok and str(id) in wanted and epoch <= epochs for (id, epoch), ok in kept)

    for logs in logs_of(folder):
        if len(logs) > 1:
            os.utime(max(logs, key=count))


def _drop_superseded(folder: Path) -> None:
    """Remove older logs whose answers are all in another one of their run.

    One that is not finished stays: another process may be writing it.
    """
    for newest, *older in logs_of(folder):
        if not older:
            continue
        kept = [_scored(newest)]
        answers = [(log, _scored(log)) for log in older]
        for log, scored in sorted(answers, key=lambda each: len(each[1]), reverse=True):
            if read_header(log).status == "started" or not any(scored <= other for other in kept):
                kept.append(scored)
            else:
                log.unlink(missing_ok=True)


def _scored(log: Path) -> set[tuple[str | int, int]]:
    return {key for key, ok in kept_in(log).items() if ok}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT, with which a limit ends a run, interrupt.

    A shell starts commands in the background with SIGINT ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep Inspect's own words from stdout, and the log's level, which it sets, as it was."""
    root = logging.getLogger()
    level = root.level
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
