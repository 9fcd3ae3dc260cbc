"""Memory plans for a model over several machines."""

from __future__ import annotations

import json

import pytest

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.choose_split import make_split_plan
from magistral_mlx.memory.known import MAGISTRAL_SMALL, NAME, magistral_small, quantized_sizes
from magistral_mlx.memory.machine import named_machine
from magistral_mlx.memory.machines import SplitChoice, SplitModel, SplitPlan
from magistral_mlx.memory.peak import GPU, cache_bytes
from magistral_mlx.memory.plan import PlanRequest
from magistral_mlx.quantization import Quantization
from tests.command_line import run

SIZES = quantized_sizes(MAGISTRAL_SMALL, Quantization(), 2)
MODEL = SplitModel(NAME, MAGISTRAL_SMALL, SIZES)
WHOLE = magistral_small().weights
NORMS = sum(size for name, size in SIZES.items() if "layernorm" in name)


def plan(
    machines: str, split: SplitChoice = "auto", request: PlanRequest | None = None
) -> SplitPlan:
    names = machines.split(",")
    return make_split_plan(MODEL, [named_machine(name) for name in names], GPU, request, split)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_tensor_parallel_parts_add_up_to_the_model(ranks: int):
    plans = plan(",".join(["64GB"] * ranks), "tensor").plans
    assert sum(one.peak.weights for one in plans) == WHOLE.decoder + (ranks - 1) * NORMS
    assert [one.peak.vision for one in plans] == [WHOLE.vision] + [0] * (ranks - 1)
    caches = {one.peak.cache for one in plans}
    assert caches == {cache_bytes(MAGISTRAL_SMALL.text, KVScheme.parse("full"), 40_960, 2) // ranks}


@pytest.mark.parametrize("machines", ["16GB,32GB", "32GB,16GB", "16GB,16GB,16GB", "24GB,48GB,16GB"])
def test_pipeline_parallel_layers_are_in_proportion_to_memory(machines: str):
    found = plan(machines, "pipeline")
    assert [layer for part in found.parts for layer in part.layers(40)] == list(range(40))
    assert sum(one.peak.weights for one in found.plans) == WHOLE.decoder
    behind = list(zip(found.parts, found.plans, strict=True))[1:]  # rank 0 holds more than layers
    ordered = sorted(behind, key=lambda pair: pair[1].limit)
    counts = [len(part.layers(40)) for part, _ in ordered]
    assert counts == sorted(counts)
    assert found.fits and len({one.context for one in found.plans}) == 1


def test_two_small_macs_hold_what_one_cannot():
    found = plan("16GB,16GB")
    assert (found.kind, found.context) == ("tensor", 40_960)
    with pytest.raises(OutOfMemory, match="Any of these makes it fit"):
        plan("8GB,8GB")


def test_the_smallest_machine_decides_tensor_parallel_and_not_pipeline():
    wide = PlanRequest(131_072, "full")
    with pytest.raises(OutOfMemory, match=r"rank 0 needs .* and 16 GB Mac allows 10\.7 GiB"):
        plan("16GB,64GB", "tensor", wide)
    assert plan("16GB,64GB", "pipeline", wide).fits
    assert plan("16GB,64GB", "auto", wide).kind == "pipeline"


def test_a_refusal_names_changes_that_help():
    with pytest.raises(OutOfMemory) as refused:
        plan("16GB,16GB", "pipeline", PlanRequest(131_072, "full"))
    words = str(refused.value)
    assert "--kv 5/4" in words and "--context 45056" in words
    assert plan("16GB,16GB", "pipeline", PlanRequest(131_072, "5/4")).fits
    assert plan("16GB,16GB", "pipeline", PlanRequest(45_056, "full")).fits
    with pytest.raises(OutOfMemory):
        plan("16GB,16GB", "pipeline", PlanRequest(46_080, "full"))


def test_heads_are_never_cut():
    for count in (3, 5, 6, 7):
        with pytest.raises(InvalidOption, match="divide into 2, 4, 8 parts"):
            plan(",".join(["64GB"] * count), "tensor")
        assert plan(",".join(["64GB"] * count)).kind == "pipeline"
    with pytest.raises(InvalidOption, match="40 layers"):
        plan(",".join(["16GB"] * 41))


def test_the_command_tells_what_each_machine_holds():
    done = run("plan", "demo", "--machines", "16GB, M4 Pro 48GB", "--split", "pipeline", "--json")
    facts = json.loads(done.stdout)
    assert facts["fits"] and facts["split"] == "pipeline"
    assert [rank["machine"] for rank in facts["ranks"]] == ["16 GB Mac", "Apple M4 Pro, 48 GB"]
    assert any("in proportion to its memory" in note for note in facts["notes"])
    shown = run("plan", "demo", "--machines", "16GB,16GB").stdout.decode()
    assert "rank" in shown and "embedding, head, tower" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--machines", "16GB"), "two machines or more"),
        (("--machines", "16GB,"), "is not a machine"),
        (("--machines", "16GB,many"), "'many' is not a machine"),
        (("--machines", "-16GB,16GB"), "is not an Apple chip"),
        (("--machines", ",".join(["16GB"] * 65)), "64 at most"),
        (("--machines", "16GB,16GB", "--machine", "16GB"), "give only one"),
        (("--split", "tensor"), "--split needs --machines"),
        (("--machines", "16GB,16GB", "--split", "rows"), "tensor, pipeline, auto"),
        (("--machines", "16GB,16GB", "--context", "9999999"), "it must be at most"),
        (("--machines", "16GB,16GB", "--memory-limit", "12GB"), "allows 10.7 GiB"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], expected: str):
    assert expected in run("plan", "demo", *words).refusal
