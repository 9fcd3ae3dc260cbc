"""Prompt prefixes kept on disk for later runs."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx import __version__
from magistral_mlx.backend import backend
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.model_runner import BuildDisk


_PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class DiskCacheConfig:
    """A folder, which models and processes may share, and the bytes that its files may take."""

    folder: Path
    size: int

    @classmethod
    def of(cls, options: LoadOptions) -> DiskCacheConfig | None:
        """The disk cache that a model is loaded with; None for none.

        Raises:
            InvalidOption: its folder is no path.
        """
        if options.cache_dir is None:
            return None
        if "\0" in os.fspath(options.cache_dir):
            raise InvalidOption(f"cache_dir is {options.cache_dir!r}, with a NUL: it is no path.")
        return cls(user_path(options.cache_dir).absolute(), options.cache_bytes)

    def problem(self) -> str | None:
        """Why prompts cannot be kept in the folder, in a sentence; None if they can."""
        probe = self.folder / f".probe-{os.getpid()}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                probe.write_bytes(bytes(_PROBE_BYTES))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
            return f"Prompts cannot be kept in {self.folder}: {why}. Answers are not affected."
        return None

    def open(
        self, checkpoint: Checkpoint, plan: Plan, dtype: str, build: BuildDisk = DiskPrefixCache
    ) -> DiskPrefixCache:
        """The prefixes of this model, its cache scheme and this version, computed in `dtype`.

        Raises:
            CheckpointError: the model's files cannot be read any more.
        """
        try:
            model = checkpoint.fingerprint()
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} cannot be read any more: {error.strerror}."
            ) from error
        identity = f"{model} {dtype} {backend().name} {__version__}"
        return build(self.folder, self.size, identity, plan.scheme)
