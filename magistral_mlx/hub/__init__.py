"""The Hugging Face hub: from a name to a checkpoint on this machine, and back.

`resolve` gives the folder of a name; `remote_files` and `download_file` bring files one by one for
the converter; `find_tokenizer` helps conversions that lack theirs; `upload` publishes.
"""

from magistral_mlx.hub.names import RepoRef, parse_repo, require_repo
from magistral_mlx.hub.remote import RemoteFile, RemoteModel, remote_files
from magistral_mlx.hub.snapshot import check_space, download_file, resolve
from magistral_mlx.hub.tokenizer import find_system_prompt, find_tokenizer
from magistral_mlx.hub.transfer import Progress
from magistral_mlx.hub.upload import upload

__all__ = [
    "Progress",
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
