"""/metrics: what the server has done and holds, for Prometheus and for the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magistral_mlx.events import Finished
from magistral_mlx.runtime.activity import MemoryUse
from magistral_mlx.server.failures import OPENAI_RESPONSES

if TYPE_CHECKING:
    from magistral_mlx.server.serving import Serving

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
_OTHER = "other"  # paths that there are not: a client must not fill the memory with names

router = APIRouter(tags=["operation"], responses=OPENAI_RESPONSES)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, tokens, speeds, queue and memory, in Prometheus' text format."""
    serving: Serving = request.app.state.serving
    text = generate_latest(serving.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, serving: Serving) -> None:
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
            self._tokens.labels(kind)  # there from the beginning, as zeros
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
        registry.register(_Present(serving, self))
        self.peak_memory = 0

    def first_token(self, seconds: float) -> None:
        """The first token of a request came, `seconds` after the request."""
        self._first_token.observe(seconds)

    def finished(self, event: Finished) -> None:
        """An answer ended."""
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
        """An answer broke off."""
        self._answers.labels("error").inc()


class _Present(Collector):
    """What is so now, asked for when somebody looks."""

    def __init__(self, serving: Serving, metrics: Metrics) -> None:
        self._serving = serving
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        serving = self._serving
        yield GaugeMetricFamily(
            "magistral_running", "Answers that are being generated", serving.running
        )
        yield GaugeMetricFamily(
            "magistral_queue_length", "Requests that wait for their turn", serving.waiting
        )
        loaded = GaugeMetricFamily("magistral_model_loaded", "1 if in memory", labels=["model"])
        context = GaugeMetricFamily(
            "magistral_context_tokens", "Of prompt and answer together", labels=["model"]
        )
        for model in serving.models():
            loaded.add_metric([model.id], int(model.loaded))
            context.add_metric([model.id], model.context)
        yield loaded
        yield context
        memory = GaugeMetricFamily("magistral_memory_bytes", "Memory by kind", labels=["kind"])
        for kind, size in self._memory().items():
            memory.add_metric([kind], size)
        yield memory

    def _memory(self) -> dict[str, int]:
        """Bytes by kind; all but the peak are 0 while no model is loaded."""
        resident = self._serving.shelf.resident
        use = MemoryUse() if resident is None else resident.activity.memory
        return {
            "weights": use.weights,
            "kv_cache": use.caches,
            "kept_cache": use.kept,
            "buffers": use.buffers,
            "peak": self._metrics.peak_memory,
            "limit": use.limit,
        }


class CountRequests:
    """Counts requests by endpoint and status, as they are answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._known: list[tuple[re.Pattern[str], str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(self._endpoint(scope), message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)

    def _endpoint(self, scope: Scope) -> str:
        """The path as it was declared, such as /v1/models/{id}."""
        if not self._known:
            paths = ["/", "/openapi.json", *scope["app"].openapi()["paths"]]
            # A parameter may hold slashes, as the names of models do.
            self._known = [(compile_path(path.replace("}", ":path}"))[0], path) for path in paths]
        for pattern, path in self._known:
            if pattern.match(scope["path"]):
                return path
        return "/static" if scope["path"].startswith("/static/") else _OTHER
