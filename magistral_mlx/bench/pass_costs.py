"""Measurement of pass costs, from which speculative decoding chooses its draft lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from magistral_mlx.backend import backend
from magistral_mlx.bench.process import Program, RuntimeProcess
from magistral_mlx.bench.rounds import Figure, repeat
from magistral_mlx.cache.scheme import FULL
from magistral_mlx.config import TextConfig
from magistral_mlx.engine.speculate.costs import LONG_CONTEXT, PassCosts
from magistral_mlx.engine.speculate.measured import smoothed
from magistral_mlx.memory.peak import cache_bytes

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_CONTEXT = 512  # tokens in the caches
_SLOW = 2.0  # seconds of one pass from which the measurement would take too long


def long_context_fits(text: TextConfig, weights: int, float_bytes: int, limit: int) -> bool:
    """Whether passes over `LONG_CONTEXT` tokens can be measured: on a GPU, where their costs
    differ, if two caches of that length fit into `limit` bytes beside the weights."""
    caches = 2 * cache_bytes(text, FULL, LONG_CONTEXT, float_bytes)
    return backend().fused_attention and weights + caches < limit


def measure_pass_costs(
    program: Program,
    folder: Path,
    dtype: str | None,
    on_stage: Callable[[str], None],
    *,
    long: bool = False,
) -> PassCosts | None:
    """Measure our runtime with a checkpoint; None if a pass is too slow for that.

    All numbers of rows take turns, so that a slow round affects all of them alike.

    Args:
        long: measure passes over `LONG_CONTEXT` tokens as well, whose caches have to fit.

    Raises:
        BenchmarkError: the runtime failed.
    """
    on_stage("the cost of wider passes")
    with RuntimeProcess(program) as worker:
        worker.ask("load", folder=str(folder), dtype=dtype)

        def measure(context: int) -> list[float]:
            seconds: list[float] = worker.ask("passes", filled=context, rows=ROWS)["seconds"]
            return seconds

        def costs(context: int) -> PassCosts:
            measure(context)
            columns = zip(*repeat(partial(measure, context), most=5), strict=True)
            return smoothed(ROWS, [Figure.of(values).median for values in columns])

        warm = worker.ask("passes", filled=_CONTEXT, rows=[1, 1])["seconds"]
        if warm[-1] > _SLOW:
            return None
        short = costs(_CONTEXT)
        return PassCosts(short.points, costs(LONG_CONTEXT).points) if long else short
