"""Adapters on the hub: their configuration, and the one file of weights that goes with it."""

from __future__ import annotations

import re
from pathlib import Path

from magistral_mlx.checkpoint.adapters.config import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS
from magistral_mlx.errors import ModelNotFound
from magistral_mlx.files import user_path
from magistral_mlx.hub.repository import parse_repo
from magistral_mlx.hub.snapshot import fetch_file
from magistral_mlx.hub.transfer import DownloadProgress

BASE = "base"  # names the model without an adapter


def adapter_name(source: str | Path) -> str:
    """The name of an adapter by its folder or repository: the last part, of plain characters."""
    path = user_path(source)
    last = path.resolve().name if path.exists() else str(source).partition("@")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last.rpartition("/")[2]).lstrip("._-")[:96]
    return "adapter" if not name or name == BASE else name


def locate_adapter(name: str, *, on_progress: DownloadProgress | None = None) -> Path:
    """Return the folder of an adapter: a folder here, or a repository, downloaded if need be.

    Raises:
        ModelNotFound: neither, no name at all, or a repository without an adapter.
        HubError: the hub could not be reached, or refused.
    """
    if not name:  # which would be the current folder as a path
        raise ModelNotFound("the name of the adapter is empty; give a folder, or OWNER/NAME.")
    folder = user_path(name)
    if folder.exists():
        return folder
    ref = parse_repo(name)
    if ref is None:
        raise ModelNotFound(
            f"there is no folder {name}, and it is not the name of a repository on the hub "
            "(owner/name). Name an adapter by one of the two."
        )
    config = fetch_file(ref, CONFIG)
    if config is None:
        raise ModelNotFound(
            f"{ref} holds no adapter: it has no {CONFIG}. Name a repository that PEFT or mlx-lm "
            "has written."
        )
    for weights in (PEFT_WEIGHTS, MLX_WEIGHTS):
        if fetch_file(ref, weights, on_progress=on_progress) is not None:
            return config.parent
    raise ModelNotFound(
        f"{ref} holds no {PEFT_WEIGHTS} and no {MLX_WEIGHTS}: its adapter cannot be used."
    )
