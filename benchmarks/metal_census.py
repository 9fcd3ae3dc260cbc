"""What Metal does for a decoded token and for a prefill chunk, ours and mlx-lm's: computed.

    python -m benchmarks.metal_census

Nothing here is measured. The graphs that MLX builds for Magistral Small at 4 bits are recorded,
for some contexts, caches and numbers of rows, without computing anything; MLX's rules for Metal
give the kernel, the copies and the bytes of each operation (`metal_rules`), and published figures
of five chips the least time that these take. Takes a minute or two.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from mlx.utils import tree_flatten, tree_unflatten

from benchmarks.metal_graph import work_of_graph
from benchmarks.metal_rules import Work
from magistral_mlx.backend import mx
from magistral_mlx.bench.ours import Ours
from magistral_mlx.cache.buffer import Buffer
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.memory.chips import Chip, find_chip
from magistral_mlx.memory.estimate import bytes_per_token
from magistral_mlx.memory.known import MAGISTRAL_SMALL, quantized_weights
from magistral_mlx.model.linear import quantize_modules
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.quantization import Quantization

CONTEXTS = (128, 8192, 40_960, 131_072)
ROWS = (1, 4, 8, 16)
CHUNK = 2048
CACHES = ("full", "8/8", "4/4")
CHIPS = ("M1", "M2 Pro", "M3 Pro", "M4 Pro", "M4 Max")
DTYPE = mx.bfloat16
Arrays = list[tuple[str, mx.array]]


@dataclass(frozen=True)
class Census:
    """Totals of a pass through all layers."""

    dispatches: int
    read: int
    written: int
    copied: int
    flops: float
    kernels: Counter[str]
    times: tuple[float, ...]  # least seconds by chip

    @property
    def moved(self) -> int:
        return self.read + self.written + self.copied


def chips() -> list[Chip]:
    """The five chips, of which the M1 has 16 GB, and the M4 Max 128 GB."""
    found = [find_chip(name) for name in CHIPS[:-1]] + [find_chip(CHIPS[-1], 40)]
    return [chip for chip in found if chip is not None]


def census(runtime: str, cache: str, context: int, rows: int, *, chunk: bool = False) -> Census:
    """The work of a pass over `rows` tokens of one sequence, whose last has position `context`."""
    build = _ours if runtime == "ours" else _mlx_lm
    layers = MAGISTRAL_SMALL.text.num_hidden_layers
    one, two = (build(cache, context - rows, rows, count, chunk) for count in (1, 2))
    a, b = (_total(found) for found in (one, two))
    more = layers - 2  # layers are alike: what the second adds, the others add too

    def whole(x: Any, y: Any) -> Any:
        return y + more * (y - x)

    kernels = Counter({n: whole(a.kernels[n], b.kernels[n]) for n in a.kernels | b.kernels})
    fields = ("dispatches", "read", "written", "copied", "flops")
    totals = {name: whole(getattr(a, name), getattr(b, name)) for name in fields}
    return Census(**totals, kernels=kernels, times=tuple(map(whole, a.times, b.times)))


def _total(work: Sequence[Work]) -> Census:
    times = []
    for chip in chips():
        bandwidth, flops = chip.bandwidth * 1e9, (chip.fp16_tflops or 0) * 1e12
        times.append(
            sum(max((w.read + w.written + w.copied) / bandwidth, w.flops / flops) for w in work)
        )
    return Census(
        sum(len(w.kernels) for w in work),
        sum(w.read for w in work),
        sum(w.written for w in work),
        sum(w.copied for w in work),
        sum(w.flops for w in work),
        Counter(kernel for w in work for kernel in w.kernels),
        tuple(times),
    )


def ideal_bytes(cache: str, context: int) -> int:
    """Weights but for the embedding table, and the cache, read once."""
    weights = quantized_weights(MAGISTRAL_SMALL, Quantization(), DTYPE.size)
    scheme, text = KVScheme.parse(cache), MAGISTRAL_SMALL.text
    return bytes_per_token(weights, text, context, scheme, DTYPE.size)


# The tables


def decode_rows() -> Iterator[list[str]]:
    """A row for each cache, context and number of rows: ours, mlx-lm's."""
    for cache in CACHES:
        for context in CONTEXTS:
            for rows in ROWS:
                ours, theirs = (census(who, cache, context, rows) for who in ("ours", "mlx-lm"))
                ideal = ideal_bytes(cache, context)
                yield [
                    cache,
                    f"{context:,}",
                    str(rows),
                    _pair(ours.dispatches, theirs.dispatches),
                    _pair(ours.moved / 1e9, theirs.moved / 1e9, ".2f"),
                    f"{ours.moved / ideal - 1:.1%}",
                    _pair(ours.copied / 1e6, theirs.copied / 1e6, ".0f"),
                    *(
                        _pair(a * 1e3, b * 1e3, ".0f")
                        for a, b in zip(ours.times, theirs.times, strict=True)
                    ),
                ]


