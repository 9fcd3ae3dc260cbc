"""Several requests at once: the tokens per second of all, and how long each waits for its first.

python -m magistral_mlx.bench.together [KV_SCHEME [ADAPTER]]

This package's scheduler behind the protocol of `worker`, and the comparison with servers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.bench.compare import Comparison, OnStage, ParallelSpeed, Workload
from magistral_mlx.bench.process import OURS, Program, RuntimeProcess
from magistral_mlx.bench.prompts import WordPrompts
from magistral_mlx.bench.rounds import LEAST, Figure, repeat
from magistral_mlx.bench.worker import serve
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.runtime.request import Request

_SPARE = 64  # tokens of a context beyond words and answer: words that are two tokens


def compare_together(
    programs: Sequence[Program], work: Workload, result: Comparison, on_stage: OnStage
) -> None:
    """Measure all runtimes with each number of requests of the workload, at its shortest context.

    Speeds, and servers that fail, are added to `result`.

    Raises:
        BenchmarkError: our runtime, which is the first, failed.
    """
    prompts = WordPrompts(work.folder)
    with ExitStack() as stack:
        workers = []
        for program in programs:
            on_stage(f"loading {program.label}")
            worker = stack.enter_context(RuntimeProcess(program))
            try:
                _load(worker, work)
            except BenchmarkError as error:
                if program is programs[0]:
                    raise
                result.left_out[program.label] = f"for several at once: {error}"
            else:
                workers.append(worker)
        for requests in work.parallel:
            for worker in list(workers):
                on_stage(f"{requests} at once, {worker.program.label}")
                try:
                    result.parallel.append(_measure(worker, work, requests, prompts))
                except BenchmarkError as error:
                    if worker is workers[0]:
                        raise
                    label = worker.program.label
                    result.left_out[label] = f"with {requests} at once: {error}"
                    workers.remove(worker)


def _load(worker: RuntimeProcess, work: Workload) -> None:
    worker.ask(
        "load",
        folder=str(work.folder),
        dtype=work.dtype,
        context=min(work.contexts) + work.count + _SPARE,
        parallel=max(work.parallel),
    )


def _measure(
    worker: RuntimeProcess, work: Workload, requests: int, prompts: WordPrompts
) -> ParallelSpeed:
    """Measure one runtime until its rate is steady."""
    context = min(work.contexts)
    first: list[float] = []
    seed = 0

    def once(count: int = work.count) -> tuple[float]:
        nonlocal seed
        texts = [prompts.text(context, seed * requests + n) for n in range(requests)]
        seed += 1
        answer = worker.ask("together", texts=texts, count=count)
        first.extend(answer["first"])
        return (answer["tokens"] / answer["seconds"],)

    once(min(work.count, 4))  # kernels are compiled
    first.clear()
    rounds = repeat(once, least=min(LEAST, work.most), most=work.most)
    rates = Figure.of([rate for (rate,) in rounds])
    return ParallelSpeed(worker.program.label, requests, context, rates, Figure.of(first))


def ours_together(kv: str, adapter: str | None = None) -> Program:
    """Return this package's scheduler, with an adapter or without."""
    more = () if adapter is None else (adapter,)
    return Program(OURS, OURS, (sys.executable, "-m", "magistral_mlx.bench.together", kv, *more))


class _Scheduler:
    """The model behind the Python API, which shares its passes among requests."""

    def __init__(self, kv: str, adapter: str | None) -> None:
        self._kv, self._adapter = kv, adapter
        self._model: Magistral | None = None

    def load(self, folder: str, context: int, parallel: int, dtype: Any = None) -> dict[str, Any]:
        begin = time.perf_counter()
        longest = Checkpoint.open(Path(folder)).config.text.max_position_embeddings
        options = LoadOptions(
            context=min(context, longest),
            kv=self._kv,
            images=0,
            dtype=dtype,
            parallel=parallel,
            adapter=self._adapter,
        )
        self._model = Magistral.load(folder, options=options)
        return {"seconds": time.perf_counter() - begin}

    def together(self, texts: list[str], count: int) -> dict[str, Any]:
        """Answer all texts at once, with `count` tokens each."""
        assert self._model is not None
        end = self._model.tokenizer.special.eos
        begin = time.perf_counter()
        streams = [
            self._model.stream(
                RawPrompt(text), max_tokens=count, temperature=0.0, logit_bias={end: -100}
            )
            for text in texts
        ]
        results = [stream.result() for stream in streams]
        return {
            "seconds": time.perf_counter() - begin,
            "tokens": sum(result.usage.completion_tokens for result in results),
            "first": [_waited(stream.request) for stream in streams],
        }


def _waited(request: Request) -> float:
    """Return the seconds from a request to its first token, the queue included."""
    assert request.times.first_token is not None, "it has been answered"
    return request.times.first_token - request.times.queued


if __name__ == "__main__":
    kv, adapter, *_ = [*sys.argv[1:], None]
    handlers: dict[str, Any] = {"load": _Scheduler.load, "together": _Scheduler.together}
    serve(_Scheduler(kv or "full", adapter), handlers)
