"""Kernels at the shapes of a model, on the device, against float32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.scheme import SCHEMES, KVScheme
from magistral_mlx.check.attended import compare_attention
from magistral_mlx.check.deviation import (
    Deviation,
    Floats,
    error_of,
    normal,
    plain,
    tolerance_of,
)
from magistral_mlx.check.finding import Finding
from magistral_mlx.check.subject import matrices, randomize_vision
from magistral_mlx.model.linear import Embedding, Linear, matmul
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.model.text import swiglu

_OUTPUTS = 96  # of a matrix, compared
_BROKEN = (
    "the results of this kernel are wrong here: update macOS and MLX, and report this with "
    "`magistral-mlx doctor --check --json`"
)


def compare_kernels(model: MagistralModel) -> Iterator[Finding]:
    """Compare the kernels of a slice: a finding for each kind."""
    tolerance = tolerance_of(model.dtype)
    yield _finding("matrix products", list(_products(model)), tolerance)
    yield _finding("norm, rope, SwiGLU", list(_elementwise(model)), tolerance)
    for scheme in map(KVScheme.parse, SCHEMES):
        # Scores of a quantized cache are rounded before the softmax; the fused kernel's are not.
        allowed = (2 if scheme.quantized else 1) * tolerance
        found = list(compare_attention(model, scheme))
        yield _finding(f"attention, KV cache {scheme.name}", found, allowed)
    yield _finding("sampling", list(_sampling(model)), 0)
    if model.config.vision is not None:
        yield _finding("vision tower", list(_vision(model)), 4 * tolerance)


def _finding(what: str, found: list[Deviation], tolerance: float) -> Finding:
    worst = max(found, key=lambda one: one.error if math.isfinite(one.error) else math.inf)
    errors = {one.kernel: one.error for one in found}
    figures = {"errors": errors, "tolerance": tolerance}
    if all(one.error <= tolerance for one in found):
        words = f"{len(found)} as on the CPU"
        words += f", largest error {worst.error:.1e}" if tolerance else ""
        return Finding(what, "good", words, figures=figures)
    wrong = [one for one in found if not one.error <= tolerance]
    words = f"{len(wrong)} of {len(found)} wrong: {worst.kernel} by {worst.error:.1e}"
    return Finding(what, "bad", words, _BROKEN, figures)


def _rows() -> tuple[int, ...]:
    if backend().name == "cpu":
        return 1, 3, 8
    return 1, 2, 3, 4, 6, 8, 12, 16, 32, backend().few_rows, backend().prefill_chunk


# Matrix products


def _products(model: MagistralModel) -> Iterator[Deviation]:
    for name, module in matrices(model):
        outputs = module.weight.shape[0]
        some = np.unique(np.linspace(0, outputs - 1, _OUTPUTS).astype(np.int32))
        weights = _dense(module, mx.array(some))
        for rows in _rows():
            x = normal((1, rows, weights.shape[1]), _input_dtype(module, model.dtype))
            y = plain(matmul(x, module)[0][:, mx.array(some)])
            yield Deviation(f"{name}, {rows} rows", error_of(y, plain(x)[0] @ weights.T))


def _input_dtype(module: Linear | Embedding, dtype: mx.Dtype) -> mx.Dtype:
    """The dtype of the inputs of a matrix: that of its scales, which is float32 for the head."""
    scheme = module._scheme
    return module.scales.dtype if scheme and scheme.has_biases else dtype


def _dense(module: Linear | Embedding, rows: mx.array) -> Floats:
    """Rows of a matrix in float32, dequantized on the CPU."""
    scheme = module._scheme
    if scheme is None:
        return plain(module.weight[rows])
    weight, scales = module.weight[rows], module.scales[rows]
    biases = module.biases[rows].astype(mx.float32) if scheme.has_biases else None
    mx.eval(weight, scales, biases)
    dense = mx.dequantize(
        weight,
        scales.astype(mx.float32) if scheme.has_biases else scales,
        biases,
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
        stream=mx.cpu,
    )
    return plain(dense)


# Norm, rope, SwiGLU, embedding


def _elementwise(model: MagistralModel) -> Iterator[Deviation]:
    text, dtype = model.config.text, model.dtype
    decoder = model.language_model.model
    block = decoder.layers[0]
    some = np.linspace(0, text.vocab_size - 1, 64).astype(np.int32)
    rows = plain(model.embed(mx.array(some)[None]))[0]
    yield Deviation("embedding", error_of(rows, _dense(decoder.embed_tokens, mx.array(some))))
    for length in (1, 8, 300):
        x = normal((1, length, text.hidden_size), dtype)
        wide = plain(x)
        square = np.mean(wide**2, axis=-1, keepdims=True)
        norm = wide / np.sqrt(square + text.rms_norm_eps) * plain(block.input_layernorm.weight)
        yield Deviation(f"norm, {length} rows", error_of(plain(block.input_layernorm(x)), norm))
        gate, up = (normal((1, length, text.intermediate_size), dtype) for _ in range(2))
        activated = plain(gate) / (1 + np.exp(-plain(gate))) * plain(up)
        yield Deviation(f"SwiGLU, {length} rows", error_of(plain(swiglu(gate, up)), activated))
    if text.yarn is not None:
        return
    for offset in (0, 1000, text.max_position_embeddings - 8):
        q = normal((1, text.num_attention_heads, 8, text.head_dim), dtype)
        turned = _rope(plain(q), offset, text.rope_theta)
        # float32 angles at a far position are exact to 2^-24 of the position.
        error = error_of(plain(block.self_attn.rope(q, offset)), turned)
        yield Deviation(f"rope, position {offset}", max(0.0, error - offset * 2.0**-24))


def _rope(x: Floats, offset: int, theta: float) -> Floats:
    half = x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    angles = (offset + np.arange(x.shape[2]))[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(np.float32)


# Sampling and vision


def _sampling(model: MagistralModel) -> Iterator[Deviation]:
    """Choices over the vocabulary: their number of differences."""
    vocabulary = model.config.text.vocab_size
    logits = mx.random.normal((1, vocabulary))
    values = np.array(logits)[0]
    yield Deviation("argmax", abs(int(mx.argmax(logits)) - int(values.argmax())))
    top = np.sort(np.array(mx.topk(logits, 50, axis=-1))[0])
    yield Deviation("top-k", int((top != np.sort(values)[-50:]).sum()))
    ranked = np.array(mx.sort(logits, axis=-1))[0]
    yield Deviation("sort", int((ranked != np.sort(values)).sum()))
    key = mx.random.key(7)
    here, there = (mx.random.uniform(shape=(4096,), key=key, stream=s) for s in (None, mx.cpu))
    yield Deviation("random numbers", int((np.array(here) != np.array(there)).sum()))


def _vision(model: MagistralModel) -> Iterator[Deviation]:
    """One layer of the tower and the projector, against the same in float32 on the CPU."""
    vision = model.config.vision
    assert vision is not None
    side = vision.patch_size * 2 * (4 if backend().name == "cpu" else 16)
    pixels = mx.random.normal((3, side, side))
    randomize_vision(model)
    features = plain(model.encode_image(pixels))
    parts = (model.vision_tower, model.multi_modal_projector)
    dtype = model.dtype
    try:
        for part in parts:
            part.set_dtype(mx.float32)
        with mx.stream(mx.cpu):
            model.dtype = mx.float32
            expected = plain(model.encode_image(pixels))
    finally:
        model.dtype = dtype
        model.drop_vision()
    yield Deviation(f"{side} x {side} pixels", error_of(features, expected))
