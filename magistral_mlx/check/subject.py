"""The model that is checked: its shapes and schemes, and a slice of it with random weights.

A slice has a few of the layers at full width. Its kernels get the shapes that the whole model's
get, so nothing has to be downloaded or read, and it takes 1.4 GB for Magistral Small at 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from mlx.utils import tree_flatten

from magistral_mlx.backend import mx, nn
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.memory.known import MAGISTRAL_SMALL, quantized_weights
from magistral_mlx.memory.peak import Weights, loaded_weights
from magistral_mlx.model.linear import Embedding, Linear, quantize_modules
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.quantization import Quantization

LAYERS = 2  # of a slice
_ROWS = 509  # different rows of a random matrix, which are then repeated; a prime number


@dataclass(frozen=True)
class Subject:
    """A model by its configuration and its quantized matrices; `checkpoint` is None without files.

    weights: bytes of the whole model in memory.
    """

    name: str
    config: ModelConfig
    schemes: Mapping[str, Quantization]
    weights: Weights
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, dtype: mx.Dtype) -> Subject:
        """Describe a checkpoint that computes in `dtype`."""
        weights = loaded_weights(checkpoint, dtype.size)
        return cls(name, checkpoint.config, checkpoint.quantized, weights, checkpoint)

    @classmethod
    def magistral_small(cls, dtype: mx.Dtype) -> Subject:
        """Describe Magistral Small 1.2 at 4 bits, without its files."""
        scheme, config = Quantization(), MAGISTRAL_SMALL
        schemes = {
            name: scheme
            for name, shape in expected_tensors(config).items()
            if name.startswith(LANGUAGE) and len(shape) == 2
        }
        weights = quantized_weights(config, scheme, dtype.size)
        return cls("Magistral Small at 4 bits", config, schemes, weights)


def make_slice(subject: Subject, dtype: mx.Dtype) -> MagistralModel:
    """Make a model of the subject's first layers, with random weights."""
    config = subject.config
    text = replace(config.text, num_hidden_layers=min(LAYERS, config.text.num_hidden_layers))
    vision = config.vision and replace(config.vision, num_hidden_layers=1)
    model = MagistralModel(replace(config, text=text, vision=vision), dtype)
    quantize_modules(model, subject.schemes)
    mx.random.seed(0)
    tied = text.tie_word_embeddings
    for path, module in _modules(model):
        is_head = path.endswith("embed_tokens" if tied else "lm_head")
        # As a checkpoint's is loaded (`computes_in_float32` in checkpoint/load.py).
        _randomize(module, mx.float32 if is_head and module.quantized else dtype)
        mx.eval(module.parameters())
    for name, norm in model.named_modules():
        if name.endswith("norm"):
            norm.weight = (0.5 + mx.random.uniform(shape=norm.weight.shape)).astype(dtype)
            mx.eval(norm.weight)
    return model


def randomize_vision(model: MagistralModel) -> None:
    """Give random weights to the vision tower and the projector of a slice."""
    model.add_vision()
    for part in (model.vision_tower, model.multi_modal_projector):
        weights = [
            (path, mx.random.normal(x.shape) / math.sqrt(max(1, math.prod(x.shape[1:]))))
            if x.ndim > 1
            else (path, 0.5 + mx.random.uniform(shape=x.shape))
            for path, x in _parameters(part)
        ]
        part.load_weights([(path, x.astype(model.dtype)) for path, x in weights])
        mx.eval(part.parameters())


def slice_weights(model: MagistralModel) -> Weights:
    """Bytes of a slice's own weights."""
    return Weights(sum(array.nbytes for _, array in _parameters(model)), 0)


def matrices(model: MagistralModel) -> Iterator[tuple[str, Linear | Embedding]]:
    """Yield the matrices that a decoded token is multiplied by, of the first layer and the head."""
    for path, module in model.named_modules():
        layer = path.startswith("language_model.model.layers.0.") and isinstance(module, Linear)
        tied = model.config.text.tie_word_embeddings and isinstance(module, Embedding)
        if layer or tied or path.endswith("lm_head"):
            parts = [part for part in path.split(".") if part.endswith(("_proj", "head", "tokens"))]
            yield parts[-1], module


def _parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))


def _modules(model: MagistralModel) -> Iterator[tuple[str, Linear | Embedding]]:
    for path, module in sorted(model.named_modules()):
        if isinstance(module, Linear | Embedding):
            yield path, module


def _randomize(module: Linear | Embedding, dtype: mx.Dtype) -> None:
    scheme = module._scheme
    if scheme is None:
        columns = module.weight.shape[1]
        module.weight = _repeated(
            mx.random.normal((_ROWS, columns)).astype(dtype) / math.sqrt(columns),
            module.weight.shape[0],
        )
        return
    rows, words = module.weight.shape
    columns = words * 32 // scheme.bits
    codes = mx.random.randint(0, 1 << 16, (_ROWS, words, 2)).astype(mx.uint16)
    packed = codes.view(mx.uint32)[..., 0]
    if scheme.mode == "mxfp8":
        packed = packed & 0x77777777  # no NaN
    module.weight = _repeated(packed, rows)
    groups = columns // scheme.group_size
    if not scheme.has_biases:
        exponent = 127 - round(math.log2(2.5 * math.sqrt(columns)))
        code = 0x10 if scheme.mode == "nvfp4" else exponent  # e4m3 or a power of two
        module.scales = mx.full((rows, groups), code, mx.uint8)
        return
    steps = (1 << scheme.bits) - 1
    scale = math.sqrt(12 / columns) / steps  # so that outputs are about as large as inputs
    scales = scale * (0.5 + mx.random.uniform(shape=(_ROWS, groups)))
    module.scales = _repeated(scales.astype(dtype), rows)
    module.biases = _repeated((-scales * steps / 2).astype(dtype), rows)


def _repeated(x: mx.array, rows: int) -> mx.array:
    return mx.tile(x, (-(-rows // x.shape[0]), 1))[:rows]
