"""Folders on this machine where checkpoints live."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.hub.repository import parse_repo

DEMO = "demo"


def home_dir() -> Path:
    """This program's folder in the user's cache; MAGISTRAL_MLX_HOME names another."""
    if home := os.environ.get("MAGISTRAL_MLX_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/magistral-mlx").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "magistral-mlx"


def conversions_dir() -> Path:
    """Where conversions without `-o` go, and where `generate` looks first. It may not exist."""
    return home_dir() / "models"


def conversion_dir(source: str | os.PathLike[str], label: str) -> Path:
    """The folder for a conversion without `-o`: `Magistral-Small-2509-4bit` for `4bit`.

    `source` is a folder, a GGUF file or the name of a repository; `label` may be empty.
    """
    name = _base_name(os.fspath(source))
    return conversions_dir() / (f"{name}-{label}" if label else name)


def demo_dir() -> Path:
    """The checkpoint that is shipped inside this package."""
    return Path(__file__).parent / DEMO / "checkpoint"


def lmstudio_dirs() -> list[Path]:
    """The folders of LM Studio's models that exist; each holds OWNER/NAME folders."""
    home = _lmstudio_home()
    candidates = [
        _lmstudio_setting(home),
        home / "models",
        Path("~/.lmstudio/models").expanduser(),
        Path("~/.cache/lm-studio/models").expanduser(),
    ]
    existing = [path.resolve() for path in candidates if path is not None and path.is_dir()]
    return list(dict.fromkeys(existing))


def _base_name(source: str) -> str:
    folder = Path(source).expanduser()
    if source == DEMO or folder.absolute() == demo_dir():
        return DEMO
    if folder.is_file():
        return re.sub(r"-\d{5}-of-\d{5}$", "", folder.name.removesuffix(".gguf"))
    ref = parse_repo(source)
    if folder.is_dir() or ref is None:
        repo = repo_of_snapshot(folder)
        return repo.split("/")[1] if repo else folder.resolve().name
    return ref.repo.split("/")[1]


def _lmstudio_home() -> Path:
    """Where LM Studio keeps its things; a file in the user's home says it if it was moved."""
    default = Path("~/.lmstudio").expanduser()
    try:
        pointer = Path("~/.lmstudio-home-pointer").expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return default
    return Path(pointer).expanduser() if pointer else default


def _lmstudio_setting(home: Path) -> Path | None:
    """The models folder chosen in LM Studio's settings, or None."""
    try:
        settings = json.loads((home / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
    return Path(folder).expanduser() if isinstance(folder, str) and folder else None
