"""Progress of a run: answers so far, how many are right, tokens, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from magistral_mlx.cli.terminal import say

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

_EVERY = 60.0  # seconds between two lines where stderr is no terminal


class _Count:
    """Answers of this call."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.asked = self.tokens = 0
        self.right = 0.0
        self._start = time.monotonic()

    def add(self, answer: EvalSample) -> None:
        from magistral_mlx.evaluation.answers import score_of

        self.done = min(self.done + 1, self.total)  # one that was kept may be taken up again
        self.asked += 1
        if answer.scores:
            self.right += score_of(next(iter(answer.scores.values())).value)
        if answer.output.usage:
            self.tokens += answer.output.usage.output_tokens

    @property
    def text(self) -> str:
        if not self.asked:
            return "asking"
        return f"{self.right:g} of {self.asked} right, {self.tokens:,} tokens"

    @property
    def left(self) -> str:
        """Time left at the pace of this call; "" before there is one."""
        if not self.asked:
            return ""
        pace = (time.monotonic() - self._start) / self.asked
        seconds = round(pace * (self.total - self.done))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02} left"


@contextmanager
def progress_of(total: int, done: int, limit: int | None) -> Iterator[Callable[[EvalSample], None]]:
    """Show progress on stderr: a bar on a terminal, else a line a minute.

    Args:
        total: answers that the run wants. done: those it has. limit: those of this call at most.
    """
    if done:
        say(f"{done:,} of {total:,} answers are there.")
    count = _Count(total if limit is None else min(total, done + limit), done)
    if not sys.stderr.isatty():
        yield _lines(count)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(count.text, total=count.total, completed=done, left="")

        def show(answer: EvalSample) -> None:
            count.add(answer)
            bar.update(task, completed=count.done, description=count.text, left=count.left)

        yield show


def _lines(count: _Count) -> Callable[[EvalSample], None]:
    last = time.monotonic()

    def show(answer: EvalSample) -> None:
        nonlocal last
        count.add(answer)
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            say(f"{count.done:,} of {count.total:,} answers, {count.text}, {count.left}")

    return show
