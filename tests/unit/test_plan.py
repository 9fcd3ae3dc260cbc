"""What the planner chooses, refuses and advises. No weights are involved."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from magistral_mlx.cache.scheme import SCHEMES, KVScheme, schemes_with, smaller_schemes
from magistral_mlx.cli.params import parse_size
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.estimate import decode_tokens_per_second, prefill_seconds
from magistral_mlx.memory.known import (
    magistral_small,
    quantized_weights,
    sized_magistral_small,
)
from magistral_mlx.memory.machine import GIB, Machine, named_machine
from magistral_mlx.memory.peak import GPU, BackendProfile, Weights, cache_bytes
from magistral_mlx.memory.plan import Draft, Plan, PlannedModel, PlanRequest, longest_context
from magistral_mlx.quantization import Quantization

MAC = named_machine("32GB")
MAGISTRAL = magistral_small()


def plan(machine: Machine = MAC, **asked: object) -> Plan:
    return make_plan(MAGISTRAL, machine, GPU, PlanRequest(**asked))  # type: ignore[arg-type]


def test_a_32_gb_mac_gives_21_gib_to_the_model() -> None:
    assert pytest.approx(21.33, abs=0.01) == MAC.limit / GIB


def test_the_weights_are_those_of_the_model() -> None:
    assert pytest.approx(12.35, abs=0.05) == MAGISTRAL.weights.decoder / GIB
    assert pytest.approx(0.82, abs=0.02) == MAGISTRAL.weights.vision / GIB


def test_a_32_gb_mac_gets_the_default_context_in_full_precision() -> None:
    best = plan()
    assert (best.context, best.scheme.name) == (40_960, "full")
    assert 19 * GIB < best.peak.total <= best.limit


@pytest.mark.parametrize(
    ("machine", "asked", "context", "scheme"),
    [
        ("32GB", {"context": 131_072}, 131_072, "6/4"),
        ("32GB", {"context": 115_000}, 115_000, "6/6"),
        ("24GB", {}, 40_960, "6/4"),
        ("24GB", {"context": 50_000}, 50_000, "5/4"),
        ("24GB", {"context": 55_000}, 55_000, "4/4"),
        ("24GB", {"context": 38_000}, 38_000, "6/6"),
        ("24GB", {"context": 41_000, "kv": "8/3"}, 41_000, "8/3"),
    ],
    ids=str,
)
def test_less_precision_is_given_rather_than_less_context(
    machine: str, asked: dict[str, Any], context: int, scheme: str
) -> None:
    best = plan(named_machine(machine), **asked)
    assert (best.context, best.scheme.name) == (context, scheme)
    assert best.peak.total <= best.limit


def test_the_schemes_of_the_planner_take_less_memory_one_after_another() -> None:
    text, names = MAGISTRAL.config.text, schemes_with("3/2")
    sizes = [cache_bytes(text, KVScheme.parse(name), 40_960, 2) for name in names]
    assert sizes == sorted(set(sizes), reverse=True)
    assert names == (*SCHEMES, "3/2")


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("full", SCHEMES[1:]), ("8/4", SCHEMES[3:]), ("5/4", ("4/4",)), ("3/8", SCHEMES[3:])],
)
def test_the_smaller_schemes_are_those_that_take_less_memory(
    name: str, smaller: tuple[str, ...]
) -> None:
    assert smaller_schemes(name) == smaller


def test_a_16_gb_mac_is_told_that_the_model_does_not_fit() -> None:
    with pytest.raises(OutOfMemory, match=r"allows 10\.7 GiB: .* are missing"):
        plan(named_machine("16GB"))


def test_an_override_that_cannot_fit_is_refused_with_three_ways_out() -> None:
    with pytest.raises(OutOfMemory) as error:
        plan(context=131_072, kv="full")
    message = str(error.value)
    assert "131,072 tokens of context and a full KV cache needs" in message
    assert "are missing. Any of these makes it fit: --kv 6/4; --context " in message
    assert "iogpu.wired_limit_mb=" not in message  # 34 GiB cannot be wired on 32 GB
    assert "\n" not in message


WHOLE = PlannedModel("bf16", MAGISTRAL.config, Weights(47 * GIB, GIB))


@pytest.mark.parametrize(
    ("model", "machine", "asked"),
    [
        (MAGISTRAL, "32GB", {"context": 100_000, "kv": "8/8"}),
        (MAGISTRAL, "32GB", {"context": 131_072, "kv": "full"}),
        (MAGISTRAL, "24GB", {"context": 131_072}),
        (MAGISTRAL, "24GB", {"context": 40_960, "kv": "8/8", "images": 20}),
        (MAGISTRAL, "24GB", {"memory_limit": 13 * GIB}),
        (MAGISTRAL, "18GB", {}),
        (MAGISTRAL, "18GB macOS 26", {}),
        (MAGISTRAL, "18GB macOS 26", {"images": 0, "context": 40_960}),
        (MAGISTRAL, "16GB", {}),
        (WHOLE, "16GB", {}),
        (WHOLE, "32GB", {"context": 131_072}),
        (WHOLE, "64GB", {}),
    ],
)
def test_three_ways_out_are_offered_and_each_makes_it_fit(
    model: PlannedModel, machine: str, asked: dict[str, Any]
) -> None:
    mac = named_machine(machine)
    with pytest.raises(OutOfMemory) as error:
        make_plan(model, mac, GPU, PlanRequest(**asked))
    offered = str(error.value).split("makes it fit: ")[1].rstrip(".").split("; ")
    assert len(offered) == 3
    for way in offered:
        make_plan(*with_changes(way, model, mac, PlanRequest(**asked)))  # refuses what does not fit


def with_changes(
    way: str, model: PlannedModel, machine: Machine, request: PlanRequest
) -> tuple[PlannedModel, Machine, BackendProfile, PlanRequest]:
    """What somebody has who does what is said there."""
    for option, field in (("kv", "kv"), ("context", "context"), ("images", "images")):
        if found := re.search(rf"--{option} (\S+)", way):
            value = found[1] if option == "kv" else int(found[1])
            request = replace(request, **{field: value})
    if found := re.search(r"--memory-limit (\S+)", way):
        request = replace(request, memory_limit=parse_size(found[1]))
    if found := re.search(r"iogpu.wired_limit_mb=(\d+)", way):
        machine = replace(machine, limit=int(found[1]) << 20)
        assert machine.limit <= machine.memory - 4 * GIB
    if found := re.search(r"a Mac with (\d+) GB", way):
        machine = named_machine(f"{found[1]}GB")
    if found := re.search(r"its (\d)-bit conversion", way):
        scheme = Quantization(bits=int(found[1]))
        model = replace(model, weights=quantized_weights(model.config, scheme, 2))
    return model, machine, GPU, request


def test_images_are_given_up_where_that_makes_it_fit() -> None:
    with pytest.raises(OutOfMemory, match=r"fit: --context 17408 --images 0 \(no images\); "):
        plan(named_machine("18GB macOS 26"))


def test_what_no_setting_saves_is_said_to_be_so() -> None:
    huge = PlannedModel("huge", MAGISTRAL.config, Weights(47 * GIB, GIB))
    box = Machine("Linux", 8 * GIB, 7 * GIB, is_mac=False)
    with pytest.raises(OutOfMemory, match="Nothing that can be set makes it fit"):
        make_plan(huge, box, GPU, PlanRequest())


def test_a_draft_model_is_given_up_where_that_makes_it_fit() -> None:
    text = MAGISTRAL.config.text
    beside = replace(MAGISTRAL, draft=Draft(text, 8 * GIB))
    with pytest.raises(OutOfMemory, match=r"makes it fit: .*no draft model"):
        make_plan(beside, MAC, GPU, PlanRequest(context=40_960))


def test_a_memory_limit_is_kept() -> None:
    best = plan(memory_limit=16 * GIB)
    assert best.peak.total <= 16 * GIB
    assert plan().peak.total > 16 * GIB


def test_an_unquantized_model_is_advised_to_be_converted_where_that_is_enough() -> None:
    with pytest.raises(OutOfMemory, match="fit: its 4-bit conversion"):
        make_plan(WHOLE, MAC, GPU, PlanRequest())
    with pytest.raises(OutOfMemory) as error:
        make_plan(WHOLE, named_machine("16GB"), GPU, PlanRequest())
    assert "fit: its 4-bit conversion" not in str(error.value)


def test_the_cache_is_shown_also_where_an_image_needs_most() -> None:
    """On the CPU a large image takes more than the caches of a short context."""
    cpu = BackendProfile(4, 32 << 20, 5, fused_attention=False, workspace=256 << 20, chunk=512)
    small = make_plan(MAGISTRAL, named_machine("64GB"), cpu, PlanRequest(context=1024, images=1))
    cache = cache_bytes(MAGISTRAL.config.text, small.scheme, 1024, 4)
    assert small.peak.cache == cache > 0
    none = make_plan(MAGISTRAL, named_machine("64GB"), cpu, PlanRequest(context=1024, images=0))
    assert small.peak.total - none.peak.total > MAGISTRAL.weights.vision


def test_the_longest_context_grows_as_precision_falls() -> None:
    longest = [
        longest_context(MAGISTRAL, MAC, GPU, PlanRequest(), scheme, 131_072) for scheme in SCHEMES
    ]
    assert longest == sorted(longest)
    assert longest[0] < longest[1] < longest[2] < longest[3] == 131_072 == longest[-1]


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(InvalidOption, match="at most 131,072 tokens"):
        plan(context=200_000)


@pytest.mark.parametrize("asked", [{"context": 0}, {"images": -1}, {"kv": "7/7"}])
def test_a_plan_request_out_of_range_is_named(asked: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        PlanRequest(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "Mac", "M3 Max", "4GB", "Q9 Max 32GB"])
def test_a_machine_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match=r"is not a machine|is not an Apple chip"):
        named_machine(name)


def test_a_chunk_takes_what_computing_or_reading_takes_whichever_is_longer() -> None:
    best = plan(named_machine("M4 Pro 48GB"))
    chip = best.machine.chip
    assert chip is not None and chip.fp32_tflops is not None

    def seconds(**changes: float) -> float:
        faster = replace(best.machine, chip=replace(chip, **changes))
        found = prefill_seconds(replace(best, machine=faster))
        assert found is not None
        return found

    assert seconds(fp32_tflops=2 * chip.fp32_tflops) == pytest.approx(seconds() / 2)
    assert seconds(bandwidth=2 * chip.bandwidth) == seconds()
    # With so much compute the weights are read once a chunk, and what is cached grows.
    chunks = -(-best.context // best.chunk)
    weights = best.model.weights.read / (chip.bandwidth * 1e9)
    reading = seconds(fp32_tflops=1e6)
    assert chunks * weights < reading < 2 * chunks * weights
    # 2 operations a weight and token, and the scores of 32 heads over half the context on average.
    operations = 2 * 22.2e9 * 40_960 + 4 * 40 * 32 * 128 * 40_960**2 / 2
    assert seconds() == pytest.approx(operations / (chip.fp32_tflops * 1e12), rel=0.01)


def test_a_decoded_token_reads_all_weights_but_the_embedding_and_what_is_cached() -> None:
    best = plan(named_machine("M4 Pro 48GB"))
    table = 131_072 * 5120 // 2 * 9 // 8  # 4 bits, and a scale and a bias for 64 weights
    assert MAGISTRAL.weights.embedding == table
    read = MAGISTRAL.weights.decoder - table
    assert decode_tokens_per_second(best, 0) == pytest.approx(273e9 / read)
    full = read + 40_960 * 40 * 2 * 8 * 128 * 2
    assert decode_tokens_per_second(best, 40_960) == pytest.approx(273e9 / full)
    assert decode_tokens_per_second(plan(), 0) is None


@pytest.mark.parametrize(
    ("nbytes", "mac", "least"), [(9.9e9, "16GB", 24_000), (12.9e9, "24GB", 80_000)]
)
def test_the_sizes_of_the_recipes_leave_a_cache(nbytes: float, mac: str, least: int) -> None:
    model = sized_magistral_small(int(nbytes))
    assert model.weights.decoder + model.weights.vision == pytest.approx(nbytes, rel=0.005)
    found = longest_context(model, named_machine(mac), GPU, PlanRequest(), "4/4", 131072)
    assert found >= least


def test_a_size_below_that_of_2_bits_cannot_be_planned() -> None:
    with pytest.raises(InvalidOption) as refused:
        sized_magistral_small(1000)
    assert str(refused.value) == (
        "--weights is 1000; it must be 8.3 GB or more, the size of all matrices at 2 bits."
    )
    sized_magistral_small(8_300_000_000)
