"""The source of a conversion: a folder, or a repository whose shards are downloaded one by one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from magistral_convert.options import UNQUANTIZED, ConvertOptions, Downloading, OnConversionProgress
from magistral_convert.remote_headers import read_remote_gguf, read_remote_header
from magistral_mlx.checkpoint.folder import Checkpoint, Layout
from magistral_mlx.checkpoint.gguf.checkpoint import gguf_model, open_gguf
from magistral_mlx.checkpoint.gguf.files import gguf_of
from magistral_mlx.checkpoint.header import FLOATS, StoredTensor
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config_files import read_config, read_json
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.hub import (
    RemoteFile,
    RemoteModel,
    download_file,
    parse_repo,
    remote_files,
    resolve,
)
from magistral_mlx.hub.base_models import local_base_models
from magistral_mlx.hub.cache import (
    cached_snapshot,
    remember_commit,
    repo_of_snapshot,
    snapshot_folder,
)
from magistral_mlx.hub.gguf import RemoteGguf, cached_gguf, parse_gguf, remote_gguf
from magistral_mlx.hub.support import check_weight_format
from magistral_mlx.library import find_by_name, locate
from magistral_mlx.paths import DEMO, demo_dir


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
    """Open a folder, a repository by its name on the hub, or "demo", and check all its tensors.

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
    if text == DEMO:
        text = str(demo_dir())
    here = os.path.exists(os.path.expanduser(text))
    ref, wanted = (None, None) if here else (parse_repo(text), parse_gguf(text))
    cached = cached_snapshot(ref) if ref else None
    source: Source
    if wanted and not cached_gguf(wanted):
        source = _open_remote_gguf(remote_gguf(wanted), downloads, keep=options.keep_source)
    elif ref and not cached:
        source = _open_remote(remote_files(ref), downloads, keep=options.keep_source)
    else:
        folder = resolve(text)
        gguf = gguf_of(folder)
        if gguf is None:
            source = FolderSource(folder, Checkpoint.open(folder))
        else:
            source = GgufSource(gguf, Checkpoint.from_gguf(open_gguf(gguf, _mmproj(options))))
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
    path = Path(options.mmproj).expanduser()
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
        stats = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in self.checkpoint.files
        ]
        return json.dumps([str(self.folder.resolve()), stats])

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


@dataclass(frozen=True)
class HubSource:
    """A checkpoint on the hub, whose shards are downloaded when they are converted."""

    model: RemoteModel
    folder: Path
    checkpoint: Checkpoint
    keep: bool
    _files: dict[Path, RemoteFile] = field(repr=False)

    @property
    def base_model(self) -> str:
        return self.model.ref.repo

    @property
    def identity(self) -> str:
        return f"{self.model.ref.repo}@{self.model.commit}"

    def fetch(self, file: Path, on_progress: OnConversionProgress | None) -> None:
        def report(done: int, total: int) -> None:
            if on_progress:
                on_progress(Downloading(file.name, done, total))

        remote = self._files[file]
        depth = remote.name.count("/")  # of a GGUF model whose files have a folder of their own
        directory = None if self.keep else file.parents[depth]
        download_file(self.model, remote, directory, on_progress=report)

    def release(self, file: Path) -> None:
        if not self.keep:
            file.unlink(missing_ok=True)
        elif all(path.exists() for path in self._files):
            remember_commit(self.model.ref, self.model.commit)  # so the cache finds it by name

    def space_needed(self) -> tuple[Path, int]:
        missing = {f: remote.size for f, remote in self._files.items() if not f.exists()}
        place = next(iter(self._files)).parent
        if self.keep:
            return place, sum(missing.values())
        # One shard at a time, and those that hold scales of weights in another one.
        shared = sum(missing.get(file, 0) for file in _files_of_split_scales(self.checkpoint))
        return place, min(max(missing.values(), default=0) + shared, sum(missing.values()))


def _files_of_split_scales(checkpoint: Checkpoint) -> set[Path]:
    """Return the files with scales or biases of a weight in another file."""
    files = set()
    for name, weight in checkpoint.tensors.items():
        if not name.endswith(".weight"):
            continue
        module = name.removesuffix("weight")
        parts = [checkpoint.tensors.get(module + part) for part in ("scales", "biases")]
        for part in (checkpoint.fp8_scales.get(name), *parts):
            if part is not None and part.file != weight.file:
                files.add(part.file)
    return files


def _open_remote(model: RemoteModel, downloads: Path, *, keep: bool) -> HubSource:
    """Download the small files and read the headers of the shards, without their weights."""
    weights = {file.name for file in model.weights}
    for file in model.files:
        if file.name not in weights:
            download_file(model, file)
    folder = snapshot_folder(model.ref.repo, model.commit)
    place = folder if keep else downloads
    files = {place / file.name: file for file in model.weights}
    config = read_config(folder)
    check_weight_format(folder)
    stored = [
        tensor
        for path, file in files.items()
        for tensor in read_remote_header(model, file, path).values()
    ]
    layout: Layout = "mistral" if model.weights[0].name.startswith("consolidated") else "hf"
    checkpoint = Checkpoint.from_tensors(
        Path(str(model.ref)), config, layout, stored, is_local=False
    )
    return HubSource(model, folder, checkpoint, keep, files)


def _open_remote_gguf(found: RemoteGguf, downloads: Path, *, keep: bool) -> HubSource:
    """Download the small files and read the headers of a GGUF model, without its weights."""
    model = found.model
    towers = [found.mmproj] if found.mmproj else []
    weights = [*found.parts, *towers]
    for file in model.files:
        if file not in weights:
            download_file(model, file)
    folder = snapshot_folder(model.ref.repo, model.commit)
    place = folder if keep else downloads
    headers = [read_remote_gguf(model, file, place / file.name) for file in weights]
    parts, tower = headers[: len(found.parts)], headers[len(found.parts) :]
    read = gguf_model(Path(str(model.ref)), parts, tower[0] if tower else None)
    checkpoint = Checkpoint.from_gguf(read)
    return HubSource(model, folder, checkpoint, keep, {place / file.name: file for file in weights})


def read_headers(name: str) -> Checkpoint:
    """Read the headers of a model by any name that a user gives it, without its weights.

    Raises:
        ModelNotFound, HubError: no such model, here or on the hub.
        CheckpointError: the checkpoint is damaged or incomplete.
    """
    here = os.path.exists(os.path.expanduser(name)) or find_by_name(name) is not None
    ref, wanted = (None, None) if here else (parse_repo(name), parse_gguf(name))
    if wanted and not cached_gguf(wanted):
        with tempfile.TemporaryDirectory() as downloads:
            return _open_remote_gguf(remote_gguf(wanted), Path(downloads), keep=False).checkpoint
    if ref and not cached_snapshot(ref):
        with tempfile.TemporaryDirectory() as downloads:
            return _open_remote(remote_files(ref), Path(downloads), keep=False).checkpoint
    return Checkpoint.open(locate(name))


def _check_quantized(checkpoint: Checkpoint, name: str, options: ConvertOptions) -> None:
    """Refuse to quantize again what is quantized."""
    if not checkpoint.quantized or options.mode == UNQUANTIZED:
        return
    if checkpoint.blocks:
        plain = [t for n, t in checkpoint.tensors.items() if is_matrix(n, t, options)]
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
