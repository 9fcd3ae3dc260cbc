"""Where beginnings of prompts are kept for later runs, and how much of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx import __version__
from magistral_mlx.backend import backend
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.checkpoint.fingerprint import fingerprint
from magistral_mlx.errors import CheckpointError, InvalidOption

if TYPE_CHECKING:
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.memory.plan import Plan

DEFAULT_SIZE = 10**10  # bytes: 60,000 tokens of Magistral in full precision
_LEAST_SIZE = 10**7


@dataclass(frozen=True)
class Keeping:
    """A folder, which models and processes may share, and the bytes that its files may take."""

    folder: Path
    size: int = DEFAULT_SIZE

    @classmethod
    def of(cls, cache_dir: str | Path | None, cache_size: int | None) -> Keeping | None:
        """What `Magistral.load` was given; None keeps nothing.

        Raises:
            InvalidOption: a size without a folder, or one that holds nothing.
        """
        if cache_dir is None:
            if cache_size is not None:
                raise InvalidOption("cache_size needs a cache_dir, where prompts are kept.")
            return None
        size = DEFAULT_SIZE if cache_size is None else cache_size
        if type(size) is not int or size < _LEAST_SIZE:
            raise InvalidOption(f"cache_size is {size!r}; it must be 10 MB or more, in bytes.")
        return cls(Path(cache_dir).expanduser().absolute(), size)

    def open(self, checkpoint: Checkpoint, plan: Plan, dtype: str) -> DiskPrefixCache:
        """What is kept for this model, its cache scheme and this version, computing in `dtype`.

        Raises:
            CheckpointError: the model's files cannot be read any more.
        """
        try:
            model = fingerprint(checkpoint)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} cannot be read any more: {error.strerror}."
            ) from error
        identity = f"{model} {dtype} {backend().name} {__version__}"
        return DiskPrefixCache(self.folder, self.size, identity, plan.scheme)
