"""The hub's address, cache folder and HTTP client, from the usual environment variables.

The variables are read at each call, not at import as in huggingface_hub, and passed to it
explicitly, so that a program may set them at any time. huggingface_hub comes with httpx or, from
version 2, with httpx2; its lazily filled modules are untyped, so that stays in this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx import __version__
from magistral_mlx.errors import HubError
from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LIBRARY = "magistral-mlx"
PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Hub:
    """Settings of a hub: its address, cache folder, and whether it may be asked."""

    endpoint: str
    cache: Path
    offline: bool

    def api(self) -> HfApi:
        """Return a client. Its token is HF_TOKEN, or what `hf auth login` has saved."""
        from huggingface_hub import HfApi

        return HfApi(self.endpoint, library_name=LIBRARY, library_version=__version__)

    def file_url(self, repo: str, commit: str, filename: str) -> str:
        """Return the address of one file at one commit."""
        from urllib.parse import quote

        return f"{self.endpoint}/{repo}/resolve/{commit}/{quote(filename)}"

    def require_online(self, what: str) -> None:
        """Raise `HubError` where HF_HUB_OFFLINE forbids to ask the hub for `what`."""
        if self.offline:
            raise HubError(
                f"{what} is not on this machine and HF_HUB_OFFLINE is set. "
                "Unset it to download, or name a model that is here."
            )


def current_hub() -> Hub:
    """Return the hub of HF_ENDPOINT, HF_HUB_CACHE, HF_HOME and HF_HUB_OFFLINE."""
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return Hub(
        endpoint=(os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/"),
        cache=hub_cache(),
        offline=offline.upper() in {"1", "ON", "YES", "TRUE"},
    )


def hub_cache() -> Path:
    """Return the folder of huggingface_hub's cache, which may not exist."""
    env = os.environ
    if explicit := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return user_path(os.path.expandvars(explicit))
    if home := env.get("HF_HOME"):
        return user_path(os.path.expandvars(home)) / "hub"
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(base) / "huggingface" / "hub"


def http_module() -> Any:
    """Return the HTTP library of huggingface_hub's session: httpx or httpx2."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return httpx


def hub_headers() -> dict[str, str]:
    """Return the headers of a request: the user agent, and the token if there is one."""
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
