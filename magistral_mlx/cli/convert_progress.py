"""Progress of a conversion on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from magistral_convert import (
    ConversionProgress,
    Converting,
    Downloading,
    Measuring,
    OnConversionProgress,
)

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def conversion_progress() -> Iterator[OnConversionProgress]:
    """Something to call with each report."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=15) as bar:
        yield _Bars(bar)


class _Bars:
    """One bar for the conversion or what is measured before it, and one for the file that is
    arriving."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._converting: TaskID | None = None
        self._downloading: tuple[str, TaskID] | None = None

    def __call__(self, report: ConversionProgress) -> None:
        if not isinstance(report, Downloading):
            self._end_download()
            count = f"{report.tensors_done}/{report.tensors} tensors"
            if self._converting is None:
                self._converting = self._bar.add_task(
                    _doing(report),
                    total=report.bytes_total,
                    completed=report.bytes_done,
                    count=count,
                )
            self._bar.update(self._converting, completed=report.bytes_done, count=count)
            return
        if self._downloading is None or self._downloading[0] != report.file:
            self._end_download()
            task = self._bar.add_task(f"fetching {report.file}", total=report.total, count="")
            self._downloading = (report.file, task)
        self._bar.update(self._downloading[1], completed=report.done)

    def _end_download(self) -> None:
        if self._downloading:
            self._bar.remove_task(self._downloading[1])
            self._downloading = None


class _Lines:
    """A line every ten seconds, for logs."""

    def __init__(self) -> None:
        self._last = self._start = time.monotonic()
        self._first_bytes: int | None = None

    def __call__(self, report: ConversionProgress) -> None:
        now = time.monotonic()
        if not isinstance(report, Downloading) and self._first_bytes is None:
            self._first_bytes = report.bytes_done
            if isinstance(report, Converting) and report.tensors_done:
                click.echo(
                    f"going on after {report.tensors_done} of {report.tensors} tensors", err=True
                )
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        if not isinstance(report, Downloading):
            click.echo(self._line(report, now), err=True)
        else:
            click.echo(f"fetching {report.file}: {report.done / report.total:.0%}", err=True)

    def _line(self, report: Converting | Measuring, now: float) -> str:
        speed = (report.bytes_done - (self._first_bytes or 0)) / (now - self._start)
        left = (report.bytes_total - report.bytes_done) / speed if speed else 0.0
        return (
            f"{_doing(report)}: {report.bytes_done / report.bytes_total:.0%}, "
            f"{report.tensors_done}/{report.tensors} tensors, {speed / 1e9:.2f} GB/s, "
            f"{left:.0f} s left"
        )


def _doing(report: Converting | Measuring) -> str:
    return "converting" if isinstance(report, Converting) else "measuring"
