"""Calls with a large stack, for llguidance, which follows references and rules by recursion.

A thread has 8 MiB on Linux, in which a chain of a few hundred definitions ends the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_BYTES = 256 << 20  # of addresses: memory is taken as it is used
_starting = threading.Lock()
_Result = TypeVar("_Result")


def with_large_stack(call: Callable[[], _Result]) -> _Result:
    """Return what a call returns in a thread of its own; it raises what that raises."""
    result: Future[_Result] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="grammar", daemon=True)
    with _starting:  # the size is that of all threads that begin now
        usual = threading.stack_size(_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    return result.result()
