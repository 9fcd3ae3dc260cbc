"""The source of a conversion: a folder, or a repository whose shards are downloaded one by one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from magistral_convert.hub_source import file_stamps, open_remote, open_remote_gguf
from magistral_convert.options import UNQUANTIZED, ConvertOptions, OnConversionProgress
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.checkpoint import open_gguf
from magistral_mlx.checkpoint.gguf.files import gguf_of
from magistral_mlx.checkpoint.header import FLOATS, StoredTensor
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config_files import read_json
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.files import user_path
from magistral_mlx.hub import parse_repo, remote_files
from magistral_mlx.hub.base_models import local_base_models
from magistral_mlx.hub.cache import cached_snapshot, repo_of_snapshot
from magistral_mlx.hub.gguf import cached_gguf, parse_gguf, remote_gguf
from magistral_mlx.library import locate, path_of
from magistral_mlx.paths import DEMO


class Source(Protocol):
    """An unquantized checkpoint whose headers have been read.

    `folder` holds the small files. `base_model` is the repository, where it is known. `identity`
    changes when the weights do.
    """

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def folder(self) -> Path: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def identity(self) -> str: ...

    def fetch(self, file: Path, on_progress: OnConversionProgress | None) -> None:
        """Download a weight file, unless it is on this machine."""

    def release(self, file: Path) -> None:
        """Delete a downloaded weight file, once all its tensors are converted."""

    def space_needed(self) -> tuple[Path, int]:
        """Return where downloads take space, and the most bytes at any one time."""


def raw_config(source: Source) -> Mapping[str, Any] | None:
    """Read the source's config.json; None where it has only params.json."""
    path = source.folder / "config.json"
    if source.checkpoint.layout == "gguf":
        return None
    return read_json(path) if path.is_file() else None


def open_source(
    name: str | os.PathLike[str], downloads: Path, options: ConvertOptions | None = None
) -> Source:
    """Open a folder, a model by its name here or on the hub, or "demo", and check all its tensors.

    A repository that is on this machine already is read from there. A GGUF model is a file, the
    only one of a folder, or `owner/name:Q4_K_M` on the hub.

    Args:
        downloads: the folder for a shard while it is being converted.
        options: `keep_source` downloads into the hub's cache instead, and keeps the files there.

    Raises:
        ModelNotFound, HubError: no such model, here or on the hub.
        CheckpointError: the checkpoint is damaged, incomplete, or quantized already.
        InvalidOption: options that do not go with such a source.
        UnsupportedModel: another architecture.
    """
    options = options or ConvertOptions()
    text = os.fspath(name)
    mmproj = _mmproj(options)
    here = text == DEMO or path_of(text) is not None
    ref, wanted = (None, None) if here else (parse_repo(text), parse_gguf(text))
    cached = cached_snapshot(ref) if ref else None
    source: Source
    if wanted and not cached_gguf(wanted):
        source = open_remote_gguf(
            remote_gguf(wanted), downloads, keep=options.keep_source, mmproj=mmproj
        )
    elif ref and not cached:
        source = open_remote(remote_files(ref), downloads, keep=options.keep_source)
    else:
        folder = locate(text)
        gguf = gguf_of(folder)
        if gguf is None:
            source = FolderSource(folder, Checkpoint.open(folder))
        else:
            source = GgufSource(gguf, Checkpoint.from_gguf(open_gguf(gguf, mmproj)))
    if options.mmproj and source.checkpoint.layout != "gguf":
        raise InvalidOption(
            f"--mmproj goes with a GGUF model, and {text} is none. Leave it out: the vision tower "
            "is in the checkpoint."
        )
    _check_quantized(source.checkpoint, text, options)
    return source


def _mmproj(options: ConvertOptions) -> Path | None:
    if options.mmproj is None:
        return None
    path = user_path(options.mmproj)
    if not path.is_file():
        raise InvalidOption(f"--mmproj {options.mmproj} is no file. Name a GGUF one.")
    return path


@dataclass(frozen=True)
class FolderSource:
    """A checkpoint on this machine."""

    folder: Path
    checkpoint: Checkpoint

    @property
    def base_model(self) -> str | None:
        repo = repo_of_snapshot(self.folder)
        own_name = self.folder.resolve().name.lower()
        named = (
            name
            for name in local_base_models(self.folder)
            if name.rpartition("/")[2].lower() == own_name
        )
        return repo or next(named, None)

    @property
    def identity(self) -> str:
        return json.dumps([str(self.folder.resolve()), file_stamps(self.checkpoint.files)])

    def fetch(self, file: Path, on_progress: OnConversionProgress | None) -> None:
        return

    def release(self, file: Path) -> None:
        return

    def space_needed(self) -> tuple[Path, int]:
        return self.folder, 0


@dataclass(frozen=True)
class GgufSource(FolderSource):
    """A GGUF model on this machine; `folder` is its file."""

    @property
    def base_model(self) -> str | None:
        return next(iter(local_base_models(self.folder)), None)


def read_headers(name: str) -> Checkpoint:
    """Read the headers of a model by any name that a user gives it, without its weights.

    Raises:
        ModelNotFound, HubError: no such model, here or on the hub.
        CheckpointError: the checkpoint is damaged or incomplete.
    """
    ref, wanted = (None, None) if path_of(name) else (parse_repo(name), parse_gguf(name))
    if wanted and not cached_gguf(wanted):
        with tempfile.TemporaryDirectory() as downloads:
            return open_remote_gguf(remote_gguf(wanted), Path(downloads), keep=False).checkpoint
    if ref and not cached_snapshot(ref):
        with tempfile.TemporaryDirectory() as downloads:
            return open_remote(remote_files(ref), Path(downloads), keep=False).checkpoint
    return Checkpoint.open(locate(name))


def _check_quantized(checkpoint: Checkpoint, name: str, options: ConvertOptions) -> None:
    """Refuse to quantize again what is quantized."""
    if not checkpoint.quantized or options.mode == UNQUANTIZED:
        return
    if checkpoint.blocks:
        others = (n for n in checkpoint.tensors if n not in checkpoint.blocks)
        plain = [n for n in others if is_matrix(n, checkpoint.tensors[n], options)]
        if options.asks_to_quantize and not plain:
            kinds = sorted({tensor.dtype for tensor in checkpoint.blocks.values()})
            raise InvalidOption(
                f"{name} is quantized already ({', '.join(kinds)}) and is laid out as it is: leave "
                "--bits, --group-size, --mode, --recipe and --quantize-vision out, or give "
                "--mode none for bfloat16."
            )
        return
    scheme = next(iter(checkpoint.quantized.values()))
    raise CheckpointError(
        f"{name} is quantized already ({scheme.bits} bits, {scheme.mode}), and quantizing it "
        "again would only lose more. Convert the original weights in bfloat16, such as "
        "mistralai/Magistral-Small-2509, or give --mode none for bfloat16."
    )


def is_matrix(name: str, tensor: StoredTensor, options: ConvertOptions) -> bool:
    """Whether a tensor is a floating-point matrix that these options may quantize."""
    wanted = options.quantize_vision or name.startswith(LANGUAGE)
    return wanted and tensor.dtype in FLOATS and len(tensor.shape) == 2 and name.endswith(".weight")
