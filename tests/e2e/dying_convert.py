"""Converts, and kills itself (SIGKILL) just before its Nth operation on the disk.

    python dying_convert.py SOURCE TARGET N [force] [calibrated] [vision]

Blocks and commits are made small, so that a tiny checkpoint passes every stage. N = 0 lives, and
the number of operations is printed.
"""

import itertools
import os
import signal
import sys
import threading
from dataclasses import replace

from magistral_convert import ConvertOptions, convert, pipeline
from magistral_convert.calibration import memory, text

OPERATIONS = ("pwrite", "fsync", "ftruncate", "rename", "replace")


def die_before(number: int) -> "itertools.count[int]":
    """Count the operations of all threads, and die before that one."""
    counter, lock = itertools.count(1), threading.Lock()

    def counted(operation):
        def call(*args, **kwargs):
            with lock:
                if next(counter) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return counter


def main(source: str, target: str, number: str, *rest: str) -> None:
    pipeline.BLOCK_BYTES = 64 << 10
    pipeline.COMMIT_BYTES = 100 << 10
    counter = die_before(int(number))
    options = ConvertOptions(force="force" in rest)
    if "calibrated" in rest:
        text.SEQUENCE, text.HELD_OUT = 64, 4
        options = ConvertOptions(bits=3, calibration=("default",), calibration_tokens=1024)
    if "vision" in rest:
        memory.IMAGE_SIZES = ((4, 3), (3, 4), (5, 2), (3, 3))
        options = replace(options, quantize_vision=True, calibration_tokens=256)
    convert(source, target, options)
    sys.stdout.write(str(next(counter) - 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
