"""Contents of a file of the disk prefix cache: a range of tokens from every layer's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.cache.blockfile import BlockFile, DamagedFile, HostArray
from magistral_mlx.cache.kv import KVCache

_ROWS = ("keys", "values", "packed_")  # name prefixes of arrays that have one row a token


@dataclass(frozen=True)
class FilePart:
    """A file to be written: the rows from `start` to `stop` of all layers' caches, which hold
    `length` tokens; a tail also holds the full-precision window."""

    path: Path
    length: int
    start: int
    stop: int
    is_tail: bool = False


class UnusableFile(Exception):
    """A file that cannot be used, with the reason."""

    def __init__(self, path: Path, why: DamagedFile | OSError) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why


@contextmanager
def unusable_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (DamagedFile, OSError) as error:
        raise UnusableFile(path, error) from error


def read_layer(file: BlockFile, layer: int) -> dict[str, HostArray]:
    """Read the arrays of one layer from a file."""
    prefix = f"{layer}."
    names = [name for name in file.names if name.startswith(prefix)]
    with unusable_if_damaged(file.path):
        arrays = file.read(names)
    return {name.removeprefix(prefix): x for name, x in zip(names, arrays, strict=True)}


def join_parts(parts: Sequence[Mapping[str, HostArray]]) -> dict[str, mx.array]:
    """Concatenate the parts of one layer, in the order of their tokens, for `KVCache.restore`."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part[name] for part in parts if name in part]
        data = np.concatenate([x.data for x in found], axis=2) if len(found) > 1 else found[0].data
        joined[name] = HostArray(found[0].dtype, data).to_device()
    return joined


def part_arrays(piece: FilePart, caches: Sequence[KVCache]) -> dict[str, HostArray]:
    """Copy the arrays of a file to the host layer by layer, so that MLX holds one copy at most."""
    return {
        f"{n}.{name}": HostArray.of(x)
        for n, cache in enumerate(caches)
        for name, x in _parts(piece, cache).items()
    }


def _parts(piece: FilePart, cache: KVCache) -> dict[str, mx.array]:
    parts = {}
    for name, x in cache.save(piece.length).items():
        if name.startswith(_ROWS):
            x = x[:, :, piece.start : piece.stop]
        elif not piece.is_tail or name.startswith("snapshot_"):  # snapshots have their own tails
            continue
        if x.size:
            parts[name] = x
    mx.eval(parts)
    return parts
