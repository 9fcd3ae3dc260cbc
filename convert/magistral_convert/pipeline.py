"""The conversion pipeline: read blocks of rows, quantize them, write them to their offsets.

A few threads each read, quantize and write whole blocks: MLX's CPU kernels use one core a stream,
and beside a GPU one thread reads while the other's kernel runs. The calling thread takes finished
blocks in order, verifies each tensor and commits it. Memory holds a handful of blocks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from magistral_convert.options import Converting, OnConversionProgress
from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_convert.quantize import quantize_rows
from magistral_convert.quantized_source import encode_blocks
from magistral_convert.source_rows import Rows, block_rows, read_raw, read_rows
from magistral_convert.staging import StagingFolder
from magistral_convert.verify import verify_tensor
from magistral_mlx.backend import backend, mx

BLOCK_BYTES = 8 << 20  # of the source: small enough for the allocator to reuse memory
_FROM_BLOCKS_BYTES = (
    2 << 20
)  # of blocks: they and their output stay in a core's cache until written
COMMIT_BYTES = 256 << 20  # of the output, between two commits


Encode = Callable[[TensorConversion, Rows], list[memoryview]]


def encode_plainly(tensor: TensorConversion, rows: Rows) -> list[memoryview]:
    """Encode rows of a tensor with MLX's own choice of scales."""
    return quantize_rows(rows, tensor.scheme)


@dataclass(frozen=True)
class _Block:
    """Rows of a tensor that are converted together."""

    tensor: TensorConversion
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.tensor.row_bytes

    @property
    def is_last(self) -> bool:
        return self.stop == self.tensor.rows


def run(
    plan: ConversionPlan,
    work: StagingFolder,
    *,
    fetch: Callable[[Path], None],
    release: Callable[[Path], None],
    on_progress: OnConversionProgress | None = None,
) -> None:
    """Convert every tensor that is not committed in `work` yet.

    Args:
        fetch: called with a source file before its first tensor is read.
        release: called with it when its last tensor is safely in the output.

    Raises:
        CheckpointError: a source file cannot be read, or verification fails.
        StorageError: the output cannot be written.
    """
    tracker = Tracker(plan, work, on_progress)
    with open_workers() as workers:
        left = plan.tensors[work.done :]
        # The scales of a quantized weight may lie in another file than the weight.
        last_use = {file: number for number, tensor in enumerate(left) for file in tensor.files}
        done = 0
        for _, group in groupby(left, key=lambda tensor: tensor.source.file):
            tensors = list(group)
            for file in dict.fromkeys(file for tensor in tensors for file in tensor.files):
                fetch(file)
            convert_tensors(workers, work, tracker, tensors)
            tracker.commit()
            for file in [file for file, last in last_use.items() if last < done + len(tensors)]:
                release(file)
                del last_use[file]
            done += len(tensors)


def convert_tensors(
    workers: ThreadPoolExecutor,
    work: StagingFolder,
    tracker: Tracker,
    tensors: Iterable[TensorConversion],
    encode: Encode = encode_plainly,
    block_bytes: int | None = None,
) -> None:
    """Convert tensors, in order, with the workers of `open_workers`."""
    for block in _in_order(workers, work, _blocks(tensors, block_bytes or BLOCK_BYTES), encode):
        tracker.add(block)


class Tracker:
    """Verifies finished tensors, commits and reports them. Used by the calling thread only."""

    def __init__(
        self,
        plan: ConversionPlan,
        work: StagingFolder,
        on_progress: OnConversionProgress | None,
        verify: Callable[[TensorConversion, StagingFolder], None] = verify_tensor,
    ) -> None:
        self._work = work
        self._verify = verify
        self._on_progress = on_progress
        self._tensors = len(plan.tensors)
        self._total = sum(tensor.source.nbytes for tensor in plan.tensors)
        self._done = work.done
        self._bytes = sum(tensor.source.nbytes for tensor in plan.tensors[: work.done])
        self._uncommitted = 0
        self._report()

    def add(self, block: _Block) -> None:
        """Record a block that has been written."""
        self._bytes += block.nbytes
        if block.is_last:
            self._verify(block.tensor, self._work)
            self._done += 1
            self._uncommitted += block.tensor.nbytes
            if self._uncommitted >= COMMIT_BYTES:
                self._work.begin_commit(self._done)
                self._uncommitted = 0
        self._report()

    def commit(self) -> None:
        self._work.commit(self._done)
        self._uncommitted = 0

    def _report(self) -> None:
        if self._on_progress:
            self._on_progress(Converting(self._done, self._tensors, self._bytes, self._total))


def _blocks(tensors: Iterable[TensorConversion], block_bytes: int) -> Iterator[_Block]:
    for tensor in tensors:
        most = min(block_bytes, _FROM_BLOCKS_BYTES) if tensor.is_from_blocks else block_bytes
        step = block_rows(tensor, most)
        for start in range(0, tensor.rows, step):
            yield _Block(tensor, start, min(start + step, tensor.rows))


def _in_order(
    workers: ThreadPoolExecutor, work: StagingFolder, blocks: Iterator[_Block], encode: Encode
) -> Iterator[_Block]:
    """Convert blocks a few ahead; yield each when it is written, in order."""
    ahead: deque[tuple[Future[None], _Block]] = deque()

    def submit(count: int) -> None:
        for block in islice(blocks, count):
            ahead.append((workers.submit(_convert, block, work, encode), block))

    submit(4 * _threads())
    while ahead:
        future, block = ahead.popleft()
        future.result()
        submit(1)
        yield block


def _convert(block: _Block, work: StagingFolder, encode: Encode) -> None:
    tensor = block.tensor
    with mx.stream(_own.stream):
        if tensor.is_from_blocks:
            raw = read_raw(tensor.source, tensor.rows, block.start, block.stop)
            packed = encode_blocks(tensor, raw)
        else:
            packed = encode(tensor, read_rows(tensor, block.start, block.stop))
    for output, data in zip(tensor.outputs, packed, strict=True):
        work.write(output, tensor, block.start, data)


def search_threads() -> int:
    """Return the number of threads for work on the CPU."""
    return max(2, min(8, os.cpu_count() or 2))


def _threads() -> int:
    """Return the number of threads: two keep a GPU busy, eight a disk."""
    return 2 if backend().name != "cpu" else search_threads()


_own = threading.local()  # .stream: arrays belong to the thread and stream that made them


@contextmanager
def open_workers(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Run threads with a stream each, by default as many as plain conversion needs.

    An exception lets running blocks finish and drops the rest, so that nothing writes to the
    files any more on return.
    """

    def prepare() -> None:
        _own.stream = mx.new_stream(mx.default_device())

    pool = ThreadPoolExecutor(threads or _threads(), "convert", initializer=prepare)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
