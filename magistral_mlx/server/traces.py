"""Statistics of a folder of traces, as `serve --traces` writes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magistral_mlx.errors import StorageError
from magistral_mlx.percentiles import known, percentiles

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Read(BaseModel):
    """Base of what is read of a file; its types must be those that were written."""

    model_config = ConfigDict(strict=True)


class _Stats(_Read):
    thinking_end: str | None
    prompt_tokens: _Count
    cached_tokens: _Count
    thinking_tokens: _Count
    answer_tokens: _Count
    prefill_tokens_per_second: _Figure
    decode_tokens_per_second: _Figure


class _Sample(_Read):
    finish_reason: str
    stats: _Stats


class _Failure(_Read):
    type: str


class _Seconds(_Read):
    waited: _Figure | None
    first_token: _Figure | None
    total: _Figure | None


class _Exchange(_Read):
    """The fields of a trace that statistics are made of; see `trace_recorder.ExchangeTrace`."""

    format: Literal["magistral-mlx exchange"]
    version: Literal[1]
    time: str
    endpoint: str
    model: str
    samples: list[_Sample]
    error: _Failure | None
    seconds: _Seconds


@dataclass(frozen=True)
class Trace:
    """One answer of a traced exchange. Times are in seconds, speeds in tokens per second.

    `waited`, `first_token` and `total` count from the request; None if it did not come so far, or
    for a further answer to the same request.
    """

    time: str
    endpoint: str
    model: str
    finish_reason: str
    thinking_end: str | None
    prompt_tokens: int
    cached_tokens: int
    thinking_tokens: int
    answer_tokens: int
    waited: float | None
    first_token: float | None
    total: float | None
    prefill_speed: float
    decode_speed: float


@dataclass(frozen=True)
class TraceFolder:
    """The traces of a folder: answers in order of time, and the rest.

    exchanges: files that were read. failed: those of them with an error in place of an answer, by
    its kind. damaged: files that are no exchanges.
    """

    exchanges: int
    traces: tuple[Trace, ...]
    failed: dict[str, int]
    damaged: tuple[str, ...]


def read_traces(folder: Path) -> TraceFolder:
    """Read the traces that `serve --traces` wrote.

    Raises:
        StorageError: the folder cannot be read, or holds no exchange.
    """
    traces: list[Trace] = []
    failed: Counter[str] = Counter()
    damaged: list[str] = []
    exchanges = 0
    for file in _files(folder):
        try:
            exchange = _Exchange.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            damaged.append(file.name)
            continue
        exchanges += 1
        traces += _traces(exchange)
        if exchange.error:
            failed[exchange.error.type] += 1
    if not exchanges:
        raise StorageError(
            f"{folder} holds no traces. `magistral-mlx serve --traces {folder}` writes them."
        )
    return TraceFolder(exchanges, tuple(traces), dict(failed), tuple(damaged))


def summarise(folder: TraceFolder) -> dict[str, Any]:
    """Counts, sums and percentiles as JSON types; a percentile of nothing is None."""
    traces = folder.traces
    prompt, cached, thinking, answer = (
        sum(getattr(trace, f"{kind}_tokens") for trace in traces)
        for kind in ("prompt", "cached", "thinking", "answer")
    )
    written = thinking + answer
    return {
        "exchanges": folder.exchanges,
        "answers": len(traces),
        "from": traces[0].time if traces else None,
        "to": traces[-1].time if traces else None,
        "failed": folder.failed,
        "damaged_files": len(folder.damaged),
        "endpoints": _counted(trace.endpoint for trace in traces),
        "models": _counted(trace.model for trace in traces),
        "finish_reasons": _counted(trace.finish_reason for trace in traces),
        "tokens": {
            "prompt": prompt,
            "cached": cached,
            "thinking": thinking,
            "answer": answer,
        },
        "thinking_share": thinking / written if written else None,
        "thought": sum(trace.thinking_tokens > 0 for trace in traces),
        "loops": sum(trace.thinking_end == "loop" for trace in traces),
        "budgets_spent": sum(trace.thinking_end == "budget" for trace in traces),
        "percentiles": {
            "prompt_tokens": percentiles([trace.prompt_tokens for trace in traces]),
            "thinking_tokens": percentiles([trace.thinking_tokens for trace in traces]),
            "answer_tokens": percentiles([trace.answer_tokens for trace in traces]),
            "waited_seconds": percentiles(known(trace.waited for trace in traces)),
            "first_token_seconds": percentiles(known(trace.first_token for trace in traces)),
            "total_seconds": percentiles(known(trace.total for trace in traces)),
            "prefill_tokens_per_second": percentiles(
                [trace.prefill_speed for trace in traces if trace.prefill_speed]
            ),
            "decode_tokens_per_second": percentiles(
                [trace.decode_speed for trace in traces if trace.decode_speed]
            ),
        },
    }


def as_json(folder: TraceFolder) -> str:
    """The summary, and every answer's statistics."""
    return json.dumps(summarise(folder) | {"traces": [asdict(trace) for trace in folder.traces]})


def _files(folder: Path) -> list[Path]:
    try:
        shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(path for path in shown if path.suffix == ".json" and path.is_file())
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror or error}.") from error


def _traces(exchange: _Exchange) -> Iterator[Trace]:
    """The answers of one exchange. Its times count once: the first answer has them."""
    seconds = exchange.seconds
    for n, sample in enumerate(exchange.samples):
        stats = sample.stats
        yield Trace(
            time=exchange.time,
            endpoint=exchange.endpoint,
            model=exchange.model,
            finish_reason=sample.finish_reason,
            thinking_end=stats.thinking_end,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            thinking_tokens=stats.thinking_tokens,
            answer_tokens=stats.answer_tokens,
            waited=None if n else seconds.waited,
            first_token=None if n else seconds.first_token,
            total=None if n else seconds.total,
            prefill_speed=stats.prefill_tokens_per_second,
            decode_speed=stats.decode_tokens_per_second,
        )


def _counted(names: Iterator[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
