"""Attention over each kind of cache, on the device, against float32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.kv import make_cache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.check.deviation import (
    Deviation,
    Floats,
    error_of,
    normal,
    plain,
    tolerance_of,
)
from magistral_mlx.model.magistral import MagistralModel

_KEYS = {"cpu": 2048}  # tokens in a cache


def compare_attention(model: MagistralModel, scheme: KVScheme) -> Iterator[Deviation]:
    """Attend over a cache, and to the same keys in float32 with what the cache quantized."""
    text, dtype = model.config.text, model.dtype
    held = min(_KEYS.get(backend().name, 8192), text.max_position_embeddings // 2)
    shape = (1, text.num_key_value_heads, held, text.head_dim)
    for length in (1, 4, 16, 200):
        cache = make_cache(scheme)
        k, v = normal(shape, dtype), normal(shape, dtype)
        cache.append(k, v)
        q = normal((1, text.num_attention_heads, length, text.head_dim), dtype)
        new_k, new_v = (normal((*shape[:2], length, shape[3]), dtype) for _ in range(2))
        y = plain(cache.attend(q, new_k, new_v, scale=text.head_dim**-0.5))
        keys, values = (plain(mx.concatenate(x, axis=2)) for x in ([k, new_k], [v, new_v]))
        saved = cache.save()
        stored = [_stored(saved, kind, scheme, bits) for kind, bits in _kinds(scheme)]
        some = sorted({0, length // 2, length - 1})
        expected = np.stack(
            [_attended(plain(q)[:, :, n], keys, values, stored, scheme, held + n) for n in some],
            axis=2,
        )
        yield Deviation(f"{length} queries", error_of(y[:, :, some], expected))
        for (kind, bits), packed in zip(_kinds(scheme), stored, strict=True):
            exact = _rotated(keys if kind == "keys" else values, scheme)
            part = exact[:, :, scheme.first : scheme.first + packed.shape[2]]
            # Rounding to steps of a group's range, about 4.8 deviations of 64 normal values.
            rounding = 4.8 / ((1 << bits) - 1) / math.sqrt(12)
            error = error_of(packed, part)
            allowed = 1.5 * max(rounding, tolerance_of(dtype))
            yield Deviation(f"quantized {kind}, {length} new", max(0.0, error - allowed))


def _kinds(scheme: KVScheme) -> list[tuple[str, int]]:
    if scheme.key_bits is None or scheme.value_bits is None:
        return []
    return [("keys", scheme.key_bits), ("values", scheme.value_bits)]


def _stored(saved: dict[str, mx.array], kind: str, scheme: KVScheme, bits: int) -> Floats:
    """The quantized tokens of a cache in float32, keys with their mean: (1, H_kv, packed, D)."""
    codes, scales, biases = (
        saved[f"packed_{kind}_{part}"] for part in ("weight", "scales", "biases")
    )
    mx.eval(codes, scales, biases)
    wide = mx.dequantize(
        mx.contiguous(codes),
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=scheme.group_size,
        bits=bits,
        stream=mx.cpu,
    )
    stored = plain(wide)
    return stored + plain(saved["center"]) if kind == "keys" and "center" in saved else stored


def _rotated(x: Floats, scheme: KVScheme) -> Floats:
    if not scheme.rotate:
        return x
    return np.array(mx.hadamard_transform(mx.array(x), stream=mx.cpu))


def _attended(
    q: Floats, keys: Floats, values: Floats, stored: list[Floats], scheme: KVScheme, position: int
) -> Floats:
    """Attention of the query at `position`, (1, H, D), to the tokens up to its own."""
    group = q.shape[1] // keys.shape[1]
    k, v = keys[:, :, : position + 1], values[:, :, : position + 1]
    if stored:
        q, k, v = (_rotated(x, scheme) for x in (q, k, v))
        packed = slice(scheme.first, scheme.first + scheme.packed(position))
        count = scheme.packed(position)
        k, v = k.copy(), v.copy()
        k[:, :, packed], v[:, :, packed] = (x[:, :, :count] for x in stored)
    by_head = q.reshape(k.shape[1], group, -1)
    scores = by_head @ k[0].swapaxes(1, 2) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y: Any = (weights @ v[0]).reshape(q.shape)
    return _rotated(y, scheme) if stored else y
