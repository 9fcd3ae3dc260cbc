"""Commands that run on several machines: the checks in words, and the ranks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.terminal import say, write
from magistral_mlx.distributed.place import CHOSEN
from magistral_mlx.errors import MachineError

if TYPE_CHECKING:
    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.machines.checks import RingLink
    from magistral_mlx.machines.connection import Connection
    from magistral_mlx.machines.hosts import Host
    from magistral_mlx.machines.launch import RankCommand
    from magistral_mlx.memory.machines import SplitChoice, SplitPlan
    from magistral_mlx.memory.plan import PlanRequest

_LINK_SECONDS = 0.2  # of measuring each link's bandwidth before a start
_PAUSES = (1, 2, 5, 10, 30)  # seconds between attempts to find a lost machine again


def machines_of(options: dict[str, Any]) -> str | None:
    """The machines that a command has to start; None in a process that is a rank already.

    Raises:
        UsageError: --machines in a process that mlx.launch started, or --split without machines.
    """
    machines, split = options["machines"], options["split"]
    if CHOSEN in os.environ:
        return None
    if os.environ.get("MLX_RANK") is not None:
        if machines is not None:
            raise click.UsageError(
                "mlx.launch has started a process on each machine; leave --machines out."
            )
        return None
    if split is not None and machines is None:
        raise click.UsageError("--split needs --machines, as in --machines mac1.local,mac2.local.")
    return None if machines is None else str(machines)


def run_on_machines(
    machines: str,
    models: Sequence[str | None],
    loading: LoadOptions,
    split: SplitChoice | None,
    *,
    again: bool = False,
) -> int:
    """Run this process's command as the ranks of all machines -> the exit status of rank 0.

    Args:
        machines: the value of --machines.
        models: as the command names them; None is the default one.
        again: start anew when a machine is lost, once it is there again.

    Raises:
        MagistralError: a machine that cannot be used, a model that does not fit, or a rank that was
            lost.
    """
    from magistral_mlx.cli.models import locate_with_bar
    from magistral_mlx.machines.hosts import first_is_here, parse_hosts
    from magistral_mlx.memory.plan import PlanRequest

    hosts = first_is_here(parse_hosts(machines))
    places = [(model, locate_with_bar(model)) for model in models]
    request = PlanRequest(loading.context, loading.kv, loading.images, loading.memory_limit)
    run = _Run(hosts, places, request, loading.dtype, split)
    try:
        return run.to_end(again=again)
    finally:
        run.close()


class _Run:
    """A command on several machines, from the first check to the end of rank 0."""

    def __init__(
        self,
        hosts: Sequence[Host],
        places: Sequence[tuple[str | None, Path]],
        request: PlanRequest,
        dtype: str | None,
        split: SplitChoice | None,
    ) -> None:
        self._hosts, self._request, self._dtype, self._split = hosts, request, dtype, split
        self._models = [(name or path.name, str(path)) for name, path in places]
        self._connections: list[Connection] = []

    def close(self) -> None:
        """End the agents and what they started."""
        from magistral_mlx.machines.connection import close_all

        close_all(self._connections)
        self._connections = []

    def to_end(self, *, again: bool) -> int:
        """Start the ranks and wait for rank 0 -> its exit status."""
        from magistral_mlx.machines.launch import run_ranks

        command = self._prepare()
        while True:

            def recover(error: MachineError, running: Callable[[], bool]) -> bool:
                nonlocal command
                found = self._find_again(error, running)
                command = found or command
                return found is not None

            status = run_ranks(command, self._connections, recover if again else None)
            if status is not None:
                return status

    def _prepare(self) -> RankCommand:
        """Connect, check, measure and plan."""
        from magistral_mlx.checkpoint.folder import Checkpoint
        from magistral_mlx.machines.checks import (
            check_alike,
            gather_facts,
            machine_of,
            measure_ring,
            ring_of,
        )
        from magistral_mlx.machines.connection import connect
        from magistral_mlx.machines.launch import RankCommand
        from magistral_mlx.memory.choose_split import make_split_plan
        from magistral_mlx.memory.here import profile
        from magistral_mlx.memory.machines import split_model

        self._connections = connect(self._hosts, self._show)
        facts = check_alike(self._connections, gather_facts(self._connections, self._models))
        links = measure_ring(self._connections, facts, _LINK_SECONDS)
        machines = [machine_of(one) for one in facts]
        rdma = [host.rdma for host in self._hosts if host.rdma]
        # TCP's latency says nothing of RDMA's, which is fast.
        latency = None if rdma else max(link.link.latency for link in links)
        here = profile(self._dtype)
        plans: list[SplitPlan] = []
        for name, path in self._models:
            model = split_model(Checkpoint.open(Path(path)), name, here.float_bytes)
            choice = plans[0].kind if plans else self._split or "auto"
            plans.append(make_split_plan(model, machines, here, self._request, choice, latency))
        say(_summary(self._connections, links, plans[0]))
        for connection, one in zip(self._connections, facts, strict=True):
            missing = [
                name
                for (name, _), copy in zip(self._models, one["models"], strict=True)
                if copy["path"] is None
            ]
            if missing:
                say(f"{connection.label} has no copy of {', '.join(missing)}: it gets its part.")
        folders = [
            {
                str(Path(path).resolve()): copy["path"]
                for (_, path), copy in zip(self._models, one["models"], strict=True)
                if copy["path"] is not None
            }
            for one in facts
        ]
        return RankCommand(sys.argv[1:], ring_of(links), plans[0].kind, folders, rdma)

    def _find_again(self, error: MachineError, running: Callable[[], bool]) -> RankCommand | None:
        """Connect anew until that works -> what to run then; None if rank 0 ends meanwhile."""
        say(f"{error} Starting anew when it is there again.")
        told = str(error)
        for attempt in range(sys.maxsize):
            self.close()
            end = time.monotonic() + _PAUSES[min(attempt, len(_PAUSES) - 1)]
            while time.monotonic() < end:
                if not running():
                    return None
                time.sleep(0.1)
            try:
                return self._prepare()
            except MachineError as problem:
                if str(problem) != told:
                    say(str(problem))
                told = str(problem)
        return None

    def _show(self, rank: int, line: str) -> None:
        """A line of another machine's stderr, behind the machine's name."""
        if rank and self._connections:
            write(f"[{self._connections[rank].label}] {line}\n", err=True)


def _summary(connections: Sequence[Connection], links: Sequence[RingLink], plan: SplitPlan) -> str:
    """Describe the machines and how the model is split, in a line."""
    slowest = max(links, key=lambda link: link.link.latency)
    kind = f"{slowest.kind} " if slowest.kind else ""
    return (
        f"{plan.kind} parallel over {', '.join(one.label for one in connections)} ({kind}link: "
        f"{slowest.link.latency * 1e3:.2f} ms there and back, "
        f"{slowest.link.bandwidth / 1e9:.2f} GB/s)."
    )
