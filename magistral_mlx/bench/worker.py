"""The process of a benchmarked runtime: executes tasks, one JSON object per line.

    python -P worker.py mlx-lm|mlx-vlm

All runtimes implement the same protocol and are timed by the same code. The file is longer than
others because it must stand alone: it also runs in environments with a peer but without this
package, so it can import none of its modules.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

Task = dict[str, Any]

# Primitives that launch no kernel on Metal.
VIEWS = {"AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze",
         "Transpose"}  # fmt: skip


class BenchmarkRuntime(Protocol):
    """A runtime that generates greedily."""

    def load(self, folder: Path, dtype: str | None) -> None:
        """Load the checkpoint, with its floats converted to `dtype` unless it is None."""

    def start(self, tokens: list[int], filled: int) -> Iterator[int]:
        """Prefill `tokens` on the first `next`, and yield the ids that follow without end.

        The caches begin with `filled` tokens of random keys and values.
        """

    def see(self, count: int, side: int) -> Any:
        """Encode `count` images of side x side pixels; return features, (tokens, D), evaluated."""

    def graph(self, filled: int) -> Callable[[], list[Any]]:
        """Return a function that builds the graph of one decoding step, including the token id.

        Callers evaluate each graph before they build the next.
        """


# Serving


def serve(runtime: Any, handlers: dict[str, Callable[..., Task]] | None = None) -> None:
    """Execute tasks from stdin and answer on stdout until stdin ends; print goes to stderr.

    `runtime` is a BenchmarkRuntime, or whatever the `handlers` of tasks take.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    handlers = handlers or {
        "load": load,
        "generate": generate,
        "images": images,
        "graph": graph,
        "passes": passes,
    }
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = handlers[task.pop("task")](runtime, **task)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if hasattr(runtime, "close"):
        runtime.close()
    # A peer may have a step in flight; a normal exit while it multiplies can hang in OpenBLAS,
    # which joins its threads.
    os._exit(0)


def load(runtime: BenchmarkRuntime, folder: str, dtype: str | None = None) -> Task:
    """Load a checkpoint; return seconds, MLX's active bytes and version."""
    mx = _mlx()
    begin = time.perf_counter()
    runtime.load(Path(folder), dtype)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "held": mx.get_active_memory(), "mlx": mx.__version__}


def generate(
    runtime: BenchmarkRuntime,
    prompt: int,
    count: int,
    vocabulary: int,
    filled: int = 0,
    seed: int = 0,
    tokens: list[int] | None = None,
) -> Task:
    """Prefill and generate; return ids, seconds to the first and per later token.

    The prompt is `tokens`, or as many random ones as `prompt` says.
    """
    mx = _mlx()
    tokens = tokens or random_tokens(prompt, vocabulary, seed)
    steps = runtime.start(tokens, filled)
    mx.clear_cache()
    mx.reset_peak_memory()
    begin = time.perf_counter()
    ids = [next(steps)]
    seconds = [time.perf_counter() - begin]
    for _ in range(count - 1):
        begin = time.perf_counter()
        ids.append(next(steps))
        seconds.append(time.perf_counter() - begin)
    if hasattr(steps, "close"):
        steps.close()
    mx.synchronize()
    return {
        "ids": ids,
        "prompt": len(tokens),
        "first": seconds[0],
        "steps": seconds[1:],
        **memory(mx),
    }


def images(runtime: BenchmarkRuntime, count: int, side: int) -> Task:
    """Encode random images; return seconds and the peak of memory above the previous use.

    features: some values of the first and the last image, to compare runtimes.
    """
    mx = _mlx()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    begin = time.perf_counter()
    features = runtime.see(count, side)
    seconds = time.perf_counter() - begin
    above = mx.get_peak_memory() - held
    some = [*features[0, :8].tolist(), *features[-1, :8].tolist()]
    return {"seconds": seconds, "above": above, "features": some, **memory(mx)}


def passes(runtime: Any, filled: int, rows: list[int]) -> Task:
    """Run one pass, with sampling, for each number of rows; return the seconds. Ours only."""
    run = runtime.passes(filled)
    seconds = []
    for count in rows:
        begin = time.perf_counter()
        run(count)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds}


