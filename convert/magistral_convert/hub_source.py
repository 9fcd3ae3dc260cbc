"""A source on the hub, whose shards are downloaded one by one while they are converted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from magistral_convert.options import Downloading, OnConversionProgress
from magistral_mlx.checkpoint.folder import Checkpoint, Layout
from magistral_mlx.checkpoint.gguf.checkpoint import gguf_model
from magistral_mlx.checkpoint.gguf.header import GgufFile, read_gguf
from magistral_mlx.config_files import read_config
from magistral_mlx.hub import RemoteFile, RemoteModel, download_file
from magistral_mlx.hub.cache import remember_commit, snapshot_folder
from magistral_mlx.hub.gguf import RemoteGguf
from magistral_mlx.hub.remote_headers import read_remote_gguf, read_remote_header
from magistral_mlx.hub.support import check_weight_format


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
        weights = [(file.name, file.size, file.etag) for file in self._files.values()]
        own = file_stamps(self._own_files)
        return json.dumps([self.model.ref.repo, weights, own])

    @property
    def _own_files(self) -> list[Path]:
        """Weight files that the user has named, such as a vision tower."""
        return [file for file in self.checkpoint.files if file not in self._files]

    def fetch(self, file: Path, on_progress: OnConversionProgress | None) -> None:
        def report(done: int, total: int) -> None:
            if on_progress:
                on_progress(Downloading(file.name, done, total))

        remote = self._files.get(file)
        if remote is None:
            return
        depth = remote.name.count("/")  # of a GGUF model whose files have a folder of their own
        directory = None if self.keep else file.parents[depth]
        download_file(self.model, remote, directory, on_progress=report)

    def release(self, file: Path) -> None:
        if file not in self._files:
            return
        if not self.keep:
            file.unlink(missing_ok=True)
        elif not self._own_files and all(path.exists() for path in self._files):
            remember_commit(self.model.ref, self.model.commit)  # so the cache finds it by name

    def space_needed(self) -> tuple[Path, int]:
        missing = {f: remote.size for f, remote in self._files.items() if not f.exists()}
        place = next(iter(self._files)).parent
        if self.keep:
            return place, sum(missing.values())
        # One shard at a time, and those that hold scales of weights in another one.
        shared = sum(missing.get(file, 0) for file in _files_of_split_scales(self.checkpoint))
        return place, min(max(missing.values(), default=0) + shared, sum(missing.values()))


def file_stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return path, size and time of change of files on this machine."""
    stats = ((file.resolve(), file.stat()) for file in files)
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


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


def open_remote(model: RemoteModel, downloads: Path, *, keep: bool) -> HubSource:
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


def open_remote_gguf(
    found: RemoteGguf, downloads: Path, *, keep: bool, mmproj: Path | None = None
) -> HubSource:
    """Read the headers of a GGUF model, without its weights, and download the small files.

    `mmproj` is a file on this machine that takes the place of the repository's vision tower.
    """
    given = read_gguf(mmproj) if mmproj else None
    if given:
        others = tuple(file for file in found.model.files if file != found.mmproj)
        found = replace(found, model=replace(found.model, files=others), mmproj=None)
    model = found.model
    parts, tower = read_remote_gguf(found)
    for file in model.files:
        if file not in (*found.parts, found.mmproj):
            download_file(model, file)
    folder = snapshot_folder(model.ref.repo, model.commit)
    place = folder if keep else downloads
    files = {place / file.name: file for file in found.parts}
    headers = [_moved(part, path) for part, path in zip(parts, files, strict=True)]
    if tower and found.mmproj:
        path = place / found.mmproj.name
        tower, files[path] = _moved(tower, path), found.mmproj
    read = gguf_model(Path(str(model.ref)), headers, given or tower)
    return HubSource(model, folder, Checkpoint.from_gguf(read), keep, files)


def _moved(header: GgufFile, path: Path) -> GgufFile:
    """The same header, for a file at `path`."""
    tensors = {name: replace(tensor, file=path) for name, tensor in header.tensors.items()}
    return GgufFile(path, header.metadata, tensors)
