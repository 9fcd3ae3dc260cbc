"""How ranks find each other, before MLX connects them.

MLX waits for the other ranks without an end, and lets no other thread run meanwhile. So it connects
them only when all are known to be there, on the address where rank 0's end of the ring is then.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from magistral_mlx import __version__
from magistral_mlx.backend import mx
from magistral_mlx.distributed.group import Group
from magistral_mlx.distributed.link import PATIENCE, read, write
from magistral_mlx.distributed.place import Place
from magistral_mlx.errors import RankLost
from magistral_mlx.measurements import Measurements
from magistral_mlx.memory.estimate import bandwidth_of
from magistral_mlx.memory.machine import Machine, this_machine

MEETING = 120.0  # seconds that all ranks have to come
_HELLO = 5.0  # seconds that who connects has to say what it is
_AGAIN = 0.2  # seconds between attempts to reach rank 0
_TOKEN_BYTES = 16


@dataclass(frozen=True)
class Joined:
    """A rank that has come, by its connection to rank 0."""

    rank: int
    connection: socket.socket
    machine: Machine


def versions() -> list[str]:
    """Return the versions that all ranks must have in common: of this package and of MLX."""
    return [__version__, version("mlx")]


# On rank 0


def meet(place: Place, seconds: float = MEETING) -> list[Joined]:
    """Wait for the other ranks -> rank 1 first. They go on when all are there.

    Raises:
        RankLost: one does not come, or has another version.
    """
    end = time.monotonic() + seconds
    found: dict[int, Joined] = {}
    with _listening(place) as listening:
        while len(found) < place.size - 1:
            listening.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                missing = [n for n in range(1, place.size) if n not in found]
                raise RankLost(
                    f"{', '.join(map(place.name, missing))} did not come within {seconds:.0f} "
                    "seconds. See what that machine says, and start all of them again."
                ) from None
            one = _welcome(place, connection)
            if one is not None:
                found[one.rank] = one
    joined = [found[rank] for rank in sorted(found)]
    for one in joined:
        with suppress(OSError):
            write(one.connection, {"value": None})
    return joined


def confirm(joined: list[Joined], group: Group) -> None:
    """Check that the connections are those of the ranks that MLX has connected.

    Raises:
        RankLost: another program has taken a rank's place, or a rank has ended.
    """
    token = secrets.token_bytes(_TOKEN_BYTES)
    mx.eval(group.from_leader(mx.array([*token], mx.int32)))
    for one in joined:
        try:
            known = hmac.compare_digest(str(read(one.connection)), token.hex())
        except (OSError, EOFError, ValueError):
            known = False
        if not known:
            raise RankLost(
                f"{group.place.name(one.rank)} has ended, or is another program's. Start all "
                "ranks again."
            )


def _listening(place: Place) -> socket.socket:
    host, port = place.addresses[0]
    listening = socket.socket()
    try:
        for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as MLX does, after us
            listening.setsockopt(socket.SOL_SOCKET, name, 1)
        listening.bind((host, port))
        listening.listen(place.size)
    except OSError as error:
        listening.close()
        raise RankLost(
            f"rank 0 cannot listen on {host}:{port}: {error.strerror or error}. Give an address "
            "of this machine, and a free port."
        ) from None
    return listening


def _welcome(place: Place, connection: socket.socket) -> Joined | None:
    """Read what a rank says of itself; None for something that is no rank."""
    connection.settimeout(_HELLO)
    try:
        hello = read(connection)
        rank, theirs = int(hello["rank"]), [str(one) for one in hello["versions"]]
        machine = _machine(**hello["machine"])
        if not 0 < rank < place.size:
            raise ValueError
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        connection.close()
        return None
    if theirs != versions():
        problem = (
            f"{place.name(rank)} has {_named(theirs)}, and rank 0 {_named(versions())}; "
            "install the same on all machines."
        )
        with suppress(OSError):
            write(connection, {"error": problem})
        raise RankLost(problem)
    return Joined(rank, connection, machine)


def _machine(name: str, memory: int, limit: int, bandwidth: float | None) -> Machine:
    return Machine(name, memory, limit, measured=Measurements(bandwidth))


def _named(found: list[str]) -> str:
    return f"magistral-mlx {found[0]} with MLX {found[-1]}"


# On the other ranks


def join(place: Place, seconds: float = MEETING) -> socket.socket:
    """Reach rank 0, and wait until all ranks are there -> the connection to it.

    Raises:
        RankLost: rank 0 does not answer, or refuses.
    """
    here = this_machine()
    machine = {"name": here.name, "memory": here.memory, "limit": here.limit}
    hello = {
        "rank": place.rank,
        "versions": versions(),
        "machine": machine | {"bandwidth": bandwidth_of(here)},
    }
    end = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(place.addresses[0], PATIENCE)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise RankLost(f"rank 0 cannot be reached: {error.strerror or error}.") from None
            time.sleep(_AGAIN)
    connection.settimeout(seconds)
    try:
        write(connection, hello)
        answer: Any = read(connection)
    except (OSError, EOFError, ValueError):
        raise RankLost("rank 0 has ended before all ranks were there.") from None
    if "error" in answer:
        raise RankLost(str(answer["error"]))
    return connection


def prove(connection: socket.socket, group: Group) -> None:
    """Tell rank 0 what it has sent over the ring. Raises RankLost if it has ended."""
    numbers = group.from_leader(((_TOKEN_BYTES,), mx.int32)).tolist()
    token = bytes(int(number) for number in numbers)  # type: ignore[arg-type, union-attr]
    try:
        write(connection, token.hex())
    except OSError:
        raise RankLost("rank 0 has ended before the ranks were connected.") from None
