"""Runs a server: sockets, uvicorn, signals and shutdown."""

from __future__ import annotations

import asyncio
import errno
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from fastapi import FastAPI

from magistral_mlx.errors import InvalidOption
from magistral_mlx.runtime.progress import OnProgress
from magistral_mlx.server.app import create_app
from magistral_mlx.server.connections import (
    ACCEPTED_AT_ONCE,
    OnceOutOfFiles,
    most_connections,
    protocol_of,
    raise_file_limit,
)
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.settings import OLLAMA_PORT, Settings

_BACKLOG = 2048
_KEEP_CONNECTION = 75  # seconds; longer than clients keep idle ones, so that none is cut in use
_AFTER_GRACE = 10  # seconds for clients to read the end of their streams


def serve(
    settings: Settings,
    *,
    on_listening: Callable[[list[str], GenerationService], None],
    on_waiting: Callable[[list[str]], None],
    on_ready: Callable[[], None],
    on_progress: OnProgress | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish the running answers.

    Args:
        on_listening: called with the URLs and the service, before the first one is loaded.
        on_waiting: called with the names of MCP servers that are not connected when the first
            model has been loaded.
        on_ready: called when the first model has been loaded, and MCP servers are connected.
        on_progress: called while files are downloaded, and in another thread while weights are
            read.

    Raises:
        MagistralError: the address is not available, a model cannot be found or loaded, or an MCP
            server cannot be reached.
    """
    with ExitStack() as opened:
        ports = [settings.port, *([OLLAMA_PORT] if settings.ollama else ())]
        sockets = []
        for port in dict.fromkeys(ports):
            for listener in listen(settings.host, port):
                opened.callback(listener.close)
                sockets.append(listener)
        app = create_app(settings, on_progress=on_progress)
        service: GenerationService = app.state.service
        config = uvicorn_config(app, settings.grace)
        on_listening([url_of(listener) for listener in sockets], service)
        _Server(config, service, on_waiting, on_ready).run(sockets=sockets)
    if service.load_error is not None:
        raise service.load_error


def uvicorn_config(app: FastAPI, grace: float, connections: int | None = None) -> uvicorn.Config:
    """How uvicorn serves `app`.

    Args:
        grace: seconds that running answers get when it is stopped.
        connections: open connections at most; None for what this process may have.
    """
    most = most_connections(raise_file_limit()) if connections is None else connections
    return uvicorn.Config(
        app,
        http=protocol_of(most),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_CONNECTION,
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=_timeout(grace),
    )


def listen(host: str, port: int) -> list[socket.socket]:
    """Open sockets on every address of `host`, all on one port; 0 takes a free one.

    Raises:
        InvalidOption: the port is taken or not allowed, or no address of this machine.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((entry[0], entry[4][0]) for entry in found):
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                listener = socket.create_server(
                    (str(address), taken), family=family, backlog=_BACKLOG
                )
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # a machine without IPv6 knows ::1 as a name of localhost
            else:
                sockets.append(listener)
        if missing is not None and not sockets:
            raise missing
    except (OSError, UnicodeError) as error:
        for listener in sockets:
            listener.close()
        raise InvalidOption(_listen_error(host, port, error)) from error
    return sockets


def _timeout(grace: float) -> int | None:
    """Seconds after which uvicorn closes connections whose clients do not read their end."""
    return None if math.isinf(grace) else math.ceil(grace) + _AFTER_GRACE


def url_of(listener: socket.socket) -> str:
    """URL of a socket from this machine, without a slash at its end."""
    return url_at(*listener.getsockname()[:2])


def url_at(host: str, port: int) -> str:
    """URL of a port from this machine; of its loopback address where `host` is every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen_error(host: str, port: int, error: OSError | UnicodeError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program. Stop that, or " + (
            "leave out --ollama." if port == OLLAMA_PORT else "name another port with --port."
        )
    if number == errno.EACCES:
        return f"port {port} needs administrator's rights. Name one from 1024 on with --port."
    if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError):
        return (
            f"{host} is no address of this machine. Listen on 127.0.0.1 (this machine alone) or "
            "0.0.0.0 (everywhere)."
        )
    return f"cannot listen on {host}, port {port}: {error}."


class _Server(uvicorn.Server):
    """uvicorn with its own shutdown: answers are finished, and the exit status is 0.

    The first signal lets running answers finish within the grace period, and so does a failed
    start; the second stops them within a token; the third leaves.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: GenerationService,
        on_waiting: Callable[[list[str]], None],
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_waiting = on_waiting
        self._on_ready = on_ready
        self._signals = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(OnceOutOfFiles())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # uvicorn's is what is accepted at once
        self._tasks.append(asyncio.create_task(self._wait_for_start()))

    async def _wait_for_start(self) -> None:
        service = self._service
        await service.first_load.wait()
        if service.load_error is None:
            awaited = service.mcp.awaited
            if awaited and not (service.mcp_settled.is_set() or self.should_exit):
                self._on_waiting(awaited)
            await service.mcp_settled.wait()
        if service.load_error is not None:
            self._leave()
        elif not self.should_exit:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._leave()
        elif self._signals == 2:
            self._service.stop()
        else:
            self.force_exit = True

    def _leave(self) -> None:
        """Exit once the running answers have finished, or the grace period is over."""
        self.should_exit = True
        drain = self._service.drain(self._service.settings.grace)
        self._tasks.append(asyncio.create_task(drain))
