"""Checks before a model is split: machines answer, are alike, and reach each other in a ring."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magistral_mlx.errors import MachineError
from magistral_mlx.machines.connection import Connection
from magistral_mlx.machines.hosts import Host, resolve
from magistral_mlx.machines.links import LinkSpeed
from magistral_mlx.memory.chips import Chip
from magistral_mlx.memory.machine import Machine

_LOOPBACK = "127.0.0.1"
_SAME_CHECKOUT = "install the same checkout there, as the README says."
_SAME_MLX = (
    "run `uv tool install --force --with mlx=={0} .` in the checkout there, or "
    "`pip install mlx=={0}` in its environment."
)


@dataclass(frozen=True)
class RingLink:
    """The link from one rank to the next: the next one's address, and what was measured.

    kind: "thunderbolt", "wifi", "ethernet", "loopback", or None where it cannot be told.
    """

    address: str
    port: int
    kind: str | None
    link: LinkSpeed


def gather_facts(
    connections: Sequence[Connection], models: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any] | MachineError]:
    """Ask all machines at once for their facts; those that cannot be used have their error.

    Args:
        models: name and path here of each model that is asked for.
    """
    for connection in connections:
        connection.send("facts", models=[list(model) for model in models])
    found: list[dict[str, Any] | MachineError] = []
    for connection in connections:
        try:
            found.append(connection.answer())
        except MachineError as error:
            found.append(error)
    return found


def check_alike(
    connections: Sequence[Connection],
    found: Sequence[dict[str, Any] | MachineError],
) -> list[dict[str, Any]]:
    """Return the facts of machines that are the same in versions and models.

    Raises:
        MachineError: what differs, on which machine, and what to do, in one line.
    """
    lost = [str(facts) for facts in found if isinstance(facts, MachineError)]
    if lost:
        raise MachineError(" ".join(dict.fromkeys(lost)))
    facts = [one for one in found if not isinstance(one, MachineError)]
    first = facts[0]
    problems = []
    for connection, other in zip(connections[1:], facts[1:], strict=True):
        for key, package, advice in (
            ("version", "magistral-mlx", _SAME_CHECKOUT),
            ("mlx", "mlx", _SAME_MLX.format(first["mlx"])),
        ):
            if other[key] != first[key]:
                problems.append(
                    f"{connection.label} has {package} {other[key]}, and this machine has "
                    f"{first[key]}: {advice}"
                )
        for mine, theirs in zip(first["models"], other["models"], strict=True):
            problems += _model_problems(connection, mine, theirs)
    if problems:
        raise MachineError(" ".join(problems))
    return facts


def _model_problems(
    connection: Connection, mine: dict[str, str | None], theirs: dict[str, str | None]
) -> list[str]:
    path = mine["path"]
    if path is None:
        return [f"{mine['problem']}"]
    target = f"{connection.host.target}:{path}"
    copy = f"copy it with `rsync -a {path}/ {target}/`"
    if Path(path).is_file():
        copy = f"copy it with `rsync -a {path} {target}`"
    if theirs["problem"]:
        return [f"{connection.label}: {theirs['problem'].rstrip('.')}; {copy}."]
    if theirs["path"] is None:
        return []  # it gets its part from the first one while it loads
    if theirs["digest"] != mine["digest"]:
        return [
            f"{connection.label} has other weights in {theirs['path']} than this machine in "
            f"{path}: {copy}."
        ]
    return []


def measure_ring(
    connections: Sequence[Connection], facts: Sequence[dict[str, Any]], seconds: float
) -> list[RingLink]:
    """Find an address of each machine that the one before it reaches, and measure the link.

    The first item is the link from the first machine to the second; the last leads back to the
    first. Thunderbolt goes before other links.

    Args:
        seconds: for the bandwidth of each link.

    Raises:
        MachineError: two neighbours do not reach each other.
    """
    count = len(connections)
    links = []
    try:
        for rank in range(count):
            after = (rank + 1) % count
            links.append(_measure(connections[rank], connections[after], facts[after], seconds))
    finally:
        for connection in connections:
            if not connection.lost:
                connection.ask("close")
    return links


def ring_of(links: Sequence[RingLink]) -> list[list[str]]:
    """The addresses of all ranks as mx.distributed's ring reads them: a list a rank."""
    listening = [links[-1], *links[:-1]]  # the link to rank 0 is the last one
    return [[f"{link.address}:{link.port}"] for link in listening]


def machine_of(facts: dict[str, Any]) -> Machine:
    """The machine that facts describe."""
    told = dict(facts["machine"])
    if chip := told.pop("chip"):
        chip = Chip(**chip | {"memory": tuple(chip["memory"])})
    return Machine(**told, chip=chip)


def _measure(
    before: Connection, after: Connection, facts: dict[str, Any], seconds: float
) -> RingLink:
    """Measure the link to the first address that can be reached."""
    tried = _candidates(before.host, after.host, facts)
    for address, kind in tried:
        try:
            told = after.ask("listen", address=address, port=after.host.port or 0)
        except MachineError as error:
            if after.lost:
                raise
            problem = str(error)
            continue
        try:
            measured = before.ask("measure", address=address, seconds=seconds, **told)
        except MachineError as error:
            if before.lost:
                raise
            problem = str(error)
            continue
        return RingLink(address, told["port"], kind, LinkSpeed(**measured))
    where = ", ".join(address for address, _ in tried) or "no address"
    raise MachineError(
        f"{before.label} does not reach {after.label} ({where}): {problem.rstrip('.')}. Connect "
        "them by a cable or one network, and let Python through the firewall."
        if tried
        else f"{after.label} has no address that {before.label} could reach: connect them by a "
        "cable or one network."
    )


def _candidates(before: Host, after: Host, facts: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Addresses to try and the kinds of their links, the best first."""
    own: dict[str, str | None] = {one["address"]: one["link"] for one in facts["addresses"]}
    if after.address is not None:
        return [(after.address, own.get(after.address))]
    if before.is_loopback and after.is_loopback:
        return [(_LOOPBACK, "loopback")]
    try:
        given = str(ipaddress.IPv4Address(after.name))
        return [(given, own.get(given))]  # an address was asked for, and no other
    except ValueError:
        named = None if after.is_local else resolve(after.name)
    fast = [address for address, link in own.items() if link == "thunderbolt"]
    order = dict.fromkeys([*fast, *([named] if named in own else []), *own])
    return [(address, own[address]) for address in order if address is not None]
