"""The output folder of a conversion, and the checks before it is written."""

from __future__ import annotations

import os
from pathlib import Path

from magistral_convert.options import UNQUANTIZED, ConvertOptions
from magistral_convert.staging import check_staging, staging_path, written_files
from magistral_mlx.checkpoint.gguf.blocks import is_quantized
from magistral_mlx.checkpoint.gguf.files import gguf_of, read_parts
from magistral_mlx.errors import InvalidOption, TargetExists
from magistral_mlx.files import user_path
from magistral_mlx.hub.gguf import label_of, parse_gguf
from magistral_mlx.library import path_of
from magistral_mlx.paths import conversion_dir

_FLOATS = ("F32", "F16", "BF16")  # types of GGUF models that are not quantized


def target_path(
    source: str | os.PathLike[str], output: str | os.PathLike[str] | None, options: ConvertOptions
) -> Path:
    """Return the absolute output folder; by default one in the user's cache.

    A symbolic link stands for the folder that it leads to, so the link itself is never replaced.

    Raises:
        InvalidOption: `output` cannot be the name of a folder.
    """
    if output is None:
        return conversion_dir(source, _label(source, options)).absolute()
    text = os.fspath(output)
    target = Path(os.path.realpath(user_path(text)))
    if not text or not target.name:
        raise InvalidOption(f"-o {text!r} names no folder. Give the name of a new one.")
    if any(place.is_symlink() for place in (target, *target.parents)):
        raise InvalidOption(f"-o {text} is a link that leads back to itself. Give another folder.")
    return target


def _label(source: str | os.PathLike[str], options: ConvertOptions) -> str:
    """Suffix that tells this conversion from others of the same source.

    Empty where a GGUF keeps its type, as its name tells that already.
    """
    text, kept = os.fspath(source), "-".join(options.adapted)
    place = path_of(text)
    if options.mode == UNQUANTIZED or options.asks_to_quantize:
        return options.label
    if place is None and (named := parse_gguf(text)):
        return options.label if label_of(named.label).upper() in _FLOATS else kept
    gguf = gguf_of(place) if place else None
    if gguf is None:
        return options.label
    kinds = {tensor.dtype for file in read_parts(gguf) for tensor in file.tensors.values()}
    return kept if any(map(is_quantized, kinds)) else options.label


def check_target(target: Path, source: Path, options: ConvertOptions) -> None:
    """Check that the output folder may be written, and the one beside it in which it is prepared.

    Raises:
        TargetExists: something is there that may not be replaced.
        InvalidOption: the target is the source or the file of `--mmproj`, one lies in the other,
            or they would be deleted with the folder in which the target is prepared.
    """
    staging = staging_path(target)
    for place in (source, *([user_path(options.mmproj)] if options.mmproj else [])):
        here, there = target.resolve(), place.resolve()
        if _is_in(here, there) or _is_in(there, here):
            raise InvalidOption(
                f"the output {target} and the source {place} overlap. Choose another folder with "
                "-o."
            )
        if _is_in(there, Path(os.path.realpath(staging))):
            raise InvalidOption(
                f"the output {target} is prepared in {staging}, and the source {place} is there. "
                "Choose another folder with -o."
            )
    for place in (target, *target.parents):
        if place.exists() and not place.is_dir():
            raise TargetExists(f"{place} is a file. Choose another folder with -o.")
    check_staging(staging)
    if not target.exists():
        return
    content = {entry.name for entry in target.iterdir()}
    if not content:
        return
    if not options.force:
        raise TargetExists(
            f"{target} exists already. Give --force to replace it, or choose another folder "
            "with -o."
        )
    if not written_files(target):
        raise TargetExists(
            f"{target} does not hold an earlier conversion, and --force replaces nothing else. "
            "Choose another folder with -o."
        )


def _is_in(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies in it.

    Existing ones are compared by inode: names differ in case on a case-insensitive disk.
    """
    if path == folder or folder in path.parents:
        return True
    if not folder.exists():
        return False
    return any(place.exists() and place.samefile(folder) for place in (path, *path.parents))
