"""Repositories on the hub: their names, and the files of a checkpoint in them.

A name is `owner/name`, optionally `owner/name@revision`. Two layouts hold the same weights. Hugging
Face's (`model*.safetensors`) is taken where a repository or folder has it, Mistral's
(`consolidated*.safetensors`) otherwise; never both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from magistral_mlx.checkpoint.folder import read_index
from magistral_mlx.errors import CheckpointError, ModelNotFound

SMALL_FILES = (
    "config.json",
    "params.json",
    "generation_config.json",
    "tekken.json",
    "SYSTEM_PROMPT.txt",
    "README.md",
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})\.safetensors")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RepoRef:
    """A repository and the branch, tag or commit wanted of it."""

    repo: str
    revision: str = "main"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit hash, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


def parse_repo(name: str) -> RepoRef | None:
    """Parse `owner/name` or `owner/name@revision`; None for anything else."""
    match = _REPO.fullmatch(name)
    if match is None or ".." in name or "--" in match["repo"]:
        return None
    return RepoRef(match["repo"], match["revision"] or "main")


def require_repo(name: str) -> RepoRef:
    """Parse the name of a repository. Raises `ModelNotFound` for anything else."""
    ref = parse_repo(name)
    if ref is None:
        raise ModelNotFound(
            f"{name!r} is not the name of a repository on the hub. "
            "Expected owner/name, optionally with @revision."
        )
    return ref


def select_weight_files(names: Iterable[str]) -> list[str]:
    """Select the weight files of one layout, sorted; empty where there are none."""
    names = set(names)
    top = sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
    for stem in ("model", "consolidated"):
        whole = f"{stem}.safetensors"
        shards = [name for name in top if (m := _SHARD.fullmatch(name)) and m["stem"] == stem]
        if shards and (f"{whole}.index.json" in names or whole not in top):
            return shards
        if whole in top:
            return [whole]
    return [name for name in top if name.startswith(("model", "consolidated"))]


def needed_files(names: Iterable[str]) -> list[str]:
    """Select the files needed to run or convert, small ones first, weights last."""
    names = set(names)
    weights = select_weight_files(names)
    small = [name for name in SMALL_FILES if name in names]
    if weights:
        index = f"{_stem(weights[0])}.safetensors.index.json"
        small += [index] if index in names else []
    return small + weights


def missing_weights(folder: Path) -> list[str]:
    """Return the missing weight files of a checkpoint; empty when it is complete.

    The index decides where there is one; else the count in the shards' names. A folder without
    any weights lacks `model.safetensors`.
    """
    present = {entry.name for entry in folder.iterdir() if entry.exists()}
    weights = select_weight_files(present)
    stem = _stem(weights[0]) if weights else "model"
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file() and weights != [f"{stem}.safetensors"]:
        try:
            return [shard for shard in read_index(index) if shard not in present]
        except CheckpointError:
            return [index.name]
    if not weights:
        return ["model.safetensors"]
    expected = {name for shard in weights for name in _siblings(shard)}
    return sorted(expected - present)


def _stem(name: str) -> str:
    match = _SHARD.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".safetensors")


def _siblings(name: str) -> list[str]:
    match = _SHARD.fullmatch(name)
    if match is None:
        return [name]
    width, count = len(match["number"]), match["count"]
    return [
        f"{match['stem']}-{number:0{width}d}-of-{count}.safetensors"
        for number in range(1, int(count) + 1)
    ]
