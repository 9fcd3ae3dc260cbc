"""The upload of a finished conversion, without what others have put into its folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from magistral_convert.staging import written_files
from magistral_mlx.errors import MagistralError
from magistral_mlx.hub import upload


def publish(target: Path, repo: str) -> str:
    """Upload the files that a conversion wrote to `target` -> the address of the repository's page.

    Raises:
        ModelNotFound, HubError: see `upload`; with the command that uploads them later.
    """
    try:
        return upload(target, repo, written_files(target))
    except MagistralError as error:
        command = ["hf", "upload", repo, str(target)]
        for name in _other_entries(target):
            command += ["--exclude", name]
        raise type(error)(
            f"{error} The conversion itself is finished, in {target}: upload it later with "
            f"`{shlex.join(command)}`."
        ) from error


def _other_entries(target: Path) -> list[str]:
    """Patterns of what no conversion wrote."""
    own = written_files(target)
    others = sorted(entry for entry in target.iterdir() if entry.name not in own)
    return [f"{entry.name}/*" if entry.is_dir() else entry.name for entry in others]
