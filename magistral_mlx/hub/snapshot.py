"""Resolution of a model's name to a local folder, with the download of what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from magistral_mlx.checkpoint.gguf.files import is_gguf
from magistral_mlx.errors import CheckpointError, HubError, ModelNotFound, StorageError
from magistral_mlx.files import user_path
from magistral_mlx.hub.cache import (
    blob_path,
    cached_file,
    cached_snapshot,
    known_commit,
    link_into_snapshot,
    remember_commit,
    repo_folder,
    snapshot_folder,
)
from magistral_mlx.hub.client import current_hub, file_lock, hub_headers
from magistral_mlx.hub.errors import free_space_advice, hub_errors, storage_error
from magistral_mlx.hub.gguf import GgufRef, cached_gguf, parse_gguf, remote_gguf
from magistral_mlx.hub.partial import bytes_on_disk
from magistral_mlx.hub.remote import RemoteFile, RemoteModel, list_files, remote_files
from magistral_mlx.hub.remote_headers import read_remote_gguf
from magistral_mlx.hub.repository import RepoRef, missing_weights, parse_repo
from magistral_mlx.hub.support import check_supported, check_weight_format
from magistral_mlx.hub.transfer import DownloadProgress, fetch

_SPARE = 100 * 2**20  # bytes that stay free on the disk


def resolve(
    name: str | os.PathLike[str],
    *,
    update: bool = False,
    on_progress: DownloadProgress | None = None,
) -> Path:
    """Return the local path of a model: a folder or GGUF file, or a repository's snapshot.

    A snapshot that is complete on this machine is used without asking the hub; `update` asks
    whether the branch has moved on. What is missing is downloaded, one layout of weights only.

    Raises `ModelNotFound`, `HubError`, `StorageError`, and `UnsupportedModel` before any weights
    are fetched that could not run.
    """
    text = os.fspath(name)
    folder = user_path(text)
    if folder.is_dir():
        check_weight_format(folder)
        return folder
    if folder.is_file():
        if is_gguf(folder):
            return folder
        raise ModelNotFound(
            f"{text} is a file, and not a GGUF one. Name the folder of a model, or a GGUF file."
        )
    ref, gguf = parse_repo(text), parse_gguf(text)
    if gguf is not None:
        return _resolve_gguf(gguf, on_progress)
    if ref is None:
        raise ModelNotFound(
            f"there is no folder {text}, and it is not the name of a repository on the hub "
            "(owner/name, or owner/name:Q4_K_M for GGUF files). Name one of the two."
        )
    cached = cached_snapshot(ref)
    if cached is not None and not update:
        check_weight_format(cached)
        return cached
    try:
        return _download(ref, on_progress)
    except ModelNotFound as error:
        raise ModelNotFound(f"there is no folder {text} here. {error}") from error
    except HubError:
        if cached is not None:
            return cached
        raise


def _resolve_gguf(wanted: GgufRef, on_progress: DownloadProgress | None) -> Path:
    """The first file of a GGUF model in the hub's cache, downloaded where it is not there."""
    if (cached := cached_gguf(wanted)) is not None:
        return cached
    found = remote_gguf(wanted)
    read_remote_gguf(found)
    folder = snapshot_folder(wanted.ref.repo, found.model.commit)
    _check_cache_space(found.model)
    _fetch_all(found.model, on_progress)
    _remember(found.model)
    return folder / found.parts[0].name


def download_file(
    model: RemoteModel,
    file: RemoteFile,
    directory: Path | None = None,
    *,
    on_progress: DownloadProgress | None = None,
) -> Path:
    """Download one file into `directory` (deleting it there frees the disk) or the hub's cache.

    What the hub's cache already holds is linked into `directory`, not copied: deleting the link
    leaves the cache as it was. An interrupted download goes on where it stopped.
    """
    if directory is None:
        return _into_cache(model, file, on_progress)
    target = directory / file.name
    if target.is_file() and target.stat().st_size == file.size:
        return target
    blob = blob_path(model.ref.repo, file.etag)
    hub = current_hub()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if blob.is_file() and blob.stat().st_size == file.size:
            with suppress(OSError):  # no links on this disk: download
                target.symlink_to(blob.resolve())
                return target
    except OSError as error:
        raise storage_error(error, directory) from error
    check_space(directory, [(file, target)])
    hub.require_online(f"{file.name} of {model.ref}")
    with hub_errors(hub, model.ref):
        _fetch(model, file, target, on_progress)
    return target


