"""The list of `--machines`: names, and the ports that the ring of ranks listens on."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from dataclasses import dataclass, replace

from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import read_text_file

LOCAL = "localhost"
MOST_HOSTS = 64
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_EXAMPLE = "mac1.local,mac2.local"


@dataclass(frozen=True)
class Host:
    """A machine of `--machines`.

    target: what ssh is given, as in user@mac2.local. port: of the ring; None takes a free one.
    address: for the ring, where a host file names one. rdma: the devices that reach each of the
    machines, where a host file has them.
    """

    target: str
    port: int | None = None
    address: str | None = None
    rdma: tuple[str | None, ...] = ()

    @property
    def name(self) -> str:
        """The machine's name without a user."""
        return self.target.rpartition("@")[2]

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, however it is reached."""
        return self.is_local or self.name.startswith("127.")

    @property
    def is_local(self) -> bool:
        """Whether it is started here, without ssh."""
        return self.target == LOCAL


def parse_hosts(text: str) -> list[Host]:
    """Return the machines of a list such as "mac1.local,user@mac2.local:5000", or of a host file
    of mlx.distributed_config, whose name ends in .json.

    Raises:
        InvalidOption: fewer than two, one that is no name, or one that is named twice; a file that
            is no host file.
    """
    if text.strip().endswith(".json"):
        return _read_hosts(text.strip())
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2:
        raise InvalidOption(
            f"--machines is {text!r}; it must name two machines or more, as in {_EXAMPLE}."
        )
    if len(parts) > MOST_HOSTS:
        raise InvalidOption(f"--machines names {len(parts)} machines; {MOST_HOSTS} are the most.")
    hosts = [_parse(part) for part in parts]
    for n, host in enumerate(hosts):
        earlier = [other for other in hosts[:n] if other.name == host.name]
        if any(other.port == host.port and host.port is not None for other in earlier):
            raise InvalidOption(
                f"--machines gives port {host.port} of {host.name} twice; give each a port of its "
                "own, or none."
            )
        if earlier and not host.is_local:
            raise InvalidOption(
                f"--machines names {host.name} twice; name each machine once (localhost may stand "
                "several times, for a try on one machine)."
            )
    return hosts


def _read_hosts(file: str) -> list[Host]:
    """The machines of a host file; with RDMA if every machine names a device to every other."""
    text = read_text_file(file, "the host file")
    try:
        found = json.loads(text)
        entries = found["hosts"] if isinstance(found, dict) else found
        hosts = [
            Host(str(one["ssh"]), address=str(one["ips"][0]) if one.get("ips") else None)
            for one in entries
        ]
        devices = [tuple(one.get("rdma") or ()) for one in entries]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidOption(
            f"{file} is no host file: it must be a list of machines with ssh, ips and rdma, as "
            "mlx.distributed_config writes it."
        ) from None
    named = parse_hosts(",".join(host.target for host in hosts))
    rdma = [
        len(row) == len(hosts) and all(bool(device) != (n == rank) for n, device in enumerate(row))
        for rank, row in enumerate(devices)
    ]
    return [
        replace(host, address=other.address, rdma=row if all(rdma) else ())
        for host, other, row in zip(named, hosts, devices, strict=True)
    ]


def _parse(part: str) -> Host:
    name, colon, port = part.partition(":")
    if not _HOST.fullmatch(name):
        raise InvalidOption(
            f"--machines has {part!r}, which is no name of a machine; give names or IPv4 addresses "
            f"as ssh takes them, as in {_EXAMPLE}."
        )
    if colon and not (port.isascii() and port.isdigit() and 1024 <= int(port) <= 65535):
        raise InvalidOption(
            f"--machines has the port {port!r} of {name}; it must be a number from 1024 to 65535."
        )
    return Host(name, int(port) if colon else None)


def first_is_here(hosts: list[Host]) -> list[Host]:
    """Return the machines with the first one, which is this one, as localhost.

    Raises:
        InvalidOption: the first is another machine, or cannot be found.
    """
    first = hosts[0]
    if first.is_local:
        return hosts
    if not _is_here(first.address or first.name):
        raise InvalidOption(
            f"--machines begins with {first.name}, which is not this machine: name this one first, "
            "by its name or as localhost, or run the command there."
        )
    return [replace(first, target=LOCAL), *hosts[1:]]


def resolve(name: str) -> str | None:
    """Return the IPv4 address of a machine's name; None if it is not known."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0]) if found else None


def _is_here(name: str) -> bool:
    """Whether a name's address is one of this machine."""
    own = socket.gethostname().lower()
    if name.lower() in (own, own.partition(".")[0], f"{own.partition('.')[0]}.local"):
        return True
    address = resolve(name)
    if address is None:
        raise InvalidOption(
            f"--machines names {name}, which is not known here: check the name, or give its "
            "address."
        )
    if ipaddress.ip_address(address).is_loopback:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
