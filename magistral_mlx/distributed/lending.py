"""Weights for ranks that have no copy of the model: rank 0 reads their parts and sends them.

A rank asks for one tensor after another while it loads, over a connection of its own, so that
neither side holds more than a batch of tensors.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.checkpoint.load import read_stored
from magistral_mlx.checkpoint.part import part_of
from magistral_mlx.config import ModelConfig, QueryScaling, TextConfig, VisionConfig, Yarn
from magistral_mlx.distributed.link import PATIENCE, exactly, read, write
from magistral_mlx.errors import CheckpointError, RankLost
from magistral_mlx.quantization import Quantization
from magistral_mlx.split import Split

_TOKEN_BYTES = 16


class Lender:
    """Rank 0's side: it sends tensors of each rank's part to whoever knows the token."""

    def __init__(self, host: str, whole: Checkpoint, split: Split) -> None:
        """Listen on rank 0's own address. `split`: any rank's."""
        self._whole, self._split = whole, split
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._listening = socket.create_server((host, 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def offer(self, rank: int) -> dict[str, Any]:
        """What a rank needs to know to load its part from here."""
        part = self._part(rank)
        return {
            "address": self._listening.getsockname()[:2],
            "token": self._token,
            "folder": str(part.folder),
            "config": asdict(part.config),
            "layout": part.layout,
            "tensors": {n: [t.dtype, t.shape, t.nbytes] for n, t in part.tensors.items()},
            "quantized": {name: asdict(scheme) for name, scheme in part.quantized.items()},
        }

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _part(self, rank: int) -> Checkpoint:
        split = self._split
        return part_of(self._whole, Split(split.kind, rank, split.size, split.shares))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        with connection, suppress(OSError, EOFError, ValueError, KeyError, TypeError):
            hello = read(connection)
            if not hmac.compare_digest(str(hello["token"]), self._token):
                return
            part = self._part(int(hello["rank"]))
            connection.settimeout(None)  # of a rank that lays out what it has, which may take long
            while True:
                _send_tensor(connection, part, read(connection))


def _send_tensor(connection: socket.socket, part: Checkpoint, asked: Mapping[str, Any]) -> None:
    dtype = getattr(mx, str(asked["dtype"]))
    name = str(asked["name"])
    try:
        array = read_stored(part, [name], dtype, compact=bool(asked["compact"]))[name]
    except CheckpointError as error:
        write(connection, {"error": str(error)})
        return
    raw = np.array(mx.contiguous(array).reshape(-1).view(mx.uint8))
    kind = str(array.dtype).removeprefix("mlx.core.")
    write(connection, {"dtype": kind, "shape": array.shape, "nbytes": raw.nbytes})
    connection.sendall(raw.data)


class Borrowed:
    """Another rank's side: the weights of its part, read from rank 0."""

    def __init__(self, offer: Mapping[str, Any], rank: int) -> None:
        """Raises RankLost if rank 0 cannot be reached."""
        try:
            host, port = offer["address"]
            self._connection = socket.create_connection((host, port), PATIENCE)
            write(self._connection, {"token": offer["token"], "rank": rank})
        except OSError as error:
            raise RankLost(f"rank 0's weights cannot be read: {error.strerror or error}.") from None

    def read(self, name: str, dtype: mx.Dtype, *, compact: bool) -> mx.array:
        """Read a tensor of the part, as `read_stored` does.

        Raises:
            CheckpointError: rank 0 cannot read it, or has ended.
        """
        kind = str(dtype).removeprefix("mlx.core.")
        try:
            write(self._connection, {"name": name, "dtype": kind, "compact": compact})
            answer = read(self._connection)
            if "error" in answer:
                raise CheckpointError(str(answer["error"]))
            raw = exactly(self._connection, int(answer["nbytes"]))
        except (OSError, EOFError, ValueError) as error:
            raise CheckpointError(f"rank 0 no longer sends weights: {error}.") from None
        array = mx.array(np.frombuffer(raw, np.uint8)).view(getattr(mx, answer["dtype"]))
        return array.reshape(answer["shape"])

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def borrowed_checkpoint(offer: Mapping[str, Any], split: Split) -> tuple[Checkpoint, Borrowed]:
    """Return a rank's part of a model whose files are on rank 0. Raises RankLost."""
    folder = Path(offer["folder"])
    tensors = {
        name: StoredTensor(name, folder, dtype, tuple(shape), 0, nbytes)
        for name, (dtype, shape, nbytes) in offer["tensors"].items()
    }
    schemes = {name: Quantization(**scheme) for name, scheme in offer["quantized"].items()}
    source = Borrowed(offer, split.rank)
    checkpoint = Checkpoint(
        folder, told_config(offer["config"]), offer["layout"], tensors, schemes,
        split=split, source=source,
    )  # fmt: skip
    return checkpoint, source


def told_config(told: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that `asdict` made a dictionary of."""
    text = dict(told["text"])
    text["yarn"] = text["yarn"] and Yarn(**text["yarn"])
    text["query_scaling"] = text["query_scaling"] and QueryScaling(**text["query_scaling"])
    vision = told["vision"] and VisionConfig(**told["vision"])
    rest = {name: told[name] for name in ("image_token_id", "spatial_merge_size", "projector_bias")}
    return ModelConfig(text=TextConfig(**text), vision=vision, **rest)
