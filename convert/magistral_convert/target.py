"""Where the result goes, and whether it may."""

from __future__ import annotations

import os
from pathlib import Path

from magistral_convert.options import ConvertOptions
from magistral_mlx.errors import InvalidOption, TargetExists
from magistral_mlx.places import conversion_dir


def absolute_target(
    source: str | os.PathLike[str], output: str | os.PathLike[str] | None, options: ConvertOptions
) -> Path:
    """The folder to make; without `output` one in the user's cache, where `generate` finds it.

    Raises:
        InvalidOption: `output` is no name for a new folder.
    """
    if output is None:
        return conversion_dir(source, options.label).absolute()
    text = os.fspath(output)
    target = Path(os.path.abspath(os.path.expanduser(text)))
    if not text or not target.name:
        raise InvalidOption(f"-o {text!r} names no folder. Give the name of a new one.")
    return target


def check_target(target: Path, source: Path, *, force: bool) -> None:
    """Check that the target may be written.

    Raises:
        TargetExists: something is there, and `force` does not stand for replacing it.
        InvalidOption: the target is the source, or one lies in the other.
    """
    here, there = target.resolve(), source.resolve()
    if _is_in(here, there) or _is_in(there, here):
        raise InvalidOption(
            f"the output {target} and the source {source} overlap. Choose another folder with -o."
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise TargetExists(f"{target} is a file. Choose another name with -o.")
    content = {entry.name for entry in target.iterdir()}
    if not content:
        return
    if not force:
        raise TargetExists(
            f"{target} is there already. Give --force to replace it, or choose another folder "
            "with -o."
        )
    if "config.json" not in content or not any(n.endswith(".safetensors") for n in content):
        raise TargetExists(
            f"{target} holds something else than a checkpoint, and --force does not delete that. "
            "Choose another folder with -o."
        )


def _is_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, by the disk's own word where they exist.

    Names alone do not tell on a disk that takes upper and lower case for the same.
    """
    if path == folder or folder in path.parents:
        return True
    if not folder.exists():
        return False
    return any(place.exists() and place.samefile(folder) for place in (path, *path.parents))
