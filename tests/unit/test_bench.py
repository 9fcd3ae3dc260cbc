"""Measuring: when rounds end, who is left out, what disturbs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from magistral_mlx.bench.compare import Comparison, Workload, compare
from magistral_mlx.bench.conditions import (
    Conditions,
    linux_conditions,
    mac_conditions,
    swapping,
)
from magistral_mlx.bench.process import OURS, Program, RuntimeProcess
from magistral_mlx.bench.record import bytes_per_token, bytes_read_by
from magistral_mlx.bench.rounds import MOST, Figure, ratios, repeat
from magistral_mlx.bench.worker import launches, random_layer, random_tokens
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.cli.bench import _measure as measure
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.memory.estimate import cached_bytes
from magistral_mlx.memory.machine import this_machine
from magistral_mlx.paths import demo_dir
from tests.checkpoints import write_hf_checkpoint

pytestmark = pytest.mark.slow

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
    bench = Path(sys.modules[RuntimeProcess.__module__].__file__ or "").parent
    script.write_text(FAKE.format(folder=str(bench), answer=answer, load=load))
    return Program(label, label, (sys.executable, str(script)))


def compared(programs: list[Program], **options: object) -> Comparison:
    given = {"exact": True, "most": 3, **options}
    together = bool(given.pop("together", True))
    contexts = given.pop("contexts", [8])
    work = Workload(Path("model"), contexts, 4, 1280, None, **given)  # type: ignore[arg-type]
    return compare(programs, work, together=together, on_stage=lambda _: None)


def test_a_runtime_that_computes_something_else_is_not_compared(tmp_path: Path):
    ours = runtime(tmp_path, OURS, "range(99)")
    same, other = (
        runtime(tmp_path, name, answer)
        for name, answer in (("same", "range(99)"), ("other", "[0, 1, 2, 3, 4, 9] * 9"))
    )
    result = compared([ours, same, other])
    assert [speed.label for speed in result.speeds] == [OURS, "same"]
    assert result.equal_tokens == {"same": 16, "other": 5}
    assert "of 16 greedy tokens the first 5 equal ours" in result.left_out["other"]


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


@pytest.mark.parametrize(("enough", "warm"), [(None, [8, 900]), (512, [8, 512])])
def test_a_context_is_warmed_up_for_with_all_of_it_or_what_is_enough(
    tmp_path: Path, enough: int | None, warm: list[int]
):
    seen = tmp_path / "prompts"
    noted = f"open({str(seen)!r}, 'a').write(f'{{len(tokens)}} ') and range(99)"
    compared([runtime(tmp_path, OURS, noted)], contexts=[8, 900], most=1, warm_up=enough)
    check, first, _, second, _ = map(int, seen.read_text().split())
    assert (check, [first, second]) == (8, warm)


DIES = "range(99) if next(self.calls) < {calls} else __import__('os')._exit(9)"
COUNTS = "self.calls = itertools.count()"


@pytest.mark.parametrize("together", [True, False])
def test_a_peer_that_dies_in_a_round_costs_no_other_figures(tmp_path: Path, together: bool):
    ours = runtime(tmp_path, OURS, "range(99)")
    dying = runtime(tmp_path, "dying", DIES.format(calls=3), load=COUNTS)  # in the second round
    late = runtime(tmp_path, "late", DIES.format(calls=6), load=COUNTS)  # at the second context
    options = {"most": 3, "together": together, "contexts": [8, 9]}
    result = compared([ours, dying, late], **options)
    measured = {(speed.label, speed.context): speed for speed in result.speeds}
    assert set(measured) == {(OURS, 8), (OURS, 9), ("late", 8)}
    assert len(measured[OURS, 9].decode.values) == 3
    assert result.left_out["dying"].startswith("at 8 tokens: dying ended with status 9")
    assert result.left_out["late"].startswith("at 9 tokens: late ended with status 9")


def test_ours_dying_in_a_round_ends_the_measurement(tmp_path: Path):
    ours = runtime(tmp_path, OURS, DIES.format(calls=3), load=COUNTS)
    with pytest.raises(BenchmarkError, match=f"{OURS} ended with status 9"):
        compared([ours])


def test_a_worker_that_was_killed_between_two_tasks_can_be_closed(tmp_path: Path):
    with RuntimeProcess(runtime(tmp_path, "killed", "range(99)")) as worker:
        worker.ask("load", folder="model")
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(BenchmarkError, match="killed ended with status -9"):
            worker.ask("load", folder="model")


def test_ours_failing_ends_the_measurement(tmp_path: Path):
    ours = runtime(tmp_path, OURS, "range(99)", load="raise ValueError('no such layer')")
    with pytest.raises(BenchmarkError, match="no such layer"):
        compared([ours])


def test_a_runtime_that_dies_is_named_with_its_status(tmp_path: Path):
    dying = runtime(tmp_path, "dying", "range(99)", load="import os; os._exit(9)")
    with (
        RuntimeProcess(dying) as worker,
        pytest.raises(BenchmarkError, match="dying ended with status 9"),
    ):
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


def test_what_is_swapped_out_meanwhile_is_told():
    def between(before: int | None, after: int | None) -> tuple[str, ...]:
        return swapping(Conditions((), before), Conditions((), after))

    assert between(1 << 30, 3 << 30) == ("2.0 GiB swapped out",)
    assert between(3 << 30, 1 << 30) == between(0, 1 << 20) == ()
    assert between(None, 1 << 30) == between(1 << 30, None) == ()


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


def test_a_peer_reads_a_full_cache_whatever_ours_is(tmp_path: Path):
    checkpoint, small = Checkpoint.open(write_hf_checkpoint(tmp_path)), KVScheme.parse("4/4")
    ours, theirs = (
        bytes_read_by(name, checkpoint, 3000, 64, small, 4) for name in (OURS, "mlx-lm")
    )
    assert ours == bytes_per_token(checkpoint, 3032, small, 4)
    assert theirs == bytes_per_token(checkpoint, 3032, FULL, 4) > ours


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


@pytest.mark.parametrize(("dtype", "together"), [("bfloat16", True), ("float32", False)])
def test_runtimes_are_loaded_together_where_their_weights_in_memory_fit(
    dtype: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(
        "magistral_mlx.bench.compare.compare", lambda *_, **given: found.append(given["together"])
    )
    checkpoint = Checkpoint.open(demo_dir())
    machine = replace(this_machine(), limit=4 * checkpoint.nbytes)
    work = Workload(checkpoint.folder, [8], 4, 1280, dtype, exact=True)
    measure([Program(OURS, OURS, ())] * 2, work, checkpoint, machine)
    assert found == [together]
