"""Long work should not be stopped by a Mac that falls asleep."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_awake() -> Iterator[None]:
    """Keep a Mac awake inside; it ends with this process whatever happens. Nothing elsewhere."""
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
