"""Imports that somebody waits for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage meanwhile, and never again among what there is at the end.

    Importing makes objects by the hundred thousand and no garbage. Looking for some, while they
    are made and once more as Python leaves, would be a fifth of the time that `generate` takes for
    a short answer of a small model. For a command's process, which keeps its imports to the end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
