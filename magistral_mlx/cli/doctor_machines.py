"""`magistral-mlx doctor --machines`: can these machines hold a model together, and how fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.errors import MachineError

if TYPE_CHECKING:
    from magistral_mlx.machines.checks import RingLink
    from magistral_mlx.machines.connection import Connection

_LINK_SECONDS = 1.0  # of measuring each link's bandwidth
_UNKNOWN = "unknown"


def check_machines(machines: str, *, as_json: bool) -> int:
    """Look at machines and their links, and tell -> the exit status.

    Raises:
        InvalidOption: `machines` is no list of machines that begins with this one.
    """
    from magistral_mlx.machines.checks import check_alike, gather_facts, measure_ring
    from magistral_mlx.machines.connection import close_all, connect
    from magistral_mlx.machines.hosts import first_is_here, parse_hosts

    hosts = first_is_here(parse_hosts(machines))
    connections = connect(hosts, lambda rank, line: None)
    links: list[RingLink] = []
    problem = None
    try:
        found = gather_facts(connections)
        try:
            facts = check_alike(connections, found)
            links = measure_ring(connections, facts, _LINK_SECONDS)
        except MachineError as error:
            problem = str(error)
        told: dict[str, Any] = {"good": problem is None, "problem": problem}
        told |= {"machines": _rows(connections, found, links)}
    finally:
        close_all(connections)
    if as_json:
        click.echo(json.dumps(told))
    else:
        _show(told)
    return 0 if problem is None else 1


def _rows(
    connections: Sequence[Connection],
    found: Sequence[dict[str, Any] | MachineError],
    links: Sequence[RingLink],
) -> list[dict[str, Any]]:
    """A row a machine: itself, and its link to the next one. Sizes in bytes, times in seconds."""
    rows = []
    for rank, (connection, facts) in enumerate(zip(connections, found, strict=True)):
        row: dict[str, Any] = {"machine": connection.label, "reachable": isinstance(facts, dict)}
        if isinstance(facts, dict):
            kinds = {one["link"] for one in facts["addresses"]}
            row |= {
                "version": facts["version"],
                "mlx": facts["mlx"],
                "system": facts["system"],
                "name": facts["machine"]["name"],
                "memory": facts["machine"]["memory"],
                "limit": facts["machine"]["limit"],
                "thunderbolt": None if kinds <= {None} else "thunderbolt" in kinds,
                "rdma": None if facts["rdma"] is None else bool(facts["rdma"]),
            }
        if links:
            link = links[rank]
            row["link"] = {
                "to": connections[(rank + 1) % len(connections)].label,
                "address": link.address,
                "kind": link.kind,
                "latency": link.link.latency,
                "bandwidth": link.link.bandwidth,
            }
        rows.append(row)
    return rows


def _show(told: dict[str, Any]) -> None:
    from rich.table import Table

    from magistral_mlx.cli.terminal import print_wide
    from magistral_mlx.memory.plan import gib

    table = Table("machine", "reachable", "magistral-mlx", "MLX", box=None, pad_edge=False)
    table.add_column("for a model", justify="right")
    for column in ("Thunderbolt", "RDMA", "link to", "over"):
        table.add_column(column)
    for column in ("latency", "bandwidth"):
        table.add_column(column, justify="right")
    for row in told["machines"]:
        if not row["reachable"]:
            table.add_row(row["machine"], "no")
            continue
        link = row.get("link")
        table.add_row(
            row["machine"],
            "yes",
            row["version"],
            row["mlx"],
            gib(row["limit"]),
            _word(row["thunderbolt"]),
            _word(row["rdma"]),
            *(_link(link) if link else ()),
        )
    print_wide(table)
    if told["problem"]:
        click.echo(f"\n{told['problem']}")
    else:
        click.echo("\nThese machines can hold a model together.")


def _link(link: dict[str, Any]) -> tuple[str, ...]:
    return (
        link["to"],
        link["kind"] or _UNKNOWN,
        f"{link['latency'] * 1e3:.3f} ms",
        f"{link['bandwidth'] / 1e9:.2f} GB/s",
    )


def _word(value: bool | None) -> str:
    return _UNKNOWN if value is None else "yes" if value else "no"
