"""What tells one checkpoint from every other, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import LENGTH_BYTES

_SAMPLES, _SAMPLE = 16, 1 << 16


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of configuration and weights: of each file its name, size, time of change, header,
    and samples of its content.

    Another quantization, or the same one converted anew, has another fingerprint.

    Raises:
        OSError: a file cannot be read.
    """
    content = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=16)
    for file in sorted({tensor.file for tensor in checkpoint.tensors.values()}):
        _add(content, file)
    return content.hexdigest()


def _add(content: hashlib.blake2b, file: Path) -> None:
    status = file.stat()
    content.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        content.update(stream.read(length))
        for n in range(_SAMPLES):
            stream.seek(status.st_size * n // _SAMPLES)
            content.update(stream.read(_SAMPLE))
