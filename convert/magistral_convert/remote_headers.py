"""Headers of safetensors and GGUF files on the hub, read without their weights."""

from __future__ import annotations

from pathlib import Path

from magistral_mlx.checkpoint.gguf.header import GgufFile, parse_gguf
from magistral_mlx.checkpoint.header import (
    LENGTH_BYTES,
    StoredTensor,
    header_length,
    parse_header,
)
from magistral_mlx.hub import RemoteFile, RemoteModel
from magistral_mlx.hub.client import current_hub, hub_headers, raise_for_status
from magistral_mlx.hub.errors import hub_errors

_FIRST_BYTES = 128 << 10  # a shard's header has been a tenth of that
_FIRST_GGUF_BYTES = 16 << 20  # vocabulary included
_RETRIES = 3


def read_remote_header(model: RemoteModel, file: RemoteFile, path: Path) -> dict[str, StoredTensor]:
    """Return stored name -> tensor, as if the file were at `path` already.

    Raises:
        HubError: the hub cannot be reached, or refuses.
        CheckpointError: not a safetensors file.
    """
    data = _read_start(model, file, min(_FIRST_BYTES, file.size))
    end = LENGTH_BYTES + header_length(path, data[:LENGTH_BYTES], file.size)
    if end > len(data):
        data = _read_start(model, file, end)
    return parse_header(path, data[LENGTH_BYTES:end], file.size)


def read_remote_gguf(model: RemoteModel, file: RemoteFile, path: Path) -> GgufFile:
    """Return the header of a GGUF file, as if it were at `path` already; raises as above."""
    count = _FIRST_GGUF_BYTES
    while True:
        data = _read_start(model, file, min(count, file.size))
        found = parse_gguf(path, data, file.size)
        if found is not None:
            return found
        count *= 4


def _read_start(model: RemoteModel, file: RemoteFile, count: int) -> bytes:
    """Read the first `count` bytes of a file, also from a server that ignores ranges."""
    from huggingface_hub.utils import http_stream_backoff  # type: ignore[attr-defined]

    hub = current_hub()
    hub.require_online(f"{file.name} of {model.ref}")
    url = hub.file_url(model.ref.repo, model.commit, file.name)
    wanted = {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    with (
        hub_errors(hub, model.ref),
        http_stream_backoff(
            "GET",
            url,
            headers=hub_headers() | wanted,
            follow_redirects=True,
            max_retries=_RETRIES,
        ) as response,
    ):
        raise_for_status(response)
        for piece in response.iter_bytes():
            data += piece
            if len(data) >= count:
                break
        if len(data) < count:
            raise ValueError(f"{file.name} ended after {len(data)} of {count} bytes")
    return bytes(data[:count])
