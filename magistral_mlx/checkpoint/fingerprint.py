"""What tells one checkpoint from every other, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from magistral_mlx.checkpoint.folder import Checkpoint

_SAMPLES, _SAMPLE = 16, 1 << 16


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of configuration and weights: of each file its name, size, time of change, header,
    and samples of its content.

    Another quantization, or the same one converted anew, has another fingerprint.

    Raises:
        OSError: a file cannot be read.
    """
    content = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=16)
    headers: dict[Path, int] = {}  # what stands before the first tensor
    for tensor in checkpoint.tensors.values():
        headers[tensor.file] = min(tensor.offset, headers.get(tensor.file, tensor.offset))
    for file, length in sorted(headers.items()):
        _add(content, file, length)
    return content.hexdigest()


def _add(content: hashlib.blake2b, file: Path, header: int) -> None:
    status = file.stat()
    content.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
    with file.open("rb") as stream:
        content.update(stream.read(header))
        for n in range(_SAMPLES):
            stream.seek(status.st_size * n // _SAMPLES)
            content.update(stream.read(_SAMPLE))
