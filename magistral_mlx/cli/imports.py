"""Imports that somebody waits for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage among what is made meanwhile, now or later.

    Importing makes objects by the hundred thousand and no garbage. Looking for some, while they
    are made and once more as Python leaves, is a fifth of the time of a short answer. What is made
    in here is meant to live as long as the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
