"""The Hugging Face hub: download of checkpoints, and upload of conversions.

`resolve` gives the folder of a name; `remote_files` and `download_file` bring files one by one for
the converter; `find_tokenizer` helps conversions that lack theirs; `upload` publishes.
"""

from magistral_mlx.hub.remote import RemoteFile, RemoteModel, remote_files, upload
from magistral_mlx.hub.repository import RepoRef, parse_repo, require_repo
from magistral_mlx.hub.snapshot import check_space, download_file, resolve
from magistral_mlx.hub.tokenizer_source import find_system_prompt, find_tokenizer
from magistral_mlx.hub.transfer import DownloadProgress

__all__ = [
    "DownloadProgress",
    "RemoteFile",
    "RemoteModel",
    "RepoRef",
    "check_space",
    "download_file",
    "find_system_prompt",
    "find_tokenizer",
    "parse_repo",
    "remote_files",
    "require_repo",
    "resolve",
    "upload",
]