def chunk_rows() -> Iterator[list[str]]:
    """A row for each cache and context: a chunk of the prompt that ends there."""
    for cache in CACHES:
        for context in CONTEXTS:
            rows = min(CHUNK, context)
            ours, theirs = (
                census(who, cache, context, rows, chunk=True) for who in ("ours", "mlx-lm")
            )
            yield [
                cache,
                f"{context:,}",
                str(rows),
                _pair(ours.dispatches, theirs.dispatches),
                _pair(ours.moved / 1e9, theirs.moved / 1e9, ".0f"),
                _pair(ours.copied / 1e9, theirs.copied / 1e9, ".1f"),
                _pair(ours.flops / 1e12, theirs.flops / 1e12, ".0f"),
                *(_pair(a, b, ".1f") for a, b in zip(ours.times, theirs.times, strict=True)),
            ]


def kernel_rows(cache: str, context: int, rows: int) -> Iterator[list[str]]:
    """A row for each kernel of a pass: its number, ours and mlx-lm's."""
    ours, theirs = (census(who, cache, context, rows).kernels for who in ("ours", "mlx-lm"))
    for name in sorted(ours | theirs, key=lambda name: -ours[name]):
        yield [name, str(ours[name]), str(theirs[name])]


def _pair(ours: float, theirs: float, form: str = ",d") -> str:
    return f"{ours:{form}} / {theirs:{form}}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    names = [f"{chip.name.removeprefix('Apple ')}" for chip in chips()]
    shared = ["cache", "context", "rows", "dispatches"]
    print("Ours / mlx-lm's, computed.\n\nA decoded token:\n")
    decoded = [*shared, "GB moved", "over ideal", "MB copied", *(f"{n}, ms" for n in names)]
    print(_table(decoded, decode_rows()))
    print("\nA chunk of the prompt:\n")
    chunked = [*shared, "GB moved", "GB copied", "TFLOP", *(f"{n}, s" for n in names)]
    print(_table(chunked, chunk_rows()))
    for cache in CACHES[:2]:
        print(f"\nKernels of a decoded token, cache {cache}, 8,192 tokens:\n")
        print(_table(["kernel", "ours", "mlx-lm"], kernel_rows(cache, 8192, 1)))


# The runtimes


def _text(layers: int) -> ModelConfig:
    text = replace(MAGISTRAL_SMALL.text, num_hidden_layers=layers)
    return replace(MAGISTRAL_SMALL, text=text, vision=None)


def _ours(cache: str, held: int, rows: int, layers: int, chunk: bool) -> list[Work]:
    config, scheme = _text(layers), KVScheme.parse(cache)
    with Ours.as_on_metal():
        model = MagistralModel(config, DTYPE)
        schemes = {
            name: Quantization()
            for name, shape in expected_tensors(config).items()
            if name.startswith(LANGUAGE) and len(shape) == 2
        }
        quantize_modules(model, schemes)
        weights = [
            # The head computes in float32 (`computes_in_float32` in checkpoint/load.py).
            (name, x.astype(mx.float32) if "lm_head" in name and x.dtype == DTYPE else x)
            for name, x in _weights(model)
        ]
        caches = model.make_caches(scheme)
        text = config.text
        for layer in caches:
            layer.reserve(held + rows + 256, held + rows + 256)
            if held:
                shape = (1, text.num_key_value_heads, held, text.head_dim)
                _fill(layer, scheme, shape)
        buffers = [buffer for layer in caches for buffer in _buffers(layer) if buffer.state]
        token = mx.zeros((1, rows), mx.int32)

        def build(tokens: mx.array, *given: mx.array) -> list[mx.array]:
            model.update(tree_unflatten(_named(weights, given)))
            for buffer, array in zip(buffers, given[len(weights) :], strict=True):
                buffer._array = array
            h = model.embed(tokens)
            if chunk:
                model.prefill(h, caches)
                return [array for layer in caches for array in layer.state]
            logits = model.logits(model(h, caches))[0]
            return [mx.argmax(logits, axis=-1), *(a for layer in caches for a in layer.state)]

        arrays = [token, *(x for _, x in weights), *(b.state[0] for b in buffers)]
        return work_of_graph(build, arrays)


