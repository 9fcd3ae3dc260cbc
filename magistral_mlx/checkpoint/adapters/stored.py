"""The tensors of an adapter, checked against the model before any of them is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from magistral_mlx.checkpoint.adapters.config import CONFIG, AdapterConfig, read_adapter_config
from magistral_mlx.checkpoint.header import FLOATS, StoredTensor, read_header
from magistral_mlx.checkpoint.names import (
    EMBEDDING_PATH,
    HEAD_PATH,
    LANGUAGE,
    canonical_name,
    expected_tensors,
)
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError

_PEFT_PREFIX = "base_model.model."
# PEFT's names of the parts, with the name of the adapter or without; then mlx-lm's.
_PEFT_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
_PEFT_WHOLE = re.compile(
    r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.weight"
)
_MLX_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredChange:
    """Change of one matrix (out, in): two factors, and for DoRA the lengths of its rows (out,).

    is_transposed: whether a is (r, in) and b (out, r), as PEFT stores them, rather than (in, r) and
    (r, out). For an embedding, `in` is the vocabulary.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    is_transposed: bool
    magnitude: StoredTensor | None = None

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return self.a.shape[0 if self.is_transposed else 1]

    @property
    def tensors(self) -> list[StoredTensor]:
        """The stored tensors of this change."""
        return [self.a, self.b, *([self.magnitude] if self.magnitude else [])]


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter whose headers have been read and checked; no weights are in memory.

    changes: by the path of the matrix, as in "language_model.model.layers.0.self_attn.q_proj".
    replaced: whole matrices in place of the base's, the head or the embedding, likewise.
    """

    folder: Path
    config: AdapterConfig
    changes: dict[str, StoredChange] = field(default_factory=dict)
    replaced: dict[str, StoredTensor] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, model: ModelConfig) -> StoredAdapter:
        """Read the headers of an adapter and check them against a model.

        Raises:
            CheckpointError: no adapter, a damaged one, or one of another model.
        """
        config = read_adapter_config(folder)
        adapter = cls(folder, config)
        shapes = _matrix_shapes(model)
        parts: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
        modules: dict[str, str] = {}  # path -> name in the file
        for tensor in read_header(config.file).values():
            module, part = _parse(config, tensor)
            path = (canonical_name(f"{module}.weight") or "").removesuffix(".weight")
            if path not in shapes:
                raise _foreign(adapter, tensor, "changes a matrix that this model does not have")
            if tensor.dtype not in FLOATS:
                raise _foreign(adapter, tensor, f"is stored as {tensor.dtype}, not as floats")
            if part in parts[path]:
                raise _foreign(adapter, tensor, "is there twice")
            parts[path][part] = tensor
            modules[path] = module
        if not parts:
            raise CheckpointError(f"{config.file} holds no tensors. Save the adapter again.")
        for path, found in parts.items():
            adapter._add(path, found, shapes[path], modules[path])
        is_tied = model.text.tie_word_embeddings
        if is_tied and config.layout == "mlx" and EMBEDDING_PATH in adapter.changes:
            raise CheckpointError(
                f"{config.file} changes an embedding that is the head as well, which this runtime "
                "supports in PEFT's adapters only. Train it without embed_tokens."
            )
        return adapter

    def _add(
        self, path: str, parts: dict[str, StoredTensor], shape: tuple[int, int], module: str
    ) -> None:
        """Check the tensors of one matrix (out, in), and keep them."""
        whole = parts.pop("whole", None)
        if whole is not None:
            self._check_shape(whole, shape[::-1] if path == EMBEDDING_PATH else shape)
            self.replaced[path] = whole
            if not parts:
                return
        a, b = parts.get("a"), parts.get("b")
        if a is None or b is None:
            first = next(iter(parts.values()))
            raise _foreign(self, first, "has no partner: a change has two factors")
        transposed = self.config.layout == "peft"
        change = StoredChange(a, b, 0.0, transposed, parts.get("magnitude"))
        out, inner = shape
        if len(a.shape) != 2:
            raise _foreign(self, a, f"has the shape {list(a.shape)}, not that of a matrix")
        rank = change.rank
        if not rank:
            raise _foreign(self, a, "has the rank 0")
        self._check_shape(a, (rank, inner) if transposed else (inner, rank))
        self._check_shape(b, (out, rank) if transposed else (rank, out))
        if change.magnitude:
            if path == EMBEDDING_PATH:
                raise _foreign(self, change.magnitude, "is DoRA on an embedding")
            self._check_shape(change.magnitude, (out,))
        scale = self.config.scale_of(module, rank)
        self.changes[path] = replace(change, scale=scale)

    def _check_shape(self, tensor: StoredTensor, expected: tuple[int, ...]) -> None:
        if tensor.shape != expected:
            raise _foreign(self, tensor, f"has the shape {[*tensor.shape]}, not {[*expected]}")

    def nbytes(self, float_bytes: int) -> int:
        """Bytes in memory, in a compute dtype of `float_bytes`."""
        every = [tensor for change in self.changes.values() for tensor in change.tensors]
        return float_bytes * sum(math.prod(one.shape) for one in (*every, *self.replaced.values()))

    @property
    def changes_vision(self) -> bool:
        """Whether it changes the vision tower or the projector."""
        return not all(path.startswith(LANGUAGE) for path in self.changes)

    def fingerprint(self) -> int:
        """A number from 1 to 2**62 by the content of its files.

        Raises:
            CheckpointError: a file cannot be read.
        """
        digest = hashlib.blake2b(digest_size=8)
        try:
            digest.update((self.folder / CONFIG).read_bytes())
            with self.config.file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.config.file}: {error.strerror}.") from None
        return (int.from_bytes(digest.digest(), "little") >> 2) or 1


def _matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The path of each matrix that can be changed -> (out, in); the embedding's `in` are tokens."""
    shapes = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_tensors(config).items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    tokens, width = shapes[EMBEDDING_PATH]
    shapes[EMBEDDING_PATH] = (width, tokens)
    shapes.setdefault(HEAD_PATH, (tokens, width))  # a tied one
    return shapes


def _parse(config: AdapterConfig, tensor: StoredTensor) -> tuple[str, str]:
    """The module of a tensor, as the file names it, and its part: a, b, magnitude or whole."""
    name = tensor.name
    if config.layout == "mlx":
        if match := _MLX_PART.fullmatch(name):
            return match["module"], {"lora_a": "a", "lora_b": "b", "m": "magnitude"}[match["part"]]
    else:
        name = name.removeprefix(_PEFT_PREFIX)
        if match := _PEFT_PART.fullmatch(name):
            part = match["part"]
            return match["module"], "magnitude" if "vector" in part else part[-1].lower()
        match = _PEFT_WHOLE.fullmatch(name)
        canonical = canonical_name(f"{match['module']}.weight") if match else None
        if match and canonical in (f"{EMBEDDING_PATH}.weight", f"{HEAD_PATH}.weight"):
            return match["module"], "whole"
    raise CheckpointError(
        f"{config.file} holds {name[:200]}, which is neither a factor of LoRA, nor DoRA's, nor a "
        "head or embedding that was trained as a whole. It cannot be used here."
    )


def _foreign(adapter: StoredAdapter, tensor: StoredTensor, why: str) -> CheckpointError:
    base = adapter.config.base
    trained = f"It was trained on {base}: use it with that model" if base else "Use its own model"
    return CheckpointError(
        f"the adapter {adapter.folder} does not fit this model: {tensor.name[:200]} {why}. "
        f"{trained}, or save it again."
    )
