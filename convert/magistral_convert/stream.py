"""The work itself: blocks of rows from the source, through the quantizer, to their place.

A few threads each read, quantize and write whole blocks: MLX's CPU kernels use one core a stream,
and beside a GPU one thread reads while the other's kernel runs. The calling thread follows them
in order, checks each finished tensor and notes it as done. Memory holds a handful of blocks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from magistral_convert.pack import pack
from magistral_convert.plan import Plan, Task
from magistral_convert.progress import Converting, OnProgress
from magistral_convert.rows import block_rows, read_rows
from magistral_convert.verify import check_task
from magistral_convert.work import WorkFolder
from magistral_mlx.backend import backend, mx

BLOCK_BYTES = 8 << 20  # of the source: small enough for the allocator to use memory again
COMMIT_BYTES = 256 << 20  # of the output, between two notes of what is done


@dataclass(frozen=True)
class _Block:
    """Rows of a task that are converted at once."""

    task: Task
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.task.row_bytes

    @property
    def is_last(self) -> bool:
        return self.stop == self.task.rows


def run(
    plan: Plan,
    work: WorkFolder,
    *,
    fetch: Callable[[Path], None],
    release: Callable[[Path], None],
    on_progress: OnProgress | None = None,
) -> None:
    """Do every task that `work` does not count as done.

    Args:
        fetch: called with a source file before its first tensor is read.
        release: called with it when its last tensor is safely in the output.

    Raises:
        CheckpointError: a source file cannot be read, or a tensor does not survive.
        StorageError: the disk refuses.
    """
    ledger = _Ledger(plan, work, on_progress)
    with _workers() as workers:
        for file, tasks in groupby(plan.tasks[work.done :], key=lambda task: task.source.file):
            fetch(file)
            for block in _in_order(workers, work, _blocks(tasks)):
                ledger.add(block)
            ledger.commit()
            release(file)


class _Ledger:
    """Follows the blocks: checks tensors, commits, reports. Used by the calling thread only."""

    def __init__(self, plan: Plan, work: WorkFolder, on_progress: OnProgress | None) -> None:
        self._work = work
        self._on_progress = on_progress
        self._tensors, self._total = len(plan.tasks), plan.source_bytes
        self._done = work.done
        self._bytes = sum(task.source.nbytes for task in plan.tasks[: work.done])
        self._uncommitted = 0
        self._report()

    def add(self, block: _Block) -> None:
        """Count a block that has been written."""
        self._bytes += block.nbytes
        if block.is_last:
            check_task(block.task, self._work)
            self._done += 1
            self._uncommitted += block.task.nbytes
            if self._uncommitted >= COMMIT_BYTES:
                self.commit()
        self._report()

    def commit(self) -> None:
        self._work.commit(self._done)
        self._uncommitted = 0

    def _report(self) -> None:
        if self._on_progress:
            self._on_progress(Converting(self._done, self._tensors, self._bytes, self._total))


def _blocks(tasks: Iterator[Task]) -> Iterator[_Block]:
    for task in tasks:
        step = block_rows(task, BLOCK_BYTES)
        for start in range(0, task.rows, step):
            yield _Block(task, start, min(start + step, task.rows))


def _in_order(
    workers: ThreadPoolExecutor, work: WorkFolder, blocks: Iterator[_Block]
) -> Iterator[_Block]:
    """Convert blocks a few ahead; yield them in their order, when they are written."""
    ahead: deque[tuple[Future[None], _Block]] = deque()

    def submit(count: int) -> None:
        for block in islice(blocks, count):
            ahead.append((workers.submit(_convert, block, work), block))

    submit(4 * _threads())
    while ahead:
        future, block = ahead.popleft()
        future.result()
        submit(1)
        yield block


def _convert(block: _Block, work: WorkFolder) -> None:
    task = block.task
    with mx.stream(_own.stream):
        packed = pack(read_rows(task, block.start, block.stop), task.scheme)
    for part, data in zip(task.parts, packed, strict=True):
        work.write(part, task, block.start, data)


def _threads() -> int:
    """Two keep a GPU busy. Without one, each core quantizes; a disk feeds no more than eight."""
    return 2 if backend().name != "cpu" else max(2, min(8, os.cpu_count() or 2))


_own = threading.local()  # .stream: arrays belong to the thread and stream that made them


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads with a stream each. An exception lets the blocks in hand finish and drops the rest.

    So nothing writes to the files any more when this returns.
    """

    def prepare() -> None:
        _own.stream = mx.new_stream(mx.default_device())

    pool = ThreadPoolExecutor(_threads(), "convert", initializer=prepare)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
