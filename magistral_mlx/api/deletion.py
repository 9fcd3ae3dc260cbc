"""Deleting models from this machine, and nothing that other programs or models use."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from magistral_mlx.checkpoint.gguf.files import SUFFIX, is_hidden, is_mmproj, sibling_parts
from magistral_mlx.errors import InvalidOption, ModelNotFound, StorageError
from magistral_mlx.hub.cache import (
    delete_from_snapshots,
    repo_folder,
    snapshot_folder,
    snapshot_folders,
)
from magistral_mlx.hub.gguf import SMALL_FILES, select_model
from magistral_mlx.library import FoundModel, find_models
from magistral_mlx.paths import conversions_dir

_OURS = ("conversions", "hub")


def delete_model(name: str) -> int:
    """Delete a model from this machine -> the bytes that were freed.

    Args:
        name: as `list_models` gives it. A conversion is deleted, or a repository in the hub's
            cache with all its revisions, unless the name has a revision. Of GGUF files those of
            the one model go, or of all in a folder or repository where the name has no type.

    Raises:
        ModelNotFound: there is no model of that name here.
        InvalidOption: it belongs to LM Studio or to Ollama.
        StorageError: its files cannot be deleted.
    """
    model = model_to_delete(name)
    try:
        if model.source == "hub":
            return _delete_from_hub_cache(model)
        return _delete_gguf(model) if model.path.is_file() else _delete_folder(model.path)
    except OSError as error:
        place, reason = error.filename or model.path, error.strerror or error
        raise StorageError(f"{place} cannot be deleted: {reason}.") from error


def model_to_delete(name: str) -> FoundModel:
    """The model that `delete_model` deletes; all GGUF files of a folder or repository as one.

    Of several with the same name it is one that may be deleted.

    Raises:
        ModelNotFound, InvalidOption: as `delete_model` does.
    """
    models = find_models()
    found = [model for model in models if model.name.lower() == name.lower()]
    found += _groups_of(models, name)
    if not found:
        raise ModelNotFound(
            f"there is no model {name} on this machine to delete. `magistral-mlx models` lists "
            "what is here."
        )
    chosen = next((model for model in found if model.source in _OURS), found[0])
    if chosen.source == "lmstudio":
        raise InvalidOption(f"{chosen.name} belongs to LM Studio: delete it there.")
    if chosen.source == "ollama":
        raise InvalidOption(
            f"{chosen.name} belongs to Ollama: delete it with `ollama rm {chosen.name}`."
        )
    folder = _folder_of(chosen)
    if chosen.path.is_file() and folder.is_symlink():
        raise InvalidOption(
            f"{chosen.name} is a file of {folder.resolve()}, to which {folder} is a link. Delete "
            "the file there, or the link."
        )
    return chosen


def _groups_of(models: list[FoundModel], name: str) -> list[FoundModel]:
    """The GGUF models of the folder or repository `name`, as one model of each source."""
    groups: dict[str, list[FoundModel]] = {}
    for model in models:
        if model.path.is_file() and model.name.rpartition(":")[0].lower() == name.lower():
            groups.setdefault(model.source, []).append(model)
    return [
        replace(
            group[0],
            name=group[0].name.rpartition(":")[0] if source in _OURS else group[0].name,
            path=_folder_of(group[0]) if source in _OURS else group[0].path,
            size_bytes=sum(model.size_bytes for model in group),
        )
        for source, group in groups.items()
    ]


def _folder_of(model: FoundModel) -> Path:
    """The folder of a conversion, or the one of a repository's revision or of all of them."""
    name = model.name.rpartition(":")[0] if model.path.is_file() else model.name
    if model.source == "conversions":
        return conversions_dir() / name
    repo, _, commit = name.partition("@")
    return snapshot_folder(repo, commit) if commit else repo_folder(repo)


def _delete_gguf(model: FoundModel) -> int:
    """Delete the files of a GGUF model among conversions, and the folders that are empty then."""
    top, place = _folder_of(model), model.path.parent
    freed = 0
    for file in _files_of(model.path, top):
        freed += file.lstat().st_size
        file.unlink()
    while place.is_relative_to(top):
        with suppress(OSError):  # it holds other files
            place.rmdir()
        place = place.parent
    return freed


def _delete_from_hub_cache(model: FoundModel) -> int:
    is_gguf = model.path.is_file()
    name, _, label = model.name.rpartition(":") if is_gguf else (model.name, "", "")
    repo, _, commit = name.partition("@")
    files: set[Path] = set()
    remaining: set[Path] = set()
    for folder in snapshot_folders(repo):
        here = set(_files_in(folder))
        own = here if commit in ("", folder.name) else set()
        if own and is_gguf:
            parts = select_model([file.relative_to(folder).as_posix() for file in here], label)
            own = _files_of(folder / parts[0], folder) if parts else set()
            if own and not any(map(_holds_weights, here - own)):
                own = here
        files |= own
        remaining |= here - own
    if remaining:
        return delete_from_snapshots(repo, files)
    return _delete_folder(repo_folder(repo))


def _files_of(first: Path, top: Path) -> set[Path]:
    """The files of a GGUF model by its first, with the others of its folders, up to `top`, that
    hold no other model: an mmproj, a tokenizer and the like."""
    parts = {first.with_name(name) for name in sibling_parts(first.name)}
    files = {part for part in parts if part.is_file() or part.is_symlink()}
    place = first.parent
    while place.is_relative_to(top):
        others = set(_files_in(place)) - files
        if any(map(_holds_weights, others)):
            break
        files |= {file for file in others if _is_beside_gguf(file)}
        place = place.parent
    return files


def _holds_weights(file: Path) -> bool:
    kind = file.suffix.lower()
    is_model = kind == ".safetensors" or (kind == SUFFIX and not is_mmproj(file.name))
    return is_model and not is_hidden(file.name)


def _is_beside_gguf(file: Path) -> bool:
    """Whether a file is one that a GGUF model comes with, or that macOS has made."""
    name = file.name
    is_tower = is_mmproj(name) and file.suffix.lower() == SUFFIX
    return is_tower or name in SMALL_FILES or name == ".DS_Store" or name.startswith("._")


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _delete_folder(folder: Path) -> int:
    """Delete a folder, or the link to one -> the bytes that were freed.

    What is half deleted has a hidden name.
    """
    if folder.is_symlink():
        folder.unlink()
        return 0
    size = sum(file.lstat().st_size for file in _files_in(folder))
    hidden = folder.with_name(f".deleted-{os.getpid()}-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)
    return size
