"""Headers of safetensors and GGUF files on the hub, read without their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magistral_mlx.checkpoint.gguf.config import model_config
from magistral_mlx.checkpoint.gguf.files import belongs_to
from magistral_mlx.checkpoint.gguf.header import GgufFile, parse_gguf
from magistral_mlx.checkpoint.header import (
    LENGTH_BYTES,
    StoredTensor,
    header_length,
    parse_header,
)
from magistral_mlx.errors import CheckpointError
from magistral_mlx.hub.client import current_hub, hub_headers, raise_for_status
from magistral_mlx.hub.errors import hub_errors
from magistral_mlx.hub.gguf import RemoteGguf
from magistral_mlx.hub.remote import RemoteFile, RemoteModel

_FIRST_BYTES = 128 << 10  # a shard's header has been a tenth of that
_FIRST_GGUF_BYTES = 1 << 20  # all but the first file of a model, which has the vocabulary
_MOST_GGUF_BYTES = 256 << 20  # far more than Tekken's vocabulary takes
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


def read_remote_gguf(found: RemoteGguf) -> tuple[list[GgufFile], GgufFile | None]:
    """Return the headers of a GGUF model and of its vision tower, once they are known to run here.

    Their paths are names on the hub. The tower is None where there is none of this model.

    Raises:
        HubError: the hub cannot be reached, or refuses.
        UnsupportedModel: another architecture, or a type of blocks that is not read here.
        CheckpointError: a file is damaged or no GGUF file.
    """
    parts = [_gguf_header(found.model, part) for part in found.parts]
    text = replace(parts[0], tensors={k: v for part in parts for k, v in part.tensors.items()})
    model_config(text, None)
    if found.mmproj is None:
        return parts, None
    tower = _gguf_header(found.model, found.mmproj)
    if not belongs_to(tower, text):
        return parts, None
    model_config(text, tower)
    return parts, tower


def _gguf_header(model: RemoteModel, file: RemoteFile) -> GgufFile:
    path = Path(str(model.ref)) / file.name
    count = _FIRST_GGUF_BYTES
    while count <= _MOST_GGUF_BYTES:
        data = _read_start(model, file, min(count, file.size)) if file.size else b""
        header = parse_gguf(path, data, file.size)
        if header is not None:
            return header
        count *= 4
    raise CheckpointError(
        f"{path} is damaged or no GGUF file: its header does not end within "
        f"{_MOST_GGUF_BYTES >> 20} MiB. Take another file of the model."
    )


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
