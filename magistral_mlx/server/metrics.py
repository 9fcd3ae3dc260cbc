"""Metrics of the server: counters, histograms, and gauges of its present state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from magistral_mlx.events import Finished
from magistral_mlx.runtime.activity import MemoryUse
from magistral_mlx.server.model_info import ModelInfo

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SPEEDS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000)
# Kinds of tokens, and the fields of `Stats` that count them.
_TOKENS = {
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "thinking": "thinking_tokens",
    "answer": "answer_tokens",
    "drafted": "drafted",
    "accepted": "accepted",
}


@dataclass(frozen=True)
class ServerState:
    """State of a server that its gauges report."""

    running: int
    waiting: int
    models: Sequence[ModelInfo]
    memory: MemoryUse


class Metrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self, state: Callable[[], ServerState]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "magistral_requests", "Requests", ["endpoint", "status"], registry=registry
        )
        self._answers = Counter(
            "magistral_answers", "Answers by how they ended", ["reason"], registry=registry
        )
        self._loops = Counter(
            "magistral_loops", "Thinking traces that were closed as loops", registry=registry
        )
        self._tokens = Counter("magistral_tokens", "Tokens by kind", ["kind"], registry=registry)
        for kind in _TOKENS:
            self._tokens.labels(kind)  # present from the start, as zeros
        self._hits = Counter(
            "magistral_cache_hits", "Prompts that began like an earlier one", registry=registry
        )
        self._first_token = Histogram(
            "magistral_time_to_first_token_seconds",
            "From a request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self._prefill = Histogram(
            "magistral_prefill_tokens_per_second",
            "Speed of reading a prompt",
            buckets=_SPEEDS,
            registry=registry,
        )
        self._decode = Histogram(
            "magistral_decode_tokens_per_second",
            "Speed of writing an answer",
            buckets=_SPEEDS,
            registry=registry,
        )
        registry.register(_Gauges(state, self))
        self.peak_memory = 0

    def first_token(self, seconds: float) -> None:
        """Observe a request's time to its first token."""
        self._first_token.observe(seconds)

    def finished(self, event: Finished) -> None:
        """Count an answer that has ended."""
        stats = event.stats
        self._answers.labels(event.reason).inc()
        if stats.thinking_end == "loop":
            self._loops.inc()
        for kind, field in _TOKENS.items():
            self._tokens.labels(kind).inc(getattr(stats, field))
        if stats.cached_tokens:
            self._hits.inc()
        if stats.prefill_tokens_per_second:
            self._prefill.observe(stats.prefill_tokens_per_second)
        if stats.decode_tokens_per_second:
            self._decode.observe(stats.decode_tokens_per_second)
        self.peak_memory = max(self.peak_memory, stats.peak_memory)

    def failed(self) -> None:
        """Count an answer that failed."""
        self._answers.labels("error").inc()


class _Gauges(Collector):
    """Gauges, read when the metrics are scraped."""

    def __init__(self, state: Callable[[], ServerState], metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield GaugeMetricFamily(
            "magistral_running", "Answers that are being generated", state.running
        )
        yield GaugeMetricFamily(
            "magistral_queue_length", "Requests that wait for their turn", state.waiting
        )
        loaded = GaugeMetricFamily("magistral_model_loaded", "1 if in memory", labels=["model"])
        context = GaugeMetricFamily(
            "magistral_context_tokens", "Of prompt and answer together", labels=["model"]
        )
        for model in state.models:
            loaded.add_metric([model.id], int(model.loaded))
            context.add_metric([model.id], model.context)
        yield loaded
        yield context
        memory = GaugeMetricFamily("magistral_memory_bytes", "Memory by kind", labels=["kind"])
        for kind, size in self._memory(state.memory).items():
            memory.add_metric([kind], size)
        yield memory

    def _memory(self, use: MemoryUse) -> dict[str, int]:
        """Bytes by kind; all but the peak are 0 while no model is loaded."""
        return {
            "weights": use.weights,
            "kv_cache": use.caches,
            "kept_cache": use.kept,
            "buffers": use.buffers,
            "peak": self._metrics.peak_memory,
            "limit": use.limit,
        }
