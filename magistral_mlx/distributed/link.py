"""Connections between rank 0 and each other rank, for words: what to do, and signs of life.

A message is a JSON value behind its length. A side that has nothing to say sends `null` now and
then; one that is silent for longer than the other side's patience has been lost.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PATIENCE = 20.0  # seconds without a sign of life after which a rank has been lost
_LEAVING = 5.0  # seconds that the other side has to read the last message
_BEATS = 10  # signs of life in that time
_LONGEST = 64 << 20  # bytes of a message
_LENGTH = struct.Struct(">I")


class Link:
    """One side of a connection. What comes is handed to `on_message` in a thread of its own."""

    def __init__(
        self,
        connection: socket.socket,
        on_message: Callable[[Any], None],
        on_lost: Callable[[str], None],
        patience: float = PATIENCE,
    ) -> None:
        """Begin to listen and to give signs of life.

        Args:
            on_lost: gets the reason, as in "has ended"; called once, unless `close` came first.
        """
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(patience)
        self._connection, self._patience = connection, patience
        self._on_message, self._on_lost = on_message, on_lost
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._listener = _in_thread(self._listen)
        _in_thread(self._beat)

    def send(self, message: Any) -> None:
        """Send a message. One that cannot be sent loses the other side."""
        try:
            with self._sending:
                write(self._connection, message)
        except OSError as error:
            self._lose(_reason(error, self._patience))

    def close(self) -> None:
        """End the connection, on purpose."""
        self._closed.set()
        _shut(self._connection)

    def finish(self) -> None:
        """End the connection when the other side has read what was sent, and closes it."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._listener.join(_LEAVING)
        _shut(self._connection)

    def _listen(self) -> None:
        while True:
            try:
                message = read(self._connection)
            except (OSError, ValueError, EOFError) as error:
                self._lose(_reason(error, self._patience))
                return
            if message is not None:
                self._on_message(message)

    def _beat(self) -> None:
        while not self._closed.wait(self._patience / _BEATS):
            self.send(None)

    def _lose(self, reason: str) -> None:
        if not self._closed.is_set():
            self._closed.set()
            _shut(self._connection)
            self._on_lost(reason)


def _in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="magistral-mlx-link", daemon=True)
    thread.start()
    return thread


def write(connection: socket.socket, message: Any) -> None:
    """Write a message. Raises OSError."""
    data = json.dumps(message, separators=(",", ":")).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def read(connection: socket.socket) -> Any:
    """Read a message.

    Raises:
        OSError, EOFError: the connection has ended. ValueError: that is no message.
    """
    (length,) = _LENGTH.unpack(exactly(connection, _LENGTH.size))
    if length > _LONGEST:
        raise ValueError
    return json.loads(exactly(connection, length))


def exactly(connection: socket.socket, count: int) -> bytes:
    """Read so many bytes. Raises OSError, or EOFError where the connection ends before."""
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _reason(error: Exception, patience: float) -> str:
    if isinstance(error, TimeoutError):
        return f"gave no sign of life for {patience:g} seconds"
    if isinstance(error, EOFError | ConnectionError):
        return "has ended"
    if isinstance(error, ValueError):
        return "sent something that is no message"
    return f"cannot be reached any more ({error})"
