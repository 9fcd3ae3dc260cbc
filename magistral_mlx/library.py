"""The models on this machine: listing, the default, and lookup by name."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.files import SUFFIX, ollama_models, sibling_parts
from magistral_mlx.errors import MagistralError, ModelNotFound, UnsupportedModel
from magistral_mlx.files import user_path
from magistral_mlx.hub import DownloadProgress, resolve
from magistral_mlx.hub.cache import known_commit
from magistral_mlx.hub.client import hub_cache
from magistral_mlx.hub.gguf import labels, select_model
from magistral_mlx.hub.repository import RepoRef, parse_repo, select_weight_files
from magistral_mlx.hub.support import check_supported, stored_bits
from magistral_mlx.paths import (
    DEMO,
    conversion_dir,
    conversions_dir,
    demo_dir,
    lmstudio_dirs,
    ollama_dir,
)

__all__ = [
    "FoundModel",
    "conversion_dir",
    "conversions_dir",
    "default_model",
    "demo_dir",
    "find_models",
    "locate",
]

Source = Literal["conversions", "hub", "lmstudio", "ollama"]
_SOURCES: tuple[Source, ...] = ("conversions", "hub", "lmstudio", "ollama")
_FAMILY = "magistral"
_ADVICE = (
    "Convert one with `magistral-mlx convert mistralai/Magistral-Small-2509` (downloads 48 GB, "
    "keeps 14), or take a ready one with `--model lmstudio-community/Magistral-Small-2509-MLX-4bit`"
    " (downloads 14 GB)."
)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One checkpoint that this package can run, or could if it were complete.

    `name` is what `--model` takes. `path` is a folder, or the first file of a GGUF model. `bits` is
    None for unquantized weights. A model that is not `complete` lacks files, or has damaged ones;
    `problem` then says what is wrong.
    """

    name: str
    path: Path
    source: Source
    size_bytes: int
    bits: int | None
    has_vision: bool
    complete: bool
    problem: str | None = None


def find_models() -> list[FoundModel]:
    """Find every supported model: conversions, the hub's cache, LM Studio's, Ollama's.

    Reads configurations and the headers of weight files, never the weights.
    """
    found: dict[Path, FoundModel] = {}
    for source in _SOURCES:
        places = (*_folders(source), *_gguf_files(source))
        models = [_inspect(name, path, source) for name, path in places]
        for model in sorted(filter(None, models), key=lambda model: model.name.lower()):
            found.setdefault(model.path.resolve(), model)
    return list(found.values())


def default_model() -> Path:
    """Return the model that runs when none is named.

    A 4-bit conversion in the user's cache, else a quantized model found in the hub's cache or in
    LM Studio's folder: Magistral before others, 4 bits before more, with vision before without. A
    GGUF file only where there is nothing else: its tokenizer may be missing.
    Unquantized models are never chosen: they would fill the memory of most machines.
    Raises `ModelNotFound` with the command that gets one.
    """
    models = [model for model in find_models() if model.complete]
    quantized = [model for model in models if model.bits is not None]
    quantized = [model for model in quantized if model.path.is_dir()] or quantized
    if quantized:
        return min(quantized, key=_rank).path
    if models:
        raise ModelNotFound(
            f"no quantized model on this machine. {models[0].name} is here, unquantized: convert "
            f"it with `magistral-mlx convert {models[0].name}`, or run it as it is with "
            f"`--model {models[0].name}`."
        )
    raise ModelNotFound(f"no model on this machine. {_ADVICE}")


def locate(name: str | None, *, on_progress: DownloadProgress | None = None) -> Path:
    """Return the local folder of the model that `--model` names, downloading it if needed.

    None is `default_model`, "demo" the embedded one; else a folder, a conversion in the user's
    cache, a model of LM Studio's or Ollama's, or one on the hub (see `hub.resolve`). Raises
    `ModelNotFound` with the names here that are alike, and where the name is empty.
    """
    if name is None:
        return default_model()
    _check_not_empty(name)
    if name == DEMO:
        return demo_dir()
    if not user_path(name).exists():
        found = find_by_name(name)
        if found is not None:
            return found
    try:
        return resolve(name, on_progress=on_progress)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error}{_suggestion(name)}") from error


def path_of(name: str) -> Path | None:
    """Return the folder or file of that path, or the model of that name outside the hub's cache.
    Raises `ModelNotFound` where the name is empty."""
    _check_not_empty(name)
    path = user_path(name)
    return path if path.exists() else find_by_name(name)


def _check_not_empty(name: str) -> None:
    if not name:  # which would be the current folder as a path
        raise ModelNotFound("the name of the model is empty; give a folder, or OWNER/NAME.")


def find_by_name(name: str) -> Path | None:
    """Return the model of that name outside the hub's cache, or None.

    A damaged one of LM Studio's is passed over, as its name is that of a repository as well.
    """
    for source in _SOURCES:
        if source == "hub":
            continue
        for known, path in (*_folders(source), *_gguf_files(source)):
            if known.lower() == name.lower():
                model = _inspect(known, path, source)
                if model is not None and (model.complete or source == "conversions"):
                    return path
    return None


