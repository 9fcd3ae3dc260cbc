"""The list of `--machines`: names, and the ports that the ring of ranks listens on."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from magistral_mlx.errors import InvalidOption

LOCAL = "localhost"
MOST_HOSTS = 64
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_EXAMPLE = "mac1.local,mac2.local"


@dataclass(frozen=True)
class Host:
    """A machine of `--machines`.

    target: what ssh is given, as in user@mac2.local. port: of the ring; None takes a free one.
    """

    target: str
    port: int | None = None

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
    """Return the machines of a list such as "mac1.local,user@mac2.local:5000".

    Raises:
        InvalidOption: fewer than two, one that is no name, or one that is named twice.
    """
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
    if not _is_here(first.name):
        raise InvalidOption(
            f"--machines begins with {first.name}, which is not this machine: name this one first, "
            "by its name or as localhost, or run the command there."
        )
    return [Host(LOCAL, first.port), *hosts[1:]]


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