def fetch_file(
    ref: RepoRef, name: str, *, on_progress: DownloadProgress | None = None
) -> Path | None:
    """Return one small file of a repository, from the cache or the hub; None if it has none.

    For a cached repository the hub is asked at the cached commit, so that the branch's ref keeps
    pointing to the snapshot with the weights.
    """
    cached = cached_file(ref, name)
    if cached is not None:
        return cached
    commit = known_commit(ref)
    model = list_files(RepoRef(ref.repo, commit) if commit else ref, needed=[name])
    file = model.file(name)
    if file is None:
        return None
    path = _into_cache(model, file, on_progress)
    _remember(model)
    return path


def check_space(place: Path, files: Iterable[tuple[RemoteFile, Path]]) -> None:
    """Raise `StorageError` where `place` has no room for the files (with their targets)."""
    needed = sum(
        max(file.size - bytes_on_disk(target, file.etag), 0)
        for file, target in files
        if not target.exists()
    )
    existing = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + _SPARE > free:
        raise StorageError(
            f"the download needs {needed / 1e9:.1f} GB more and {existing} has {free / 1e9:.1f} GB "
            f"free. {free_space_advice(place)}"
        )


def _download(ref: RepoRef, on_progress: DownloadProgress | None) -> Path:
    """Download what is missing of `ref` and return its snapshot folder."""
    model = remote_files(ref)
    folder = snapshot_folder(ref.repo, model.commit)

    def before_weights() -> None:
        check_supported(folder)
        _check_cache_space(model)

    _fetch_all(model, on_progress, before_weights)
    _remember(model)
    if missing := missing_weights(folder):
        if missing[0].endswith(".json"):
            raise CheckpointError(f"{folder / missing[0]} is damaged. Delete it and try again.")
        raise CheckpointError(
            f"{ref} is incomplete on the hub: its index names {missing[0]}, which it does not have."
        )
    return folder


def _fetch_all(
    model: RemoteModel,
    on_progress: DownloadProgress | None,
    before_weights: Callable[[], None] = lambda: None,
) -> None:
    """Bring every file of a model into the cache, in order."""
    done, weights = 0, model.weights

    def report(of_file: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done + of_file, model.size)

    for file in model.files:
        if weights and file == weights[0]:
            before_weights()
        _into_cache(model, file, report)
        done += file.size
        report(0, 0)


def _check_cache_space(model: RemoteModel) -> None:
    repo = model.ref.repo
    here = snapshot_folder(repo, model.commit)
    missing = [file for file in model.files if not (here / file.name).exists()]
    check_space(repo_folder(repo), [(file, blob_path(repo, file.etag)) for file in missing])


def _into_cache(model: RemoteModel, file: RemoteFile, on_progress: DownloadProgress | None) -> Path:
    """Return the file in the cache's snapshot, downloaded if it is not cached."""
    repo = model.ref.repo
    path = snapshot_folder(repo, model.commit) / file.name
    if path.exists():
        return path
    hub = current_hub()
    blob = blob_path(repo, file.etag)
    lock = hub.cache / ".locks" / repo_folder(repo).name / f"{file.etag}.lock"
    with hub_errors(hub, model.ref):
        blob.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock):
            if not blob.exists():
                _fetch(model, file, blob, on_progress)
            return link_into_snapshot(repo, model.commit, file.name, file.etag)


def _fetch(
    model: RemoteModel, file: RemoteFile, target: Path, on_progress: DownloadProgress | None
) -> None:
    hub = current_hub()
    fetch(
        hub.file_url(model.ref.repo, model.commit, file.name),
        target,
        size=file.size,
        etag=file.etag,
        headers=hub_headers(),
        on_progress=on_progress,
    )


def _remember(model: RemoteModel) -> None:
    with hub_errors(current_hub(), model.ref):
        remember_commit(model.ref, model.commit)
