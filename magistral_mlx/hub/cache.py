"""The hub's cache on this machine, in huggingface_hub's documented layout.

    models--owner--name/blobs/TAG            the bytes, one file for each content
    models--owner--name/refs/main            the commit that a branch or tag stood at
    models--owner--name/snapshots/COMMIT/    one checkpoint: links into blobs

Whatever another program has downloaded is found here, and the other way round.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from magistral_mlx.hub.client import hub_cache
from magistral_mlx.hub.repository import RepoRef, missing_weights

_PREFIX = "models--"


def repo_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache; it may not exist."""
    return hub_cache() / (_PREFIX + repo.replace("/", "--"))


def blob_path(repo: str, etag: str) -> Path:
    """Return the path of the content with that entity tag."""
    return repo_folder(repo) / "blobs" / etag


def snapshot_folder(repo: str, commit: str) -> Path:
    """Return the folder of a repository's files at one commit."""
    return repo_folder(repo) / "snapshots" / commit


def snapshot_folders(repo: str) -> list[Path]:
    """Return the snapshots of a repository that are in the cache."""
    folder = repo_folder(repo) / "snapshots"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def known_commit(ref: RepoRef) -> str | None:
    """Return the commit of the revision at its last download, or None."""
    if ref.is_commit:
        return ref.revision
    try:
        return (repo_folder(ref.repo) / "refs" / ref.revision).read_text().strip() or None
    except OSError:
        return None


def cached_file(ref: RepoRef, name: str) -> Path | None:
    """Return a file of the last downloaded snapshot, or None."""
    commit = known_commit(ref)
    path = snapshot_folder(ref.repo, commit) / name if commit else None
    return path if path is not None and path.is_file() else None


def cached_snapshot(ref: RepoRef) -> Path | None:
    """Return the folder of a snapshot with a configuration and all its weights, or None."""
    commit = known_commit(ref)
    if commit is None:
        return None
    folder = snapshot_folder(ref.repo, commit)
    if not any((folder / name).is_file() for name in ("config.json", "params.json")):
        return None
    return folder if not missing_weights(folder) else None


def repo_of_snapshot(folder: Path) -> str | None:
    """Return `owner/name` of a snapshot folder in a hub cache, or of a file in one, else None."""
    place = folder.parent if folder.is_file() else folder
    parts = Path(os.path.abspath(place)).parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith(_PREFIX):
        return None
    return parts[-3].removeprefix(_PREFIX).replace("--", "/", 1)


def link_into_snapshot(repo: str, commit: str, name: str, etag: str) -> Path:
    """Link a downloaded blob into its snapshot and return its path there.

    On a disk without links (exFAT) the blob itself is moved there, as in huggingface_hub.
    """
    blob, link = blob_path(repo, etag), snapshot_folder(repo, commit) / name
    if link.exists():
        return link
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # one that points nowhere any more
    try:
        with suppress(FileExistsError):  # another process was faster
            link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.move(blob, link)
    return link


def remember_commit(ref: RepoRef, commit: str) -> None:
    """Record the commit of a branch or tag."""
    if ref.is_commit:
        return
    path = repo_folder(ref.repo) / "refs" / ref.revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(commit)
    temporary.replace(path)


def delete_from_snapshots(repo: str, files: Iterable[Path]) -> int:
    """Delete files of a repository's snapshots, and the contents that no other file of one links to
    -> the bytes that were freed. A snapshot that is empty then goes with its branches and tags."""
    folder = repo_folder(repo)
    freed, unlinked = 0, set()
    for file in files:
        if file.is_symlink():
            unlinked.add(_linked(file))
        else:
            freed += file.stat().st_size
        file.unlink()
    for snapshot in snapshot_folders(repo):
        _remove_empty(snapshot)
        if not snapshot.exists():
            _forget_commit(folder, snapshot.name)
    links = (path for path in (folder / "snapshots").rglob("*") if path.is_symlink())
    for blob in unlinked - {_linked(link) for link in links}:
        if blob.is_file() and blob.parent.samefile(folder / "blobs"):
            freed += blob.lstat().st_size
            blob.unlink()
    return freed


def _linked(link: Path) -> Path:
    return Path(os.path.abspath(link.parent / os.readlink(link)))


def _remove_empty(folder: Path) -> None:
    """Remove a folder with the folders in it, as far as they are empty."""
    inside = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in (*sorted(inside, reverse=True), folder):
        with suppress(OSError):  # it holds files
            path.rmdir()


def _forget_commit(folder: Path, commit: str) -> None:
    for ref in (folder / "refs").rglob("*"):
        if ref.is_file() and ref.read_text().strip() == commit:
            ref.unlink()
