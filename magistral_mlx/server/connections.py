"""HTTP connections: how many there may be, for how long, and what happens at their ends."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import resource
import socket
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from magistral_mlx.server.admission_queue import STOPPING
from magistral_mlx.server.error_responses import error_response
from magistral_mlx.server.errors import APIError, Busy, Unavailable

_FILES = 10_240  # open files that are asked for; macOS allows no more
ACCEPTED_AT_ONCE = 32  # connections, before those that are too many are closed
_OTHER_FILES = 2 * ACCEPTED_AT_ONCE + 64  # and weights, caches, traces, downloads
_MOST = 4096
_HEADER_SECONDS = 30.0  # in which a connection must bring the headers of its request
_BODY_SECONDS = 60.0  # without a byte of a body that has begun
_PROBE_SECONDS = 0.25

_log = logging.getLogger("magistral_mlx.server")


def raise_file_limit() -> int:
    """Raise this process's soft limit of open files as far as it may -> the limit.

    A connection is an open file, and macOS's usual limit is 256.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _FILES
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # the system allows less than it says
            return soft
        return wanted
    return soft


def most_connections(files: int) -> int:
    """Connections that a process with so many open files may have."""
    return max(8, min(_MOST, files - _OTHER_FILES))


class OnceOutOfFiles:
    """Handler of a loop's exceptions that logs once that the process is out of files.

    asyncio tries to accept again each second, and would log that with a traceback each time.
    """

    def __init__(self) -> None:
        self._told = False

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif not self._told:
            self._told = True
            _log.error("no connection can be accepted: %s. Raise the limit of open files.", error)


def protocol_of(most: int) -> type[BoundedProtocol]:
    """The protocol of a server that has `most` connections at most."""
    return type("Protocol", (BoundedProtocol,), {"most": most, "full": False})


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, bounded in number and time.

    Where there are too many connections, the one that has been idle longest makes room. A client
    that closes its side after its request, as `nc -N` does, still gets its answer.

    most: connections of the server. full: whether that many were open once, which is logged.
    """

    most: int = _MOST
    full: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        self._probed = False

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    # What uvicorn and asyncio call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._wait(_HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self.idle:
            self._wait(_BODY_SECONDS if self.cycle.more_body else None)
        elif self._timer is None and self.conn.trailing_data[0]:
            self._wait(_HEADER_SECONDS)  # not anew with each byte

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection if an answer is due. Returns whether it stays."""
        if self.idle or self.cycle.more_body:
            return None
        self.cycle.keep_alive = False
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        self._wait(None)
        super().on_response_complete()
        if self.idle and self.conn.trailing_data[0]:  # the next request has begun
            self._wait(_HEADER_SECONDS)

    def shutdown(self) -> None:
        """Begin to shut down: what is not wholly here will never be."""
        if not self.idle and self.cycle.more_body and not self.cycle.response_started:
            self._refuse(Unavailable(STOPPING))
        else:
            super().shutdown()

    # Bounds

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, or this one if none is idle."""
        others = [
            other
            for other in self.connections
            if isinstance(other, BoundedProtocol)
            and other is not self
            and not other.transport.is_closing()
        ]
        if len(others) < self.most:  # the rest are closed already
            return
        if not type(self).full:
            type(self).full = True
            _log.warning(
                "%d connections are open, as many as this process may have: those that have "
                "been idle longest are closed.",
                self.most,
            )
        idle = [other for other in others if other.idle]
        if idle:
            min(idle, key=lambda other: other._idle_since).transport.abort()
        else:
            self._refuse(Busy("too many connections are open. Try again later.", 1))

    def _wait(self, seconds: float | None) -> None:
        """Close the connection after so many seconds; None for no limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: APIError) -> None:
        """Answer without the application, and close."""
        answer = error_response(error)
        path = self.scope["path"] if self.scope else "/"
        body = json.dumps(answer.body(path)).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *answer.headers.items(),
        ]
        for event in (
            h11.Response(
                status_code=answer.status,
                headers=headers,
                reason=HTTPStatus(answer.status).phrase.encode(),
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    # A client that has closed its side

    def _probe(self) -> None:
        """Find out whether a client that sends no more still reads.

        One that has gone looks the same until something is sent to it, which it resets. What is
        sent changes nothing for one that reads: a `100 Continue`, or within a stream an empty line.
        """
        if self.transport.is_closing() or self.idle:
            return
        if not self._probed and self.scope["http_version"] == "1.1":
            self._probed = True
            if not self.cycle.response_started:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif self.scope["method"] == "POST":
                self.transport.write(self.conn.send(h11.Data(data=b"\n")) or b"")
        peer = self.transport.get_extra_info("socket")
        if peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self.loop.call_later(_PROBE_SECONDS, self._probe)
