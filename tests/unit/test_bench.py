"""Measuring: when rounds end, who is left out, what disturbs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from magistral_mlx.bench.compare import Comparison, Work, compare
from magistral_mlx.bench.conditions import linux_conditions, mac_conditions
from magistral_mlx.bench.limit import bytes_per_token
from magistral_mlx.bench.process import OURS, Program, Worker
from magistral_mlx.bench.rounds import MOST, Figure, ratios, repeat
from magistral_mlx.bench.worker import launches, random_layer, random_tokens
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.memory.estimate import cached_bytes
from tests.checkpoints import write_hf_checkpoint

FAKE = """
import itertools, sys
sys.path.insert(0, {folder!r})
from worker import serve

class Fake:
    def load(self, folder, dtype): {load}
    def start(self, tokens, filled): return iter({answer})

import worker
class Mlx:
    __version__ = "0"
    def __getattr__(self, name): return lambda *_: 0
worker._mlx = Mlx
serve(Fake())
"""


def runtime(folder: Path, label: str, answer: str, load: str = "pass") -> Program:
    """A runtime that answers so, served by the worker's own code."""
    script = folder / f"{label}.py"
    bench = Path(sys.modules[Worker.__module__].__file__ or "").parent
    script.write_text(FAKE.format(folder=str(bench), answer=answer, load=load))
    return Program(label, label, (sys.executable, str(script)))


def compared(programs: list[Program], **options: object) -> Comparison:
    given = {"exact": True, "most": 3, **options}
    together = bool(given.pop("together", True))
    work = Work(Path("model"), [8], 4, 1280, None, **given)  # type: ignore[arg-type]
    return compare(programs, work, together=together, on_round=lambda _: None)


def test_a_runtime_that_computes_something_else_is_not_compared(tmp_path: Path):
    ours = runtime(tmp_path, OURS, "range(99)")
    same, other = (
        runtime(tmp_path, name, answer)
        for name, answer in (("same", "range(99)"), ("other", "[0, 1, 2, 3, 4, 9] * 9"))
    )
    result = compared([ours, same, other])
    assert [speed.label for speed in result.speeds] == [OURS, "same"]
    assert result.equal_tokens == {"same": 16, "other": 5}
    assert "of 16 greedy tokens the first 5 are ours" in result.left_out["other"]


def test_where_rounding_differs_answers_may_go_apart_after_a_while(tmp_path: Path):
    ours = runtime(tmp_path, OURS, "range(99)")
    near, far = (
        runtime(tmp_path, name, answer)
        for name, answer in (("near", "[0, 1, 2, 3, 4, 9] * 9"), ("far", "[0, 1, 7] * 9"))
    )
    result = compared([ours, near, far], exact=False)
    assert [speed.label for speed in result.speeds] == [OURS, "near"]
    assert set(result.left_out) == {"far"}


@pytest.mark.parametrize("together", [True, False])
def test_a_peer_that_fails_is_named_with_its_error(tmp_path: Path, together: bool):
    ours = runtime(tmp_path, OURS, "range(99)")
    broken = runtime(tmp_path, "broken", "range(99)", load="raise ValueError('no such layer')")
    result = compared([ours, broken], together=together)
    assert [speed.label for speed in result.speeds] == [OURS]
    assert result.left_out["broken"] == "broken cannot load: ValueError: no such layer."


def test_ours_failing_ends_the_measurement(tmp_path: Path):
    ours = runtime(tmp_path, OURS, "range(99)", load="raise ValueError('no such layer')")
    with pytest.raises(BenchmarkError, match="no such layer"):
        compared([ours])


def test_a_runtime_that_dies_is_named_with_its_status(tmp_path: Path):
    dying = runtime(tmp_path, "dying", "range(99)", load="import os; os._exit(9)")
    with Worker(dying) as worker, pytest.raises(BenchmarkError, match="dying ended with status 9"):
        worker.ask("load", folder="model")


