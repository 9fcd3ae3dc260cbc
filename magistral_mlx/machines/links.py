"""Latency and bandwidth between two machines, over a plain TCP stream for a bounded time."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from dataclasses import dataclass

CONNECT_SECONDS = 3.0
_ROUND_TRIPS = 100
_LATENCY_SECONDS = 0.5
_BLOCK = 1 << 18  # bytes sent at once
_MOST_BYTES = 1 << 30
_PING, _STREAM = b"p", b"s"


@dataclass(frozen=True)
class LinkSpeed:
    """A measured link. latency: seconds of a round trip. bandwidth: bytes a second."""

    latency: float
    bandwidth: float


class LinkListener:
    """Listens at one address for measurements by who knows the token, until it is closed."""

    def __init__(self, address: str, port: int = 0) -> None:
        """Raises OSError: the address is not one of this machine, or the port is taken."""
        self.token = secrets.token_hex(16)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((address, port))
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(CONNECT_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(CONNECT_SECONDS)
                with contextlib.suppress(OSError, EOFError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        told = _receive(connection, len(self.token)).decode("ascii", "replace")
        if not secrets.compare_digest(told, self.token):
            return
        while (kind := connection.recv(1)) == _PING:
            connection.sendall(kind)
        if kind == _STREAM:
            count = 0
            while data := connection.recv(_BLOCK):
                count += len(data)
            connection.sendall(count.to_bytes(8, "big"))


def measure_link(address: str, port: int, token: str, seconds: float) -> LinkSpeed:
    """Measure the link to a `LinkListener`. seconds: of the stream.

    Raises:
        OSError: it cannot be reached.
        EOFError: it closed the connection.
    """
    with socket.create_connection((address, port), CONNECT_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(token.encode())
        latency = _latency(connection)
        connection.sendall(_STREAM)
        block, sent = bytes(_BLOCK), 0
        start = time.perf_counter()
        while time.perf_counter() - start < seconds and sent < _MOST_BYTES:
            connection.sendall(block)
            sent += len(block)
        connection.shutdown(socket.SHUT_WR)
        received = int.from_bytes(_receive(connection, 8), "big")
        took = time.perf_counter() - start
    if received != sent:
        raise EOFError
    return LinkSpeed(latency, received / took)


def _latency(connection: socket.socket) -> float:
    """The median of some round trips of a byte, the first of which opens the way."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _ROUND_TRIPS and time.perf_counter() - begin < _LATENCY_SECONDS:
        start = time.perf_counter()
        connection.sendall(_PING)
        _receive(connection, 1)
        times.append(time.perf_counter() - start)
    later = sorted(times[1:] or times)
    return later[len(later) // 2]


def _receive(connection: socket.socket, count: int) -> bytes:
    """Receive exactly `count` bytes. Raises EOFError where the connection ends before."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
