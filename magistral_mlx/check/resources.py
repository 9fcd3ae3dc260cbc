"""Memory and speed of this machine: planned and measured peaks, bandwidth, longest dispatch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from magistral_mlx.backend import (
    DISPATCH_SECONDS,
    backend,
    dispatch_limit,
    free_memory,
    keep_dispatches_short,
    mx,
)
from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.cache.scheme import SCHEMES, KVScheme
from magistral_mlx.check.finding import Finding, Verdict
from magistral_mlx.check.subject import matrices, slice_weights
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.measurements import Measurements
from magistral_mlx.memory.here import profile
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.peak import Peak, Shape, predict
from magistral_mlx.memory.plan import gib
from magistral_mlx.model.linear import Linear, matmul
from magistral_mlx.model.magistral import MagistralModel

_CONTEXTS = (40_960, 8192, 2048, 512)
_ANSWER = 3  # decoded tokens
_ROUNDS = 5
_LARGE = 10**6  # words of a matrix
_SHARE = 0.6  # of a bandwidth, below which something is wrong
_KILLED = 2 * DISPATCH_SECONDS
_REPORT = "report this with `magistral-mlx doctor --check --json`"


# Memory


def check_peaks(model: MagistralModel, machine: Machine) -> tuple[list[Finding], int]:
    """Compare predicted with measured peaks for each cache scheme of a slice.

    Returns:
        The findings, and the bytes by which the lowest prediction was exceeded.
    """
    findings, excess = [], 0
    weights = slice_weights(model)
    gc.collect()
    others = mx.get_active_memory() - weights.decoder
    here = replace(profile(), float_bytes=model.dtype.size, excess=0)
    for name in SCHEMES:
        scheme = KVScheme.parse(name)

        def peak(context: int, scheme: KVScheme = scheme) -> tuple[Shape, Peak]:
            chunk = 16 if backend().name == "cpu" else here.chunk
            shape = Shape(context - _ANSWER, _ANSWER, min(chunk, context - _ANSWER))
            return shape, predict(model.config, weights, scheme, shape, here)

        longest = model.config.text.max_position_embeddings
        contexts = [n for n in _CONTEXTS if n <= longest and (n <= 2048 or here.fused_attention)]
        fitting = [n for n in contexts if peak(n)[1].total + others < 0.8 * machine.limit]
        if not fitting:
            findings.append(_no_room(name, peak(contexts[-1])[1], machine))
            continue
        shape, predicted = peak(fitting[0])
        measured = _measured_peak(model, scheme, shape, predicted, others)
        excess = max(excess, measured - predicted.total)
        findings.append(_peak_finding(name, shape, predicted.total, measured))
    return findings, excess


def _measured_peak(
    model: MagistralModel, scheme: KVScheme, shape: Shape, predicted: Peak, others: int
) -> int:
    """Prefill a chunk after a filled cache, decode, and return the peak in bytes."""
    text, context = model.config.text, shape.context
    held = shape.prompt - shape.chunk
    caches = model.make_caches(scheme, profile().workspace)
    for cache in caches:
        cache.reserve(context, context)
        for start in range(0, held, 4096):
            size = (1, text.num_key_value_heads, min(4096, held - start), text.head_dim)
            cache.append(*(mx.random.normal(size).astype(model.dtype) for _ in range(2)))
            mx.eval(cache.state)
    inputs = SequenceInputs(
        np.full(shape.prompt, 100, np.int32),
        (),
        Sampling(temperature=0),
        shape.answer,
        scheme=scheme,
        chunk=shape.chunk,
        workspace=profile().workspace,
    )
    limits = (
        mx.set_memory_limit(predicted.total + others),
        mx.set_cache_limit(predicted.workspace),
    )
    try:
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        for _ in Generation(model, inputs, ComputedPrefix(caches, held)):
            pass
        return mx.get_peak_memory() - others
    finally:
        mx.set_memory_limit(limits[0])
        mx.set_cache_limit(limits[1])
        del caches
        free_memory()


def _peak_finding(name: str, shape: Shape, predicted: int, measured: int) -> Finding:
    figures = {"context": shape.context, "predicted": predicted, "measured": measured}
    words = f"{_mb(measured)} measured, {_mb(predicted)} planned, {shape.context:,} tokens"
    what = f"memory, KV cache {name}"
    if measured <= predicted:
        return Finding(what, "good", words, figures=figures)
    short = f"plans add {_mb(measured - predicted)} from now on; {_REPORT}"
    return Finding(what, "bad", words, short, figures)


def _no_room(name: str, peak: Peak, machine: Machine) -> Finding:
    words = f"not measured: {gib(peak.total)} are needed, and {gib(machine.limit)} are there"
    return Finding(f"memory, KV cache {name}", "warning", words, "close other programs")


# Speed


def check_speed(model: MagistralModel, machine: Machine) -> tuple[list[Finding], Measurements]:
    """Measure bandwidth, the share of it that a matrix-vector product reaches, and compute."""
    bandwidth = measure_bandwidth()
    name, matrix = max(_matrices(model), key=lambda found: _nbytes(found[1]))
    x = mx.ones((1, 1, _columns(matrix)), model.dtype)
    read = _nbytes(matrix) / _seconds(lambda: matmul(x, matrix), repeats=_repeats())
    rows = 16 if backend().name == "cpu" else backend().prefill_chunk
    wide = mx.ones((1, rows, _columns(matrix)), model.dtype)
    size = 2.0 * rows * _columns(matrix) * matrix.weight.shape[0]
    flops = size / _seconds(lambda: matmul(wide, matrix), repeats=1)
    findings = [_bandwidth_finding(bandwidth, machine), _vector_finding(name, read, bandwidth)]
    words = f"{flops / 1e12:.2f} TFLOP/s, {rows} rows of {name}"
    findings.append(Finding("matrix-matrix product", "good", words, figures={"flops": flops}))
    large = matrix.weight.size > _LARGE  # else the host's overhead was measured
    return findings, Measurements(bandwidth=bandwidth, flops=flops if large else None)


def _bandwidth_finding(bandwidth: float, machine: Machine) -> Finding:
    words, figures = f"{bandwidth / 1e9:.0f} GB/s", {"bandwidth": bandwidth}
    if machine.chip is None:
        return Finding("bandwidth", "good", words, figures=figures)
    share = bandwidth / (machine.chip.bandwidth * 1e9)
    words += f", {share:.0%} of the {machine.chip.bandwidth:.0f} GB/s published"
    return Finding("bandwidth", *_by_share(share, words), figures)


def _vector_finding(name: str, read: float, bandwidth: float) -> Finding:
    share = read / bandwidth
    words = f"{read / 1e9:.1f} GB/s, {share:.0%} of the bandwidth, {name}"
    verdict: tuple[Verdict, str, str] = ("good", words, "")
    if backend().name != "cpu":  # which is bound by arithmetic
        verdict = _by_share(share, words)
    return Finding("matrix-vector product", *verdict, {"bytes_per_second": read})


def _by_share(share: float, words: str) -> tuple[Verdict, str, str]:
    if share >= _SHARE:
        return "good", words, ""
    return "warning", words, "close other programs, leave the low power mode, and check again"


def check_dispatch(
    model: MagistralModel, context: int, kept: Measurements
) -> tuple[Finding, float | None]:
    """Time the longest single piece of GPU work, against what macOS kills.

    Returns:
        The finding, and the floating-point operations per second of attention where calls of it
        have a limit (`keep_dispatches_short`).
    """
    what = "longest dispatch"
    if backend().name != "metal":
        return Finding(what, "good", f"no watchdog with {backend().name}"), None
    keep_dispatches_short(kept.attention)
    text = model.config.text
    token = 4 * text.num_attention_heads * text.head_dim * context  # operations of a query
    queries = max(1, min(backend().prefill_chunk, (dispatch_limit() or 1 << 60) // token))
    attention = _attention_seconds(model, queries, context)
    taken = {f"attention of {queries} tokens to {context:,}": attention, **_products(model)}
    return _dispatch_finding(what, taken, attention), queries * token / attention


def _dispatch_finding(what: str, taken: dict[str, float], attention: float) -> Finding:
    name, seconds = max(taken.items(), key=lambda item: item[1])
    words = f"{seconds:.2f} s, {name}"
    if seconds < DISPATCH_SECONDS:
        return Finding(what, "good", words, figures=taken)
    verdict: Verdict = "warning" if seconds < _KILLED else "bad"
    if seconds == attention:
        advice = "attention is given fewer tokens at once from now on; check again"
    else:
        advice = "macOS may stop the GPU with long prompts: close other programs, and check again"
    return Finding(what, verdict, words, advice, taken)


def _attention_seconds(model: MagistralModel, queries: int, context: int) -> float:
    text = model.config.text
    q = mx.zeros((1, text.num_attention_heads, queries, text.head_dim), model.dtype)
    kv = mx.zeros((1, text.num_key_value_heads, context, text.head_dim), model.dtype)
    mx.eval(q, kv)

    def attend() -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, kv, kv, scale=1.0, mask="causal")

    return _seconds(attend, repeats=1)


def _products(model: MagistralModel) -> dict[str, float]:
    """Seconds of each of a chunk's matrix products."""
    chunk, taken = backend().prefill_chunk, {}
    for name, matrix in _matrices(model):
        if name.endswith("head"):
            continue  # of one token
        outputs = matrix.weight.shape[0] // (2 if name == "gate_up_proj" else 1)
        x = mx.zeros((1, chunk, _columns(matrix)), model.dtype)

        def multiply(matrix: Linear = matrix, x: mx.array = x, outputs: int = outputs) -> mx.array:
            return matrix.some(x, slice(0, outputs))

        taken[f"{name} of {chunk} tokens"] = _seconds(multiply, repeats=1)
    return taken


def _matrices(model: MagistralModel) -> list[tuple[str, Linear]]:
    return [(name, matrix) for name, matrix in matrices(model) if isinstance(matrix, Linear)]


def _columns(matrix: Linear) -> int:
    scheme = matrix._scheme
    columns: int = matrix.weight.shape[1]
    return columns if scheme is None else columns * 32 // scheme.bits


def _nbytes(matrix: Linear) -> int:
    return sum(value.nbytes for value in matrix.values() if isinstance(value, mx.array))


def _repeats() -> int:
    return 1 if backend().name == "cpu" else 8


def _seconds(compute: Callable[[], mx.array], *, repeats: int) -> float:
    """Best time of one computation; `repeats` are in flight at once."""
    best = float("inf")
    for _ in range(_ROUNDS if backend().name != "cpu" else 2):
        begin = time.perf_counter()
        mx.eval([compute() for _ in range(repeats)])
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
