"""What we use of huggingface_hub's HTTP side, imported when it is needed.

It comes with httpx or, from version 2, with httpx2; `huggingface_hub.utils.httpx` is whichever it
is. Its lazily filled modules say nothing to a type checker, so that ends here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magistral_mlx import __version__

LIBRARY = "magistral-mlx"


def http_module() -> Any:
    """The HTTP library that huggingface_hub's session belongs to: httpx or httpx2."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return httpx


def hub_headers() -> dict[str, str]:
    """Headers of a request to the hub: the user agent, and the token if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers(library_name=LIBRARY, library_version=__version__)
    return headers


def raise_for_status(response: Any) -> None:
    """Raise huggingface_hub's error for a response that refuses."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    hf_raise_for_status(response)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which huggingface_hub takes too; waits while another holds it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield
