"""Settings of a server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.errors import InvalidOption
from magistral_mlx.mcp.config import ServerSpec

MIB = 1 << 20
OLLAMA_PORT = 11434
_ORIGIN = r"file://|[a-z][a-z0-9+.-]*://[^/\s?#@A-Z]+"  # as browsers send it
_HOST = r"[^\s/:@]+|\[?[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*\]?"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNITS = {"GiB": 1 << 30, "GB": 10**9, "MiB": MIB, "MB": 10**6, "KiB": 1 << 10, "KB": 10**3}


def exact_size(size: int) -> str:
    """A size as the command line takes it, in the largest unit that divides it: "64 MiB"."""
    for unit, count in _UNITS.items():
        if size and size % count == 0:
            return f"{size // count:,} {unit}"
    return f"{size:,} byte{'' if size == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request.

    body_bytes: of its body. images: in all its messages. tokens: of an answer, thinking
    included; None for what the context leaves. seconds: from the first token of the prompt to the
    last one of the answer; None for no limit. queue: requests that may wait for their turn.
    """

    body_bytes: int = 64 * MIB
    images: int = 32
    tokens: int | None = None
    seconds: float | None = 3600.0
    queue: int = 128

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        for name in ("body_bytes", "queue"):
            _positive(name, getattr(self, name))
        for name in ("tokens", "seconds"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.images < 0:
            raise InvalidOption(f"the limit of images is {self.images}; it must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server, fixed when it starts.

    models: names as `Magistral.load` takes them; none for the one that is on this machine. The
        first answers requests that name no model.
    host, port: where it listens; port 0 takes a free one.
    api_key: what requests must bring; required for a host that others can reach.
    allowed_hosts: names in the Host header besides those of this machine.
    cors_origins: web pages that may use the server from a browser, "*" for all.
    load_adapters: let clients load and drop adapters from folders of this machine and the hub.
    any_model: let the first model answer where a request names one that is not served.
    ollama: listen on Ollama's port as well.
    allow_remote_images: fetch images from public web addresses.
    keep_alive: seconds after which an idle model gives its memory back; None keeps it.
    traces: a folder that gets each exchange as a JSON file.
    mcp: MCP servers whose tools the page may call.
    log_prompts: write what is asked and answered into the log.
    grace: seconds that running answers get to finish when the server is stopped.
    """

    models: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    any_model: bool = False
    load_adapters: bool = False
    ollama: bool = False
    allow_remote_images: bool = False
    keep_alive: float | None = None
    traces: Path | None = None
    mcp: tuple[ServerSpec, ...] = ()
    log_prompts: bool = False
    grace: float = 30.0
    limits: Limits = field(default_factory=Limits)
    load: LoadOptions = field(default_factory=lambda: LoadOptions(wire=False))

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range, or a server open to everybody."""
        if not 0 <= self.port <= 65535:
            raise InvalidOption(f"the port is {self.port}; it must be from 0 to 65535.")
        if self.api_key is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.api_key):
            raise InvalidOption(
                "the API key must be of ASCII characters, not empty, and without spaces around it."
            )
        if self.keep_alive is not None and self.keep_alive < 0:
            raise InvalidOption(f"keep_alive is {self.keep_alive}; it must be 0 or more seconds.")
        if self.grace < 0:
            raise InvalidOption(f"grace is {self.grace}; it must be 0 or more seconds.")
        self._check_names()
        if not _is_loopback(self.host) and self.api_key is None:
            raise InvalidOption(
                f"listening on {self.host} lets other machines in, so it needs an API key: give "
                "--api-key or set MAGISTRAL_MLX_API_KEY, or listen on 127.0.0.1."
            )

    def _check_names(self) -> None:
        for origin in self.cors_origins:
            if origin not in ("*", "null") and not re.fullmatch(_ORIGIN, origin):
                raise InvalidOption(
                    f"{origin!r} is no origin: give scheme and host, as in https://chat.example or "
                    "http://localhost:3000, without a path or a slash at its end."
                )
        for host in self.allowed_hosts:
            if not re.fullmatch(_HOST, host):
                raise InvalidOption(
                    f"{host!r} is no host: give a name or an address alone, as in my-mac.local, "
                    "without http:// or a port."
                )


def _is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise InvalidOption(f"the limit of {name} is {value}; it must be more than 0.")
