"""Converts, and kills itself (SIGKILL) just before its Nth operation on the disk.

    python dying_convert.py SOURCE TARGET N [force]

Blocks and commits are made small, so that a tiny checkpoint passes every stage. N = 0 lives, and
the number of operations is printed.
"""

import itertools
import os
import signal
import sys
import threading

from magistral_convert import ConvertOptions, convert, pipeline

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
    convert(source, target, ConvertOptions(force="force" in rest))
    sys.stdout.write(str(next(counter) - 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
