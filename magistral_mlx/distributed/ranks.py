"""A model that is split over the ranks of this process, on rank 0."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.checkpoint.part import content_digest, part_of
from magistral_mlx.config import ModelConfig
from magistral_mlx.distributed.leader import Leader
from magistral_mlx.distributed.model import LeadingModel
from magistral_mlx.distributed.place import place
from magistral_mlx.errors import InvalidOption, RankLost
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.split import Split

_NOTICING = 2.0  # seconds in which the end of a rank is noticed

_lock = threading.Lock()
_leaders: list[Leader] = []


def join_ranks() -> Leader | None:
    """Return rank 0's side of the ranks of this process; None if it is not one of several.

    The first call waits for the other ranks. On another rank it does what rank 0 tells, and ends
    the process with it.

    Raises:
        RankLost: they do not come.
    """
    here = place()
    if here is None:
        return None
    if not here.leads:
        from magistral_mlx.distributed.follower import follow

        follow(here)
        raise SystemExit(0)
    with _lock:
        if not _leaders:
            _leaders.append(Leader(here))
            atexit.register(_leaders[0].close)
        return _leaders[0]


class Ranks:
    """The ranks that hold one model."""

    def __init__(self, leader: Leader, whole: Checkpoint) -> None:
        self._leader, self._whole = leader, whole
        self._number: int | None = None  # of the model

    @property
    def error(self) -> RankLost | None:
        """Why the model can answer no more, once a rank has been lost."""
        return self._leader.error

    def first_part(self, kind: Literal["auto", "tensor", "pipeline"]) -> Checkpoint:
        """Choose how the model is split -> rank 0's part.

        Raises:
            InvalidOption: it cannot be split like that.
        """
        size = self._leader.place.size
        if kind != "auto":
            return part_of(self._whole, Split(kind, 0, size))
        try:
            return part_of(self._whole, Split("tensor", 0, size))
        except InvalidOption:
            return part_of(self._whole, Split("pipeline", 0, size))

    def limited(self, request: PlanRequest) -> PlanRequest:
        """Plan for the machine with the least memory, as the ranks' caches grow together."""
        least = min(self._leader.limits.values())
        limit = least if request.memory_limit is None else min(request.memory_limit, least)
        return replace(request, memory_limit=limit)

    def load(
        self,
        part: Checkpoint,
        plan: Plan,
        dtype: mx.Dtype,
        on_progress: Callable[[int, int], None],
    ) -> LeadingModel:
        """Load each rank's part of the model.

        Args:
            part: rank 0's, and `plan` of it.

        Raises:
            MagistralError: a rank cannot load it, as it says.
        """
        leader = self._leader
        wanted = {
            "folder": str(self._whole.folder.resolve()),
            "digest": content_digest(self._whole),
            "kind": part.split.kind,
            "shares": part.split.shares,
            "context": plan.context,
            "kv": plan.scheme.name,
            "wire": plan.wire,
            "dtype": str(dtype).removeprefix("mlx.core."),
        }
        number = self._number = leader.number()
        leader.ask("open", number, wanted)
        leader.tell("load", number)

        def build(config: ModelConfig, dtype: mx.Dtype) -> LeadingModel:
            return LeadingModel(config, dtype, part.split, leader, number)

        try:
            model = load_model(part, dtype, on_progress, build)
        finally:
            leader.wait()
        assert isinstance(model, LeadingModel)
        return model

    def notify_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread of its own, when a rank is lost."""
        self._leader.on_lost.append(callback)

    def explain(self, error: BaseException) -> BaseException:
        """Return the error that ends all answers, where `error` ended a pass.

        Ranks that have not done the same pass hold different things, so a device that fails on
        one of them is the end.
        """
        if not isinstance(error, RuntimeError | RankLost):
            return error
        end = time.monotonic() + _NOTICING
        while self.error is None and time.monotonic() < end:
            time.sleep(0.02)  # MLX notices the end of a rank before its connection tells which
        if self.error is None:
            self._leader.fail(f"rank 0 failed in a pass ({' '.join(str(error).split())})")
        return RankLost(str(self.error))

    def close(self) -> None:
        """Have the other ranks drop the model."""
        if self._number is not None:
            with suppress(RankLost):
                self._leader.tell("close", self._number)