def graph(runtime: BenchmarkRuntime, filled: int, rounds: int = 20) -> Task:
    """Measure the host's cost of one step: seconds to build its graph, and its operations.

    On the CPU `mx.fast` functions are built of plain operations; here each counts as the single
    kernel that it is on Metal. `build_here` includes what a runtime does for this backend only.
    """
    mx = _mlx()
    as_on_metal = getattr(runtime, "as_on_metal", contextlib.nullcontext)
    build = runtime.graph(filled)
    mx.eval(build())
    here = _build_seconds(build, rounds)
    with as_on_metal():
        metal = _build_seconds(build, rounds)
        with fast_as_one(mx):
            outputs = build()
            counts = operations(mx, outputs)
    mx.eval(build())
    return {"build": metal, "build_here": here, "operations": counts}


def _build_seconds(build: Callable[[], list[Any]], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        outputs = build()
        seconds.append(time.perf_counter() - begin)
        _mlx().eval(outputs)
    return seconds


def memory(mx: Any) -> Task:
    """Peak bytes of MLX and largest resident bytes of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak": mx.get_peak_memory(), "resident": resident}


# Inputs of all runtimes


def random_tokens(count: int, vocabulary: int, seed: int) -> list[int]:
    """Random token ids by seed, without control tokens."""
    import numpy as np

    return np.random.default_rng(seed).integers(1000, vocabulary, count).tolist()


def random_layer(shape: tuple[int, int, int, int], layer: int) -> tuple[Any, Any]:
    """Keys and values of a layer as float32, (B, H, L, D), the same in every runtime.

    They repeat 512 random tokens, since drawing all of 16,000 takes longer than decoding.
    """
    import numpy as np

    rng = np.random.default_rng(layer)
    batch, heads, length, width = shape
    block = (batch, heads, min(length, 512), width)
    keys, values = (
        np.tile(rng.standard_normal(block, dtype=np.float32), (1, 1, -(-length // 512), 1))
        for _ in range(2)
    )
    return keys[:, :, :length], values[:, :, :length]


def random_pixels(count: int, side: int) -> list[Any]:
    """Random images, (3, side, side) each."""
    import numpy as np

    rng = np.random.default_rng(count)
    return [rng.standard_normal((3, side, side), dtype=np.float32) for _ in range(count)]


# Counting


@contextlib.contextmanager
def fast_as_one(mx: Any) -> Iterator[None]:
    """Replace every function that is one kernel on Metal by one node of the graph and views."""

    def dequantize(weight: Any, scales: Any, biases: Any = None, **scheme: Any) -> Any:
        shape = (*weight.shape[:-1], weight.shape[-1] * 32 // scheme["bits"])
        plain = mx.broadcast_to(scales[..., :1], shape)
        return mx.depends(plain, [weight] if biases is None else [weight, biases])

    fakes = [
        (mx.fast, "rms_norm", lambda x, weight, eps: mx.depends(x, [weight])),
        (mx.fast, "rope", lambda x, dims, **_: mx.negative(x)),
        (mx.fast, "scaled_dot_product_attention", lambda q, k, v, **_: mx.depends(q, [k, v])),
        (mx, "dequantize", dequantize),
    ]
    kept = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    try:
        for module, name, fake in fakes:
            setattr(module, name, fake)
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def operations(mx: Any, outputs: list[Any]) -> dict[str, int]:
    """Count the primitives in the graph of `outputs` by name; see `launches`."""
    import io
    import re

    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    counts: dict[str, int] = {}
    for name in re.findall(r'\[label ="([^"]+)", shape=rectangle\]', text.getvalue()):
        counts[name] = counts.get(name, 0) + 1
    return counts


def launches(counts: dict[str, int]) -> int:
    """Number of operations that launch a kernel, rather than create a view."""
    return sum(count for name, count in counts.items() if name not in VIEWS)


# The peers


class _Peer:
    """Common parts of mlx-lm and mlx-vlm."""

    model: Any

    def _widen(self, dtype: str | None) -> None:
        if dtype is None:
            return
        mx = _mlx()
        wanted = getattr(mx, dtype)
        from mlx.utils import tree_map

        def widen(array: Any) -> Any:
            return array.astype(wanted) if mx.issubdtype(array.dtype, mx.floating) else array

        self.model.update(tree_map(widen, self.model.parameters()))
        mx.eval(self.model.parameters())

    def _fill(self, caches: list[Any], filled: int, dtype: Any) -> list[Any]:
        mx = _mlx()
        if not filled:
            return caches
        heads, width = self._key_shape()
        for layer, cache in enumerate(caches):
            keys, values = random_layer((1, heads, filled, width), layer)
            cache.keys, cache.values = mx.array(keys).astype(dtype), mx.array(values).astype(dtype)
            cache.offset = filled
            mx.eval(cache.keys, cache.values)
        return caches

    def _key_shape(self) -> tuple[int, int]:
        attention = self._layers()[0].self_attn
        return attention.n_kv_heads, attention.k_proj.weight.shape[0] // attention.n_kv_heads

    def _layers(self) -> Any:
        return self.model.language_model.model.layers

    def _dtype(self) -> Any:
        matrix = self._layers()[0].self_attn.q_proj
        return matrix.get("scales", matrix.weight).dtype

    def see(self, count: int, side: int) -> Any:
        raise NotImplementedError("this runtime does not support images")


class MlxLm(_Peer):
    """mlx-lm, as its `generate` command runs it."""

    def load(self, folder: Path, dtype: str | None) -> None:
        load_model = importlib.import_module("mlx_lm.utils").load_model

        self.model, _ = load_model(folder)
        self._widen(dtype)

    def start(self, tokens: list[int], filled: int) -> Iterator[int]:
        generate_step = importlib.import_module("mlx_lm.generate").generate_step

        caches = self._caches(filled)
        prompt = _mlx().array(tokens)
        steps = generate_step(prompt, self.model, max_tokens=-1, prompt_cache=caches)
        return (int(token) for token, _ in steps)

    def graph(self, filled: int) -> Callable[[], list[Any]]:
        caches, mx = self._caches(filled), _mlx()
        token = mx.array([1000])

        def build() -> list[Any]:
            logits = self.model(token[None], cache=caches)[:, -1]
            logprobs = logits - mx.logsumexp(logits, keepdims=True)
            return [mx.argmax(logprobs, axis=-1), *(a for c in caches for a in (c.keys, c.values))]

        return build

    def _caches(self, filled: int) -> list[Any]:
        make_prompt_cache = importlib.import_module("mlx_lm.models.cache").make_prompt_cache

        return self._fill(make_prompt_cache(self.model), filled, self._dtype())


class MlxVlm(_Peer):
    """mlx-vlm through its model classes, since its command needs a tokenizer.json."""

    def load(self, folder: Path, dtype: str | None) -> None:
        load_model = importlib.import_module("mlx_vlm.utils").load_model

        self.model = load_model(folder)
        self._widen(dtype)

    def start(self, tokens: list[int], filled: int) -> Iterator[int]:
        generate_step = importlib.import_module("mlx_vlm.generate").generate_step

        caches = self._caches(filled)
        prompt = _mlx().array([tokens])
        steps = generate_step(
            prompt, self.model, None, None, max_tokens=1 << 30, temperature=0, prompt_cache=caches
        )
        return (int(token) for token, _ in steps)

    def see(self, count: int, side: int) -> Any:
        import numpy as np

        mx = _mlx()
        pixels = mx.array(np.stack(random_pixels(count, side)))
        tokens = (side // 28) ** 2 * count
        ids = mx.full((1, tokens), self.model.config.image_token_index)
        sizes = [(side, side)] * count
        features = self.model.get_input_embeddings(ids, pixels, image_sizes=sizes).inputs_embeds[0]
        mx.eval(features)
        return features

    def graph(self, filled: int) -> Callable[[], list[Any]]:
        caches, mx = self._caches(filled), _mlx()
        token = mx.array([[1000]])

        def build() -> list[Any]:
            logits = self.model.language_model(token, cache=caches).logits[:, -1]
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            return [mx.argmax(logprobs, axis=-1), *(a for c in caches for a in (c.keys, c.values))]

        return build

    def _caches(self, filled: int) -> list[Any]:
        make_prompt_cache = importlib.import_module("mlx_vlm.models.cache").make_prompt_cache

        return self._fill(make_prompt_cache(self.model.language_model), filled, self._dtype())


def _mlx() -> Any:
    """Import `mlx.core` of this process's environment."""
    return importlib.import_module("mlx.core")


PEERS: dict[str, Callable[[], BenchmarkRuntime]] = {"mlx-lm": MlxLm, "mlx-vlm": MlxVlm}

if __name__ == "__main__":
    serve(PEERS[sys.argv[1]]())