def _suggestion(name: str) -> str:
    """Return a sentence with similar names on this machine; empty if there are none."""
    known = {model.name.lower(): model.name for model in find_models()}
    short = {full.rpartition("/")[2]: given for full, given in known.items()}
    close = difflib.get_close_matches(name.lower(), known, n=3)
    close_short = difflib.get_close_matches(name.lower().rpartition("/")[2], short, n=3)
    names = dict.fromkeys([known[n] for n in close] + [short[n] for n in close_short])
    return f" On this machine: {', '.join(names)}." if names else ""


def _rank(model: FoundModel) -> tuple[object, ...]:
    """Smaller is preferred."""
    bits = model.bits or 16
    return (
        not (model.source == "conversions" and bits == 4),
        _FAMILY not in model.name.lower(),
        abs(bits - 4),
        not model.has_vision,
        _SOURCES.index(model.source),
        -model.path.stat().st_mtime,
    )


def _folders(source: Source) -> Iterator[tuple[str, Path]]:
    """Names and folders that may hold a model."""
    if source == "hub":
        yield from _snapshots()
    elif source == "conversions":
        yield from ((path.name, path) for path in _subfolders(conversions_dir()))
    elif source == "lmstudio":
        for root in lmstudio_dirs():
            for owner in _subfolders(root):
                yield from ((f"{owner.name}/{path.name}", path) for path in _subfolders(owner))


def _gguf_files(source: Source) -> Iterator[tuple[str, Path]]:
    """Names of GGUF models and the first file of each: `owner/name:Q4_K_M`, as on the hub, and
    Ollama's own names. Parts that are missing are found out later."""
    if source == "ollama":
        yield from ollama_models(ollama_dir()).items()
        return
    for name, folder in _folders(source):
        files = [path.relative_to(folder).as_posix() for path in folder.glob(f"**/*{SUFFIX}")]
        for label in labels(files):
            parts = select_model(files, label)
            if parts is not None:
                yield f"{name}:{label}", folder / parts[0]


def _snapshots() -> Iterator[tuple[str, Path]]:
    """One snapshot of each repository in the hub's cache: that of its main branch, else the newest.

    Another than main's is named with its commit, unless its download has not finished, which
    naming the repository continues.
    """
    for folder in _subfolders(hub_cache()):
        if not folder.name.startswith("models--"):
            continue
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        if parse_repo(repo) is None:
            continue
        snapshots = _subfolders(folder / "snapshots")
        main = known_commit(RepoRef(repo))
        chosen = [path for path in snapshots if path.name == main]
        unfinished = any((folder / "blobs").glob("*.incomplete"))
        if chosen or (unfinished and snapshots):
            yield repo, (chosen or sorted(snapshots, key=_age))[0]
        elif snapshots:
            newest = min(snapshots, key=_age)
            yield f"{repo}@{newest.name}", newest


def _inspect(name: str, folder: Path, source: Source) -> FoundModel | None:
    """Inspect a folder; None where it holds no model that this runtime could run.

    A damaged model is returned with its `problem`, so that one folder never hides the others.
    """
    if folder.is_file():
        return _inspect_gguf(name, folder, source)
    try:
        files = [entry for entry in folder.iterdir() if entry.is_file()]
        size = sum(file.stat().st_size for file in files)
    except OSError:
        return None
    names = {file.name for file in files}
    if not names & {"config.json", "params.json"}:
        return None
    if not select_weight_files(names) and not _is_downloading(folder, source):
        return None
    bits, has_vision = None, False
    try:
        has_vision = check_supported(folder).vision is not None
        bits = stored_bits(folder)
        has_vision = Checkpoint.open(folder).config.vision is not None
    except UnsupportedModel:
        return None
    except (MagistralError, OSError) as error:
        return FoundModel(name, folder, source, size, bits, has_vision, False, str(error))
    return FoundModel(name, folder, source, size, bits, has_vision, True)


def _inspect_gguf(name: str, path: Path, source: Source) -> FoundModel | None:
    """Inspect a GGUF model, as `_inspect` does a folder."""
    try:
        checkpoint = Checkpoint.open(path)
    except UnsupportedModel:
        return None
    except (MagistralError, OSError) as error:
        parts = (path.with_name(part) for part in sibling_parts(path.name))
        size = sum(part.stat().st_size for part in parts if part.is_file())
        return FoundModel(name, path, source, size, None, False, False, str(error))
    files = {tensor.file for tensor in checkpoint.tensors.values()}
    bits = Counter(scheme.bits for scheme in checkpoint.quantized.values()).most_common(1)
    return FoundModel(
        name,
        path,
        source,
        sum(file.stat().st_size for file in files),
        bits[0][0] if bits else None,
        has_vision=checkpoint.config.vision is not None,
        complete=True,
    )


def _is_downloading(folder: Path, source: Source) -> bool:
    """Return whether the weights are being downloaded."""
    blobs = folder.parent.parent / "blobs"
    return source == "hub" and any(blobs.glob("*.incomplete"))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError:
        return []


def _age(folder: Path) -> float:
    return -os.stat(folder).st_mtime