def _fill(layer: Any, scheme: KVScheme, shape: tuple[int, ...]) -> None:
    """Let a cache hold tokens, none of which is computed."""

    def plain(tokens: int) -> mx.array:
        dtype = mx.float16 if scheme.quantized else DTYPE
        return mx.zeros((*shape[:2], tokens, shape[3]), dtype)

    held = shape[2]
    if not scheme.quantized:
        layer.restore({"keys": plain(held), "values": plain(held)}, held)
        return
    saved, packed = {}, scheme.packed(held)
    if packed and scheme.center:
        saved["center"] = plain(1)
    for kind, bits in (("keys", scheme.key_bits), ("values", scheme.value_bits)):
        saved[f"first_{kind}"] = plain(min(held, scheme.first))
        if packed:
            parts = mx.quantize(plain(packed), group_size=scheme.group_size, bits=bits)
            names = ("weight", "scales", "biases")
            saved |= {f"packed_{kind}_{n}": x for n, x in zip(names, parts, strict=True)}
        # As after decoding: the window keeps some tokens more than it needs.
        needed = held - scheme.first - packed
        saved[f"window_{kind}"] = plain(min(held - scheme.first, needed + scheme.slack))
    layer.restore(saved, held)
    # What a cache computes once, and not a token: constants of the graph.
    mx.eval([x for x in vars(layer).values() if isinstance(x, mx.array)])


def _buffers(layer: Any) -> Iterator[Buffer]:
    """The buffers of a cache, in the order of its attributes."""
    for value in vars(layer).values():
        parts = value if isinstance(value, tuple | list) else [value]
        for part in parts:
            if isinstance(part, Buffer):
                yield part
            elif hasattr(part, "_parts"):
                yield from part._parts


def _mlx_lm(cache: str, held: int, rows: int, layers: int, chunk: bool) -> list[Work]:
    import mlx.nn as nn  # noqa: TID251
    from mlx_lm.models.cache import KVCache, QuantizedKVCache
    from mlx_lm.models.llama import Model, ModelArgs

    text = MAGISTRAL_SMALL.text
    model = Model(
        ModelArgs(
            model_type="mistral",
            hidden_size=text.hidden_size,
            num_hidden_layers=layers,
            intermediate_size=text.intermediate_size,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            vocab_size=text.vocab_size,
            rope_theta=text.rope_theta,
            tie_word_embeddings=False,
        )
    )
    model.set_dtype(DTYPE)
    nn.quantize(model, 64, 4)
    weights = _weights(model)
    bits = None if cache == "full" else int(cache[0])
    caches = [KVCache() if bits is None else QuantizedKVCache(64, bits) for _ in range(layers)]
    capacity = -(-(held + rows) // 256) * 256
    kv: list[mx.array] = []
    for one in caches:
        one.offset = held
        for _ in range(2):
            plain = mx.zeros((1, text.num_key_value_heads, capacity, text.head_dim), DTYPE)
            kv += [plain] if bits is None else mx.quantize(plain, group_size=64, bits=bits)
    token = mx.zeros((1, rows), mx.int32)
    each = 1 if bits is None else 3

    def build(tokens: mx.array, *given: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(_named(weights, given)))
        parts = list(given[len(weights) :])
        for one in caches:
            keys, values = parts[:each], parts[each : 2 * each]
            del parts[: 2 * each]
            one.keys, one.values = (keys[0], values[0]) if bits is None else (keys, values)
        logits = model(tokens, cache=caches)
        state = [x for one in caches for part in (one.keys, one.values) for x in _leaves(part)]
        if chunk:
            return state
        logits = logits[0]
        return [mx.argmax(logits - mx.logsumexp(logits, axis=-1, keepdims=True), axis=-1), *state]

    return work_of_graph(build, [token, *(x for _, x in weights), *kv])


def _weights(model: Any) -> Arrays:
    """Parameters with floats in the compute dtype, none of them computed."""
    return [
        (name, mx.zeros(x.shape, DTYPE if mx.issubdtype(x.dtype, mx.floating) else x.dtype))
        for name, x in tree_flatten(model.parameters())
    ]


def _named(weights: Arrays, given: Sequence[mx.array]) -> list[tuple[str, mx.array]]:
    return [(name, x) for (name, _), x in zip(weights, given, strict=False)]


def _leaves(part: Any) -> list[mx.array]:
    return list(part) if isinstance(part, list | tuple) else [part]


if __name__ == "__main__":
    main()
