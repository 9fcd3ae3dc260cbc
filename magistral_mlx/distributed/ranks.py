"""A model that is split over the ranks of this process, on rank 0."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from magistral_mlx.backend import mx
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.checkpoint.part import content_digest, part_of
from magistral_mlx.config import ModelConfig
from magistral_mlx.distributed.disk import LeadingDisk
from magistral_mlx.distributed.leader import Leader
from magistral_mlx.distributed.lending import Lender
from magistral_mlx.distributed.model import LeadingModel
from magistral_mlx.distributed.place import CHOSEN, place
from magistral_mlx.errors import RankLost
from magistral_mlx.memory.choose_split import make_split_plan
from magistral_mlx.memory.here import plan_here, profile
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.machine import this_machine
from magistral_mlx.memory.machines import SplitChoice, split_model
from magistral_mlx.memory.plan import Plan, PlanRequest

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

    def hold_plan(
        self,
        source: str,
        request: PlanRequest,
        dtype: str | None,
        draft: Checkpoint | None,
        choice: SplitChoice,
    ) -> tuple[Checkpoint, Plan]:
        """Choose how the model is split, for the memory of all ranks -> rank 0's part, its plan.

        Rank 0 decides for all what is kept in caches, so its plan leaves no more for them than
        the fullest rank has.

        Args:
            draft: a draft model, which is on rank 0 alone.

        Raises:
            InvalidOption: it cannot be split like that. OutOfMemory: it does not fit.
        """
        if choice == "auto":
            choice = cast(SplitChoice, os.environ.get(CHOSEN, "auto"))
        here = profile(dtype)
        model = split_model(self._whole, source, here.float_bytes)
        leader = self._leader
        machines = [this_machine(), *leader.machines]
        every = make_split_plan(model, machines, here, request, choice, leader.latency)
        part = part_of(self._whole, every.parts[0])
        request = replace(request, context=every.context, kv=every.scheme)
        with PROCESS.lock:
            plan = plan_here(part, source, request, dtype, draft)
            spare = [
                other.headroom * plan.peak.cache // max(1, other.peak.cache)
                for other in every.plans
            ]
            limit = min(plan.limit, plan.peak.total + max(0, min(spare)))
            chunk = min(plan.chunk, every.plans[0].chunk)
            plan = replace(plan, chunk=chunk, limit=limit, shortened=every.shortened)
            PROCESS.hold(plan)
        return part, plan

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
        found = leader.ask("open", number, wanted)
        missing = [rank for rank, here in enumerate(found, 1) if not here]
        lender = None
        if missing:
            lender = Lender(leader.place.addresses[0][0], self._whole, part.split)
            offers = {str(rank): lender.offer(rank) for rank in missing}
            leader.ask("borrow", number, wanted, offers)
        leader.tell("load", number)

        def build(config: ModelConfig, dtype: mx.Dtype) -> LeadingModel:
            return LeadingModel(config, dtype, part.split, leader, number)

        try:
            model = load_model(part, dtype, on_progress, build)
        finally:
            leader.wait()
            if lender is not None:
                lender.close()
        assert isinstance(model, LeadingModel)
        return model

    def notify_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread of its own, when a rank is lost."""
        self._leader.on_lost.append(callback)

    def disk(self, root: Path, limit: int, identity: str, scheme: KVScheme) -> DiskPrefixCache:
        """Open the disk caches of all ranks, after the model was loaded."""
        assert self._number is not None, "it is loaded first"
        return LeadingDisk(self._leader, self._number, root, limit, identity, scheme)

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
