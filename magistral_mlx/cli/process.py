"""The process that a command runs in: its imports, and a Mac that must not fall asleep."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Disable garbage collection while importing, then freeze.

    Importing makes objects by the hundred thousand and no garbage. Collections meanwhile, and one
    more as Python leaves, would be a fifth of the time that `generate` takes for a short answer of
    a small model. For a command's process, which keeps its imports to the end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def kept_awake() -> Iterator[None]:
    """Keep a Mac awake inside, until the end of this process at the latest."""
    import shutil
    import subprocess

    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if program is None:
        yield
        return
    keeper = subprocess.Popen([program, "-i", "-w", str(os.getpid())])
    try:
        yield
    finally:
        keeper.terminate()
        keeper.wait()
