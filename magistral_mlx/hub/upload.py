"""Publishing a converted checkpoint."""

from __future__ import annotations

from pathlib import Path

from magistral_mlx.errors import HubError, ModelNotFound
from magistral_mlx.hub.failures import explained, hub_like_answers
from magistral_mlx.hub.names import require_repo
from magistral_mlx.hub.settings import current_hub

_NOT_OURS = [".*", "*.incomplete", "*.parts", "*.tmp"]


def upload(folder: Path, repo: str) -> str:
    """Upload the files of `folder` to the repository `owner/name`, created where it is missing.

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
    with explained(hub, ref, writing=True), hub_like_answers(hub):
        api.create_repo(ref.repo, exist_ok=True)
        api.upload_folder(
            repo_id=ref.repo,
            folder_path=folder,
            commit_message="Upload an MLX conversion made with magistral-mlx",
            ignore_patterns=_NOT_OURS,
        )
    return f"{hub.endpoint}/{ref.repo}"
