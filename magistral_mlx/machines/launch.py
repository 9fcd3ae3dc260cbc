"""Starting the ranks of a command, and watching them to its end.

Rank 0 is a process of this machine with this process's streams; the others are started by the
agents of their machines. A rank is the same command with the variables that mx.distributed reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from magistral_mlx.distributed.place import CHOSEN, FOLDERS
from magistral_mlx.errors import MachineError
from magistral_mlx.machines.agent import END_SECONDS, remove_files, write_files
from magistral_mlx.machines.connection import Connection
from magistral_mlx.split import SplitKind

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class RankCommand:
    """What the ranks run.

    arguments: of rank 0; the others have none. ring: addresses of the ranks. folders: for each
    rank, rank 0's folder of each model -> that rank's. rdma: for each rank the devices that reach
    the others; empty for TCP.
    """

    arguments: Sequence[str]
    ring: list[list[str]]
    split: SplitKind
    folders: Sequence[Mapping[str, str]]
    rdma: Sequence[Sequence[str | None]] = ()

    def environment(self, rank: int) -> dict[str, str]:
        """The variables of a rank, `files` aside."""
        folders = json.dumps(self.folders[rank])
        ours = {"MLX_RANK": str(rank), CHOSEN: self.split, FOLDERS: folders}
        if not self.rdma:
            return ours
        # The second one lets the GPU see what arrives without a round over the processor.
        return ours | {"MLX_JACCL_COORDINATOR": self.ring[0][0], "MLX_METAL_FAST_SYNCH": "1"}

    @property
    def files(self) -> dict[str, Any]:
        """The variables that name a file, and what it holds."""
        return {"MLX_IBV_DEVICES": self.rdma} if self.rdma else {"MLX_HOSTFILE": self.ring}


# Gets what became of a rank, and whether rank 0 still runs; returns whether to start anew.
Recover = Callable[[MachineError, Callable[[], bool]], bool]


def run_ranks(
    command: RankCommand, connections: Sequence[Connection], recover: Recover | None = None
) -> int | None:
    """Run the command on all machines -> rank 0's exit status; None to start anew.

    Args:
        connections: of all ranks, rank 0's first.
        recover: called when a rank is lost, while rank 0 goes on. Without it the command ends.

    Raises:
        MachineError: a rank was lost before rank 0 had ended.
    """
    others = connections[1:]
    for connection in others:
        environment = command.environment(connection.rank)
        connection.send("start", environment=environment, files=command.files)
    for connection in others:
        connection.answer()
    with _terminal_kept(), _first_rank(command) as first:
        return _watch(first, others, recover)


@contextlib.contextmanager
def _first_rank(command: RankCommand) -> Iterator[subprocess.Popen[bytes]]:
    """Start rank 0, which gets Ctrl-C from the terminal and SIGTERM from here."""
    files = write_files(command.files)
    environment = os.environ | command.environment(0) | files
    first = subprocess.Popen(
        [sys.executable, "-m", "magistral_mlx", *command.arguments], env=environment
    )

    def passed_on(number: int, _: Any) -> None:
        if first.poll() is None:
            first.send_signal(number)

    handlers: Mapping[signal.Signals, Any] = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGTERM: passed_on,
        signal.SIGHUP: passed_on,
    }
    before = {number: signal.signal(number, what) for number, what in handlers.items()}
    try:
        yield first
    finally:
        if first.poll() is None:
            first.kill()
            first.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        remove_files(files)


def _watch(
    first: subprocess.Popen[bytes], others: Sequence[Connection], recover: Recover | None
) -> int | None:
    """Wait for rank 0 -> its exit status; None to start anew.

    Raises:
        MachineError: another rank has ended before, or rank 0 by a signal.
    """
    while first.poll() is None:
        # One that ended well was sent home by rank 0, which goes on alone.
        lost = next((one for one in others if one.ended or (one.lost and one.ended is None)), None)
        if lost is None:
            time.sleep(_POLL_SECONDS)
            continue
        if recover is None:  # rank 0 may say itself, and better, what it lost
            with contextlib.suppress(subprocess.TimeoutExpired):
                first.wait(END_SECONDS)
                break
        error = MachineError(_loss(lost))
        if recover is None:
            raise error
        if recover(error, lambda: first.poll() is None):
            first.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                first.wait(END_SECONDS)
            return None
    status = first.wait()
    if status >= 0:
        return status
    if -status in (signal.SIGINT, signal.SIGTERM):
        return 128 - status
    raise MachineError(f"rank 0, on this machine, was ended by {_signal(-status)}.")


def _loss(lost: Connection) -> str:
    """What became of a rank, in one line."""
    if lost.ended is None:
        return f"{lost.label} was lost: its connection has ended. Check that it is on and awake."
    how = f"by {_signal(-lost.ended)}." if lost.ended < 0 else f"with status {lost.ended}."
    said = f" {lost.last_line}" if lost.last_line and lost.ended > 0 else ""
    return f"{lost.label} was lost: its process ended {how}{said}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """Give the terminal back as it was: a rank that is killed cannot."""
    try:
        import termios

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(number, termios.TCSADRAIN, before)
