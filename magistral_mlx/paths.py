"""The folders of models on this machine."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from magistral_mlx.files import user_path
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.hub.gguf import parse_gguf
from magistral_mlx.hub.repository import parse_repo

DEMO = "demo"


def home_dir() -> Path:
    """Return this program's folder in the user's cache, or MAGISTRAL_MLX_HOME."""
    if home := os.environ.get("MAGISTRAL_MLX_HOME"):
        return user_path(home)
    if sys.platform == "darwin":
        return user_path("~/Library/Caches/magistral-mlx")
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "magistral-mlx"


def conversions_dir() -> Path:
    """Return the folder of conversions without `-o`. It may not exist."""
    return home_dir() / "models"


def conversion_dir(source: str | os.PathLike[str], label: str) -> Path:
    """Return the folder of a conversion without `-o`: `Magistral-Small-2509-4bit` for `4bit`.

    `source` is a folder, a GGUF file or a model's name, as on the hub, in LM Studio or in Ollama;
    `label` may be empty.
    """
    name = _base_name(os.fspath(source))
    return conversions_dir() / (f"{name}-{label}" if label else name)


def demo_dir() -> Path:
    """Return the checkpoint that is shipped in this package."""
    return Path(__file__).parent / DEMO / "checkpoint"


def lmstudio_dirs() -> list[Path]:
    """Return the existing folders of LM Studio's models; each holds OWNER/NAME folders."""
    home = _lmstudio_home()
    candidates = [
        _lmstudio_setting(home),
        home / "models",
        user_path("~/.lmstudio/models"),
        user_path("~/.cache/lm-studio/models"),
    ]
    existing = [path.resolve() for path in candidates if path is not None and path.is_dir()]
    return list(dict.fromkeys(existing))


def ollama_dir() -> Path:
    """Ollama's folder of manifests and blobs; OLLAMA_MODELS names another. It may not exist."""
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def _base_name(source: str) -> str:
    folder = user_path(source)
    if source == DEMO or folder.absolute() == demo_dir():
        return DEMO
    if folder.is_file():
        return re.sub(r"-\d{5}-of-\d{5}$", "", folder.name.removesuffix(".gguf"))
    if folder.is_dir():
        repo = repo_of_snapshot(folder)
        return repo.split("/")[1] if repo else folder.resolve().name
    ref, gguf = parse_repo(source), parse_gguf(source)
    if gguf is not None:
        return f"{gguf.ref.repo.split('/')[1].removesuffix('-GGUF')}-{gguf.label}"
    return ref.repo.split("/")[1] if ref else folder.name.replace(":", "-")


def _lmstudio_home() -> Path:
    """Return LM Studio's folder, which a file in the user's home names if it was moved."""
    default = user_path("~/.lmstudio")
    try:
        pointer = user_path("~/.lmstudio-home-pointer").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return default
    return user_path(pointer) if pointer else default


def _lmstudio_setting(home: Path) -> Path | None:
    """Return the models folder of LM Studio's settings, or None."""
    try:
        settings = json.loads((home / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
    return user_path(folder) if isinstance(folder, str) and folder else None
