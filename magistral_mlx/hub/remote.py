"""Repositories on the hub: the listing of a checkpoint's files, and the upload of a conversion."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx.errors import HubError, ModelNotFound
from magistral_mlx.hub.client import Hub, current_hub, hub_headers
from magistral_mlx.hub.errors import hub_errors, hub_responses
from magistral_mlx.hub.repository import RepoRef, needed_files, require_repo, select_weight_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_NOT_UPLOADED = [".*", "*.incomplete", "*.parts", "*.tmp"]
_API_TIMEOUT = 30.0
_SAFE_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes a file name


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file: its name, size in bytes and entity tag.

    The tag is the SHA-256 of a large file and the git blob hash of a small one; the hub's cache
    on this machine names its files by it.
    """

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """The files of a checkpoint on the hub, one layout of weights only, pinned to a commit."""

    ref: RepoRef
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        """The shards, in order."""
        names = set(select_weight_files(file.name for file in self.files))
        return tuple(file for file in self.files if file.name in names)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> RemoteFile | None:
        """The file of that name, or None where the repository has none."""
        return next((file for file in self.files if file.name == name), None)


def remote_files(ref: RepoRef) -> RemoteModel:
    """List the files of a checkpoint on the hub, of one layout of weights.

    Raises `ModelNotFound` for an unknown repository or one without a checkpoint, `HubError` where
    the hub cannot be asked or refuses.
    """
    listing = list_files(ref, needed=None)
    names = {file.name for file in listing.files}
    if not select_weight_files(names) or not names & {"config.json", "params.json"}:
        raise ModelNotFound(
            f"{ref} holds no checkpoint that runs here. Expected config.json and *.safetensors "
            f"files, or GGUF ones, which are named as in {ref}:Q4_K_M."
        )
    return listing


def list_files(
    ref: RepoRef, *, needed: Sequence[str] | Callable[[Iterable[str]], Sequence[str]] | None
) -> RemoteModel:
    """List the `needed` files that a repository has; None lists all of a checkpoint.

    A function selects them from the names of all files.
    """
    hub = current_hub()
    hub.require_online(str(ref))
    with hub_errors(hub, ref), hub_responses(hub):
        info = hub.api().model_info(
            ref.repo, revision=ref.revision, files_metadata=True, timeout=_API_TIMEOUT
        )
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        select = needed_files if needed is None else needed
        wanted = select(siblings) if callable(select) else select
        if info.sha is None:
            raise ValueError("it names no commit")
        files = [_file(hub, ref, info.sha, siblings[name]) for name in wanted if name in siblings]
        return RemoteModel(ref, info.sha, tuple(files))


def _file(hub: Hub, ref: RepoRef, commit: str, sibling: RepoSibling) -> RemoteFile:
    """Return a file with size and tag, asked for one by one where a mirror's listing omits them."""
    etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.size
    if etag is None or size is None:
        from huggingface_hub import get_hf_file_metadata

        url = hub.file_url(ref.repo, commit, sibling.rfilename)
        metadata = get_hf_file_metadata(url, headers=hub_headers(), timeout=_API_TIMEOUT)
        etag, size = metadata.etag, metadata.size
    if etag is None or size is None or not _SAFE_TAG.fullmatch(etag):
        raise ValueError(f"it tells no usable size and tag of {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, size, etag)


def upload(folder: Path, repo: str, files: Iterable[str]) -> str:
    """Upload `files` of `folder`, and nothing else that is in it, to the repository `owner/name`.

    It is created where it is missing. Hidden and unfinished files are left out.

    Files that are there already are not sent again, so an interrupted upload is continued by
    calling this again. huggingface_hub shows its progress on a terminal. Returns the address of
    the repository's page.

    Raises `ModelNotFound` for a name that is none, `HubError` where the hub refuses or is out of
    reach.
    """
    ref = require_repo(repo)
    if not folder.is_dir():
        raise ModelNotFound(f"there is no folder {folder} to upload.")
    hub = current_hub()
    if hub.offline:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it.")
    api = hub.api()
    with hub_errors(hub, ref, writing=True), hub_responses(hub):
        api.create_repo(ref.repo, exist_ok=True)
        api.upload_folder(
            repo_id=ref.repo,
            folder_path=folder,
            commit_message="Upload an MLX conversion made with magistral-mlx",
            allow_patterns=[glob.escape(name) for name in files],
            ignore_patterns=_NOT_UPLOADED,
        )
    return f"{hub.endpoint}/{ref.repo}"
