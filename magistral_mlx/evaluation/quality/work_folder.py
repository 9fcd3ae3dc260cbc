"""The files of an unfinished comparison: hidden states of the first model, figures of the others.

Each file is renamed to its name when all of it is on the disk, so whatever is there is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.errors import StorageError
from magistral_mlx.memory.plan import gib
from magistral_mlx.paths import home_dir

_UNFINISHED = ".tmp"


@dataclass(frozen=True)
class TokenFigures:
    """Figures of each token of a sequence after the first, (L - 1,) float32 each.

    divergence: KL(first || other) of the distributions that it was predicted by, in nats.
    agrees: 1 where both have the same likeliest token. first, other: its log-probability.
    """

    divergence: NDArray[np.float32]
    agrees: NDArray[np.float32]
    first: NDArray[np.float32]
    other: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[TokenFigures]) -> TokenFigures:
        """Concatenate the figures of several parts."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class WorkFolder:
    """Folder of one comparison, locked against other processes; see `remove`."""

    def __init__(self, path: Path) -> None:
        """Make or find the folder.

        Raises:
            StorageError: another process is at work in it, or it cannot be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StorageError(
                f"another process is making the same comparison in {path}. Wait for it, or stop it."
            ) from None

    @classmethod
    def of(cls, identity: str) -> WorkFolder:
        """Return the folder for a comparison of this identity, in this program's cache."""
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cls(home_dir() / "quality" / digest)

    def close(self) -> None:
        """Give the lock back; the files stay for the next run."""
        os.close(self._lock)

    def remove(self) -> None:
        """Delete the folder, and give the lock back."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def states(self, sequence: int) -> Path:
        """Return the file of a sequence's hidden states."""
        return self.path / f"states-{sequence}"

    def dtype(self) -> str | None:
        """Return the dtype of the hidden states; None before there are any."""
        file = self.path / "dtype"
        return file.read_text() if file.exists() else None

    def keep_dtype(self, dtype: str) -> None:
        """Keep the dtype of the hidden states."""
        with _whole(self.path / "dtype") as opened:
            opened.write(dtype.encode())

    def check_space(self, nbytes: int) -> None:
        """Check that the disk has room for the hidden states that are still to be kept.

        Raises:
            StorageError: it does not.
        """
        free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise StorageError(
                f"{self.path} needs {gib(nbytes)} for hidden states, and {gib(free)} are free. "
                "Delete something, compare on fewer --tokens, or set MAGISTRAL_MLX_HOME to a "
                "folder on another disk."
            )

    @contextmanager
    def writing_states(self, sequence: int) -> Iterator[BinaryIO]:
        """Open the file of a sequence's hidden states, which is there when all are written."""
        with _whole(self.states(sequence)) as opened:
            yield opened

    def figures(self, other: int, sequence: int) -> TokenFigures | None:
        """Return the figures of the model `other` on a sequence, if they are kept."""
        file = self._figures(other, sequence)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as found:
            return TokenFigures(**found)

    def keep_figures(self, other: int, sequence: int, figures: TokenFigures) -> None:
        """Keep the figures of the model `other` on a sequence."""
        with _whole(self._figures(other, sequence)) as opened:
            np.savez(opened, **vars(figures))

    def _figures(self, other: int, sequence: int) -> Path:
        return self.path / f"figures-{other}-{sequence}.npz"


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it gets its name at the end, and none after an error."""
    unfinished = file.with_name(file.name + _UNFINISHED)
    try:
        with unfinished.open("wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
