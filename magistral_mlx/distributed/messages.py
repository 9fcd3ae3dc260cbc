"""What MLX's ring writes to stderr, which would bury our own line about a rank that was lost."""

from __future__ import annotations

import os
import sys
import threading

_OF_THE_RING = b"[ring] "


def drop_ring_messages() -> None:
    """Keep the ring's messages off stderr, for the rest of this process.

    MLX writes to file descriptor 2, one line for every send that fails. That becomes a pipe whose
    other lines are passed on; `sys.stderr` goes on writing to where it did.
    """
    stderr = sys.stderr
    try:
        if stderr.fileno() != 2:
            return
    except OSError:  # not a file
        return
    stderr.flush()
    real = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = open(  # noqa: SIM115
        real, "w", buffering=1, encoding=stderr.encoding, errors="backslashreplace"
    )
    threading.Thread(target=_pass_on, args=(reading, real), daemon=True).start()


def _pass_on(reading: int, real: int) -> None:
    with open(reading, "rb") as lines:
        for line in lines:
            if not line.startswith(_OF_THE_RING):
                os.write(real, line)
