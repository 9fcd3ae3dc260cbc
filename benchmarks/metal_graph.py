"""The graph that MLX builds for a function, as Metal would run it: the work of its operations.

`mx.export_function` hands out each primitive with shapes, dtypes and arguments. On the CPU the
functions of `mx.fast` are built of several primitives; here each is one node, as it is on Metal.
Nothing is computed, so weights and caches of any size take no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.metal_rules import VIEWS, Array, Work, view, work_of
from magistral_mlx.backend import mx

_MARK = 7_700_000  # + number of the call: a constant that tells a call of `mx.fast` in the graph


def work_of_graph(
    build: Callable[..., Sequence[mx.array]], arrays: Sequence[mx.array]
) -> list[Work]:
    """The work of each operation, but for views, of the graph that `build` makes of `arrays`, which
    need not be evaluated."""
    nodes: list[dict[str, Any]] = []
    with _fast_as_one() as calls:
        mx.export_function(nodes.append, lambda *given: list(build(*given)), *arrays)
    return list(_works(nodes, calls))


@contextmanager
def _fast_as_one() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Let each function of `mx.fast` and other single kernels be one marked node."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def marked(like: mx.array, name: str, inputs: Sequence[mx.array], *arguments: Any) -> mx.array:
        mark = mx.array(_MARK + len(calls))
        calls.append((name, arguments))
        return mx.depends([like], [*inputs, mark])[0]

    def dequantize(
        weight: mx.array, scales: mx.array, biases: mx.array | None = None, **scheme: Any
    ) -> mx.array:
        shape = (*weight.shape[:-1], weight.shape[-1] * 32 // scheme["bits"])
        like = mx.broadcast_to(scales[..., :1], shape)
        parts = [weight, scales] if biases is None else [weight, scales, biases]
        return marked(like, "dequantize", parts)

    def attention(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **_: Any) -> mx.array:
        extra = [mask] if isinstance(mask, mx.array) else []
        return marked(q, "attention", [q, k, v, *extra], mask == "causal" if not extra else False)

    def swiglu(gate: mx.array, up: mx.array) -> mx.array:
        return marked(gate, "swiglu", [gate, up])

    def visible(column: mx.array, *sight: mx.array) -> mx.array:
        like = mx.broadcast_to(mx.array(False), (sight[0].shape[0], column.shape[0]))
        return marked(like, "mask", [column, *sight])

    def as_float16(x: mx.array) -> mx.array:
        return marked(mx.broadcast_to(mx.array(0, mx.float16), x.shape), "as_float16", [x])

    def seen(scores: mx.array, center: mx.array, visible: mx.array) -> mx.array:
        return marked(scores, "seen", [scores, center, visible])

    def added(*parts: mx.array) -> mx.array:
        return marked(mx.broadcast_to(parts[0][..., :1], parts[0].shape), "sum", parts)

    import mlx_lm.models.llama

    import magistral_mlx.cache.chunk
    import magistral_mlx.cache.packed
    import magistral_mlx.cache.quantized
    import magistral_mlx.model.text

    fakes: list[tuple[Any, str, Any]] = [
        (mx.fast, "rms_norm", lambda x, weight, eps: marked(x, "rms_norm", [x, weight])),
        (mx.fast, "rope", lambda x, dims, **_: marked(x, "rope", [x])),
        (mx.fast, "scaled_dot_product_attention", attention),
        (mx, "dequantize", dequantize),
        (mx, "contiguous", lambda x, **_: marked(x, "Contiguous", [x])),
        (mx, "eval", lambda *_: None),
        (mx, "clear_cache", lambda: None),
        (magistral_mlx.model.text, "swiglu", swiglu),
        (magistral_mlx.cache.chunk, "_visible", visible),
        (magistral_mlx.cache.packed, "_seen", seen),
        (magistral_mlx.cache.packed, "_sum", added),
        (magistral_mlx.cache.quantized, "as_float16", as_float16),
        (magistral_mlx.model.text, "as_float16", as_float16),
        (mlx_lm.models.llama, "swiglu", swiglu),
    ]
    with ExitStack() as stack:
        for module, name, fake in fakes:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, fake)
        yield calls


def _works(
    nodes: Sequence[dict[str, Any]], calls: Sequence[tuple[str, tuple[Any, ...]]]
) -> Iterator[Work]:
    arrays: dict[str, Array] = {}
    constants: dict[str, int] = {}
    outputs: list[str] = []
    primitives = []
    for node in nodes:
        if node["type"] == "inputs":
            arrays |= {
                name: Array.fresh(shape, dtype.size) for name, shape, dtype in node["inputs"]
            }
        elif node["type"] == "constants":
            for name, array in node["constants"]:
                arrays[name] = Array.fresh(array.shape, array.dtype.size)
                if array.size == 1 and array.dtype == mx.int32:
                    constants[name] = int(array.item())
        elif node["type"] == "outputs":
            outputs = [name for name, *_ in node["outputs"]]
        elif node["type"] == "primitive":
            primitives.append(_Primitive.of(node, constants, calls))
    live = _live(primitives, outputs)
    uses = Counter(name for one in live for name in set(one.inputs))
    for one in live:
        given = [arrays[name] for name in one.inputs]
        if one.name == "Depends":
            arrays |= {name: x for (name, *_), x in zip(one.outputs, given, strict=False)}
            continue
        shapes = [shape for _, shape, _ in one.outputs]
        made = [Array.fresh(shape, dtype.size) for _, shape, dtype in one.outputs]
        arguments = one.arguments
        if one.name in VIEWS or (
            one.name == "AsType" and given[0].itemsize == made[0].itemsize and one.same
        ):
            views = view(one.name, arguments, given[0], shapes) if one.name in VIEWS else [given[0]]
            if None not in views:
                arrays |= {name: x for (name, *_), x in zip(one.outputs, views, strict=True)}
                continue
        if one.name == "SliceUpdate":
            arguments = (uses[one.inputs[0]] == 1,)
        if one.name == "attention" and given[0].shape[2] > 8:
            made = [_by_token(made[0])]
        arrays |= {name: x for (name, *_), x in zip(one.outputs, made, strict=True)}
        yield work_of(one.name, arguments, given, made)


def _by_token(y: Array) -> Array:
    """(B, H, L, D) as the full attention kernel lays it out, with the heads of a token side by side
    (scaled_dot_product_attention.cpp, line 889)."""
    _, heads, length, width = y.shape
    return Array(y.shape, (length * heads * width, width, heads * width, 1), y.itemsize)


@dataclass(frozen=True)
class _Primitive:
    name: str
    arguments: Sequence[Any]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, tuple[int, ...], Any], ...]
    same: bool  # an AsType to the same dtype

    @classmethod
    def of(
        cls,
        node: dict[str, Any],
        constants: dict[str, int],
        calls: Sequence[tuple[str, tuple[Any, ...]]],
    ) -> _Primitive:
        name, arguments = node["name"], node["arguments"]
        inputs = [given[0] for given in node["inputs"]]
        if name == "Depends" and (mark := constants.get(inputs[-1], 0) - _MARK) >= 0:
            name, arguments = calls[mark]
            inputs = inputs[1:-1]
        same = name == "AsType" and node["inputs"][0][2] == node["outputs"][0][2]
        return cls(name, arguments, tuple(inputs), tuple(node["outputs"]), same)


def _live(primitives: Sequence[_Primitive], outputs: Sequence[str]) -> list[_Primitive]:
    """Those that the outputs need, in the order of the graph."""
    needed, live = set(outputs), []
    for one in reversed(primitives):
        if any(name in needed for name, *_ in one.outputs):
            live.append(one)
            needed.update(one.inputs)
    return live[::-1]
