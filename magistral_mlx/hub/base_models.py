"""The model that a checkpoint was made from, by its card, its configuration and its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from magistral_mlx.checkpoint.gguf.header import read_gguf
from magistral_mlx.config_files import read_json
from magistral_mlx.errors import CheckpointError
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.hub.repository import parse_repo

_CONFIG_KEYS = ("base_model", "base_model_name_or_path", "_name_or_path")
_MODEL = re.compile(
    r"(?P<model>(?:(?:Magistral|Devstral|Mistral)-Small-(?:[0-9.]+-24B-(?:Instruct|Base)-)?"
    r"|Ministral-3-[0-9]+B-(?:Instruct|Base|Reasoning)-)\d{4})(?![0-9])",
    re.IGNORECASE,
)
# Published in FP8 under its plain name.
_PUBLISHED_IN_FP8 = re.compile(r"mistralai/Ministral-3-[0-9]+B-Instruct-\d{4}", re.IGNORECASE)
_DEFAULT = "mistralai/Magistral-Small-2509"


def local_base_models(folder: Path) -> list[str]:
    """Return the base models named in a checkpoint's card, configuration and own name.

    Repositories alone: what else stands there may be a folder of the machine that wrote it.
    """
    place = small_files_folder(folder)
    names = bases_in_card(place / "README.md")
    try:
        config = read_json(place / "config.json")
    except CheckpointError:
        config = {}
    names += [config[key] for key in _CONFIG_KEYS if isinstance(config.get(key), str)]
    names = [name for name in names if parse_repo(name)]
    called = [repo_of_snapshot(folder) or place.resolve().name]
    if folder.is_file():
        called += _names_in_gguf(folder)
    matches = (_MODEL.search(name) for name in called)
    return names + [f"mistralai/{match['model']}" for match in matches if match]


def _names_in_gguf(file: Path) -> list[str]:
    """Return the names of a GGUF file and of its base model, from its path and metadata."""
    try:
        metadata = read_gguf(file).metadata
    except CheckpointError:
        metadata = {}
    keys = ("general.base_model.0.repo_url", "general.name", "general.base_model.0.name")
    told = [str(metadata[key]).strip().replace(" ", "-") for key in keys if key in metadata]
    return [file.name, *told]


def small_files_folder(folder: Path) -> Path:
    """Return the folder of a checkpoint's small files; for a GGUF file, that it lies in."""
    return folder.parent if folder.is_file() else folder


def bases_in_card(card: Path) -> list[str]:
    """`base_model` of a model card's front matter: a name or a list of names."""
    from huggingface_hub import metadata_load

    try:
        metadata: Any = metadata_load(card)
    except Exception:  # no card, or one that no YAML parser reads: it names no base
        return []
    base = metadata.get("base_model") if isinstance(metadata, dict) else None
    names = base if isinstance(base, list) else [base]
    return [name for name in names if isinstance(name, str)]


def bfloat16_repository(folder: Path) -> str:
    """Return the repository that most likely holds a checkpoint in bfloat16."""
    names = sorted(local_base_models(folder), key=lambda name: not name.startswith("mistralai/"))
    name = names[0] if names else _DEFAULT
    return f"{name}-BF16" if _PUBLISHED_IN_FP8.fullmatch(name) else name
