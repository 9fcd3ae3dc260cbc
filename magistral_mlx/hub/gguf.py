"""GGUF models on the hub: `owner/name-GGUF:Q4_K_M`, and the files that each consists of.

A repository of GGUF files holds a model in many types. What follows the colon is the type, as it
stands in the file's name, or a file's name without its suffix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from magistral_mlx.checkpoint.gguf.files import (
    SUFFIX,
    is_hidden,
    is_mmproj,
    mmproj_precision,
    model_names,
    sibling_parts,
)
from magistral_mlx.errors import ModelNotFound
from magistral_mlx.hub.cache import known_commit, snapshot_folder
from magistral_mlx.hub.remote import RemoteFile, RemoteModel, list_files
from magistral_mlx.hub.repository import RepoRef, parse_repo

SMALL_FILES = ("tekken.json", "SYSTEM_PROMPT.txt", "README.md")
_LABEL = re.compile(r"[-._](I?Q\d+(?:_\w+)*|TQ\d_\d|MXFP4(?:_\w+)*|BF16|F16|F32)$", re.IGNORECASE)
_MOST_LISTED = 12


@dataclass(frozen=True, slots=True)
class GgufRef:
    """A repository of GGUF files, and which of its models: a type or a file's name; "" for the
    only one."""

    ref: RepoRef
    label: str

    def __str__(self) -> str:
        return f"{self.ref}:{self.label}" if self.label else str(self.ref)


@dataclass(frozen=True, slots=True)
class RemoteGguf:
    """A GGUF model on the hub: its files in order, and its vision tower where there is one."""

    model: RemoteModel
    parts: tuple[RemoteFile, ...]
    mmproj: RemoteFile | None


def parse_gguf(name: str) -> GgufRef | None:
    """Parse `owner/name:LABEL`, optionally `owner/name@revision:LABEL`; None for anything else."""
    repo, colon, label = name.rpartition(":")
    ref = parse_repo(repo) if colon else None
    if ref is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label):
        return None
    return GgufRef(ref, label)


def label_of(name: str) -> str:
    """Return the type in the name of a GGUF file, or its name without suffix where it has none."""
    stem = _stem(name)
    found = _LABEL.search(stem)
    return found[1].upper() if found else stem


def select_model(names: Iterable[str], label: str) -> list[str] | None:
    """Return the files of one model among file `names`, in order; None where there is not just one
    of that label."""
    plain = label.lower().removeprefix("ud-")  # what one publisher writes before its own mixes
    found = [
        name
        for name in _models(names)
        if not label or plain == label_of(name).lower() or label.lower() == _stem(name).lower()
    ]
    if len(found) != 1:
        return None
    folder = PurePosixPath(found[0]).parent
    return [str(folder / part) for part in sibling_parts(PurePosixPath(found[0]).name)]


def labels(names: Iterable[str]) -> list[str]:
    """Return the labels of the models among file `names`."""
    return sorted({label_of(name) for name in _models(names)})


def cached_gguf(wanted: GgufRef) -> Path | None:
    """Return the first file of a complete model in the hub's cache."""
    commit = known_commit(wanted.ref)
    if commit is None:
        return None
    folder = snapshot_folder(wanted.ref.repo, commit)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}")]
    parts = select_model(files, wanted.label)
    if parts is None or not all((folder / part).is_file() for part in parts):
        return None
    return folder / parts[0]


def remote_gguf(wanted: GgufRef) -> RemoteGguf:
    """Ask the hub for the files of a model.

    Raises `ModelNotFound` where the repository has no such model, `HubError` where the hub cannot
    be asked.
    """
    listing = list_files(wanted.ref, needed=_wanted_files)
    names = [file.name for file in listing.files]
    known = labels(names)
    parts = select_model(names, wanted.label)
    if parts is None:
        if not known:
            raise ModelNotFound(f"{wanted.ref} holds no GGUF files. Check the name.")
        shown = ", ".join(known[:_MOST_LISTED]) + (" …" if len(known) > _MOST_LISTED else "")
        what = f"no single GGUF model {wanted.label}" if wanted.label else "several GGUF models"
        best = "Q4_K_M" if "Q4_K_M" in known else known[0]
        raise ModelNotFound(
            f"{wanted.ref} holds {what}. It has {shown}: name one, as in {wanted.ref}:{best}."
        )
    missing = [part for part in parts if part not in names]
    if missing:
        raise ModelNotFound(f"{wanted} is incomplete on the hub: it lacks {missing[0]}.")
    towers = sorted((n for n in names if is_mmproj(n)), key=lambda n: (mmproj_precision(n), n))
    tower = listing.file(towers[0]) if towers else None
    small = [file for file in listing.files if file.name in SMALL_FILES]
    weights = [file for file in listing.files if file.name in parts]
    files = (*small, *([tower] if tower else []), *weights)
    model = RemoteModel(listing.ref, listing.commit, files)
    return RemoteGguf(model, tuple(weights), tower)


def _wanted_files(names: Iterable[str]) -> list[str]:
    shown = (name for name in names if not is_hidden(name))
    return sorted(name for name in shown if name.endswith(SUFFIX) or name in SMALL_FILES)


def _models(names: Iterable[str]) -> list[str]:
    """Paths of the models among paths of files, each split one by its first part."""
    by_folder: dict[PurePosixPath, list[str]] = {}
    for name in map(PurePosixPath, (name for name in names if not is_hidden(name))):
        by_folder.setdefault(name.parent, []).append(name.name)
    return [
        str(folder / name) for folder, files in by_folder.items() for name in model_names(files)
    ]


def _stem(name: str) -> str:
    stem = PurePosixPath(name).name.removesuffix(SUFFIX)
    return re.sub(r"-\d{5}-of-\d{5}$", "", stem)