def test_rounds_end_when_all_figures_are_steady():
    values = iter([(1.0, 5.0), (1.01, 9.0), (1.02, 5.1), (1.0, 5.0), (1.01, 5.05), (9.0, 9.0)])
    rounds = repeat(lambda: next(values))
    assert len(rounds) == 5  # with four, 9.0 still spreads the second figure


def test_rounds_end_at_the_most_when_nothing_becomes_steady():
    values = iter([(1.0,), (2.0,)] * 9)
    assert len(repeat(lambda: next(values))) == MOST


def test_the_spread_is_the_middle_half_over_the_median():
    figure = Figure.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (figure.median, figure.spread) == (3.0, pytest.approx(2 / 3))
    assert Figure.of([2.0]).spread == 0
    assert not Figure.of([2.0]).steady


def test_ratios_are_taken_round_by_round():
    assert ratios([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]).values == (2.0, 2.0, 2.0)


def test_heat_and_memory_pressure_of_a_mac_are_told():
    name = "com.apple.system.thermalpressurelevel"
    swap = "total = 2048.00M  used = 512.50M  free = 1535.50M  (encrypted)"
    hot = mac_conditions(f"{name} 2\n", "2\n", swap)
    assert hot.disturbances == ("heavy heat", "memory pressure")
    assert hot.swapped == 512.5 * (1 << 20)
    calm = mac_conditions(f"{name} 0\n", "1\n", "total = 0.00M  used = 0.00M  free = 0.00M")
    assert calm.quiet and calm.swapped == 0
    assert mac_conditions("", "", "").quiet and mac_conditions("", "", "").swapped is None


def test_pressure_on_linux_is_told():
    busy = "some avg10=75.20 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 total=0\n"
    calm = "some avg10=3.00 avg60=80.00 avg300=0.00 total=1\n"
    meminfo = "MemTotal: 10 kB\nSwapTotal:    2048 kB\nSwapFree:     1024 kB\n"
    assert linux_conditions(busy, calm, meminfo).disturbances == (
        "other work on the cores (75 % of the time)",
    )
    assert linux_conditions(calm, busy, meminfo).disturbances == (
        "memory pressure (75 % of the time)",
    )
    assert linux_conditions(calm, calm, meminfo).swapped == 1024 * 1024
    assert linux_conditions("", "", "").quiet


def test_a_token_reads_all_weights_but_those_of_the_embedding(tmp_path: Path):
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path))
    tensors = checkpoint.tensors
    read = sum(
        tensor.nbytes * 2  # bfloat16 in the file, float32 in memory
        for name, tensor in tensors.items()
        if name.startswith("language_model") and "embed_tokens" not in name
    )
    assert bytes_per_token(checkpoint, 0, FULL, 4) == read
    text = checkpoint.config.text
    cached = text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * 4 * 100
    assert bytes_per_token(checkpoint, 100, FULL, 4) == read + cached


def test_a_quantized_cache_is_read_at_its_bits(tmp_path: Path):
    text = Checkpoint.open(write_hf_checkpoint(tmp_path)).config.text
    full = cached_bytes(text, 100_000, FULL, 2)
    small = cached_bytes(text, 100_000, KVScheme.parse("4/4"), 2)
    assert small / full == pytest.approx(4.5 / 16, rel=0.01)


def test_what_runtimes_are_given_depends_on_the_seed_alone():
    assert random_tokens(5, 2000, 7) == random_tokens(5, 2000, 7)
    assert min(random_tokens(500, 1280, 0)) >= 1000
    first, again = random_layer((1, 2, 3, 4), 5), random_layer((1, 2, 3, 4), 5)
    assert (first[0] == again[0]).all() and (first[0] != first[1]).any()


def test_views_are_no_kernels():
    assert launches({"QuantizedMatmul": 7, "Transpose": 4, "Reshape": 2, "Depends": 3}) == 10
