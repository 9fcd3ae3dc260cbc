"""The ranks beside rank 0: a loop that does what rank 0 tells, until it sends them home."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from magistral_mlx.backend import DTYPES, free_memory, mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.checkpoint.part import content_digest, part_of
from magistral_mlx.config import ModelConfig
from magistral_mlx.distributed.disk import FollowingDisks
from magistral_mlx.distributed.group import Group, ended_if_stuck
from magistral_mlx.distributed.lending import Borrowed, borrowed_checkpoint
from magistral_mlx.distributed.link import Link
from magistral_mlx.distributed.meeting import join, prove
from magistral_mlx.distributed.model import FollowingModel
from magistral_mlx.distributed.place import Place, folder_here
from magistral_mlx.errors import CheckpointError, MagistralError, RankLost
from magistral_mlx.memory.here import hold_plan
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.split import Split

_LAST_WORDS = 5.0  # seconds to leave in order, once rank 0 is gone


def follow(place: Place) -> None:
    """Do what rank 0 tells, until it sends the ranks home.

    Raises:
        RankLost: rank 0 has gone, or is of another version.
    """
    follower = Follower(place)
    try:
        follower.run()
    except RuntimeError as error:  # of MLX: a rank ended while a tensor was on its way
        time.sleep(0.5)  # until rank 0's end is noticed as well, which says more
        text = " ".join(str(error).split())
        raise RankLost(follower.lost or f"another rank has gone: {text}.") from None


class Follower:
    """What a rank holds of each model, and of each sequence's caches, by rank 0's numbers.

    lost: why rank 0 cannot be followed any more.
    """

    def __init__(self, place: Place) -> None:
        """Connect to rank 0. Raises RankLost if that is not possible."""
        self.lost: str | None = None
        self._place = place
        connection = join(place)
        with ended_if_stuck():
            self._group = Group(place)
            prove(connection, self._group)
            self._group.latency()
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._ended = False
        self._link = Link(connection, self._hear, self._lose)
        self._opened: dict[int, tuple[Checkpoint, mx.Dtype, Plan]] = {}
        self._borrowed: dict[int, Borrowed] = {}
        self._models: dict[int, FollowingModel] = {}
        self._caches: dict[int, SequenceCaches] = {}
        disks = FollowingDisks(place.rank)
        self._work: dict[str, Callable[..., None]] = {
            "pass": self._pass,
            "prefill": self._prefill,
            "caches": self._make_caches,
            "reserve": lambda number, *sizes: self._caches[number].reserve(*sizes),
            "trim": lambda number, length: self._caches[number].trim(length),
            "snapshot": lambda number, most: self._caches[number].snapshot(most),
            "evaluate": self._evaluate,
            "copy": self._copy,
            "drop": self._drop,
            "close": self._close,
            "open disk": disks.open,
            "write": lambda model, number, keys: disks.write(model, self._caches[number], keys),
            "close disk": disks.close,
        }
        self._asked: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "borrow": self._borrow,
            "load": self._load,
            "find": disks.find,
            "read": lambda model, number, keys: disks.read(model, self._caches[number], keys),
        }

    def run(self) -> None:
        """Do one thing after another. Raises RankLost when rank 0 has gone."""
        while True:
            kind, *rest = self._told.get()
            if kind == "bye":
                self._link.close()
                return
            if kind == "lost":
                raise RankLost(self.lost)
            if kind in self._asked:
                self._link.send(self._answer(kind, rest))
            else:
                self._work[kind](*rest)

    def _hear(self, message: Any) -> None:
        self._ended = self._ended or message == ["bye"]
        self._told.put(message)

    def _lose(self, reason: str) -> None:
        """Leave, even if MLX waits for a rank that is gone."""
        if self._ended:
            return
        self.lost = f"rank 0 {reason}."
        self._told.put(["lost"])
        self._group.tear()
        threading.Timer(_LAST_WORDS, _leave, [self.lost]).start()

    # What is answered

    def _answer(self, kind: str, rest: Sequence[Any]) -> dict[str, Any]:
        try:
            return {"value": self._asked[kind](*rest)}
        except MagistralError as error:
            return {"error": str(error)}

    def _open(self, number: int, wanted: dict[str, Any]) -> bool:
        """Find a model's files, and plan its memory, as rank 0 did -> whether they are here.

        Raises:
            MagistralError: they are others, or do not fit.
        """
        folder = folder_here(wanted["folder"])
        if not folder.exists():
            return False
        checkpoint = Checkpoint.open(folder)
        if content_digest(checkpoint) != wanted["digest"]:
            raise CheckpointError(
                f"the weights in {folder} are not the same as on rank 0. Copy that folder here."
            )
        self._plan(number, wanted, part_of(checkpoint, self._split(wanted)))
        return True

    def _borrow(self, number: int, wanted: dict[str, Any], offers: dict[str, Any]) -> None:
        """Use rank 0's files, if rank 0 offers that.

        Raises:
            MagistralError: it cannot be reached, or the model does not fit.
        """
        offer = offers.get(str(self._place.rank))
        if offer is not None:
            part, self._borrowed[number] = borrowed_checkpoint(offer, self._split(wanted))
            self._plan(number, wanted, part)

    def _split(self, wanted: dict[str, Any]) -> Split:
        shares = tuple(wanted["shares"])
        return Split(wanted["kind"], self._place.rank, self._place.size, shares)

    def _plan(self, number: int, wanted: dict[str, Any], part: Checkpoint) -> None:
        request = PlanRequest(wanted["context"], wanted["kv"], 0, None, wanted["wire"])
        plan = hold_plan(part, str(part.folder), request, wanted["dtype"])
        self._opened[number] = part, DTYPES[wanted["dtype"]], plan

    def _load(self, number: int) -> None:
        part, dtype, _ = self._opened[number]

        def build(config: ModelConfig, dtype: mx.Dtype) -> FollowingModel:
            self._models[number] = FollowingModel(config, dtype, part.split, self._group)
            return self._models[number]

        load_model(part, dtype, None, build)
        if borrowed := self._borrowed.pop(number, None):
            borrowed.close()

    # What is done

    def _pass(self, model: int, rows: Sequence[int], shape: Sequence[int]) -> None:
        caches = batch_caches([self._caches[row] for row in rows])
        self._models[model].follow(tuple(shape), caches)

    def _prefill(self, model: int, rows: Sequence[int], shape: Sequence[int]) -> None:
        self._models[model].follow_prefill(tuple(shape), self._caches[rows[0]])

    def _make_caches(self, number: int, model: int, scheme: dict[str, Any], work: int) -> None:
        self._caches[number] = self._models[model].make_caches(KVScheme(**scheme), work)

    def _evaluate(self, number: int) -> None:
        self._caches[number].evaluate()
        mx.clear_cache()

    def _copy(self, number: int, source: int, length: int) -> None:
        self._caches[number].copy_from(self._caches[source], length)

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._caches.pop(number, None)

    def _close(self, model: int) -> None:
        self._models.pop(model, None)
        if opened := self._opened.pop(model, None):
            mx.synchronize()
            PROCESS.release(opened[-1])
            free_memory()


def _leave(why: str) -> None:
    """End the process, in which MLX waits for what never comes."""
    with suppress(OSError):
        sys.stderr.write(f"magistral-mlx: {why}\n")
        sys.stderr.flush()
    os._exit(1)
