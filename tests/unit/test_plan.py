"""What the planner chooses, refuses and advises. No weights are involved."""

from __future__ import annotations

import pytest

from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.machine import GIB, Machine, named_machine
from magistral_mlx.memory.peak import GPU, Weights
from magistral_mlx.memory.plan import Model, Plan, Wish, longest_context

MAC = named_machine("32GB")
MAGISTRAL = magistral_small()


def plan(machine: Machine = MAC, **wish: object) -> Plan:
    return make_plan(MAGISTRAL, machine, GPU, Wish(**wish))  # type: ignore[arg-type]


def test_a_32_gb_mac_gives_21_gib_to_the_model() -> None:
    assert pytest.approx(21.33, abs=0.01) == MAC.limit / GIB


def test_the_weights_are_those_of_the_model() -> None:
    assert pytest.approx(12.35, abs=0.05) == MAGISTRAL.weights.decoder / GIB
    assert pytest.approx(0.82, abs=0.02) == MAGISTRAL.weights.vision / GIB


def test_a_32_gb_mac_gets_the_default_context_in_full_precision() -> None:
    best = plan()
    assert (best.context, best.scheme.name) == (40_960, "full")
    assert 19 * GIB < best.peak.total <= best.limit


def test_a_32_gb_mac_holds_the_whole_context_at_4_bits() -> None:
    best = plan(context=131_072)
    assert (best.context, best.scheme.name) == (131_072, "4/4")
    assert best.peak.total <= best.limit


def test_a_24_gb_mac_gets_less_precision_rather_than_less_context() -> None:
    best = plan(named_machine("24GB"))
    assert best.headroom >= 0
    assert best.scheme.name != "full"


def test_a_16_gb_mac_is_told_that_the_model_does_not_fit() -> None:
    with pytest.raises(OutOfMemory, match=r"allows 10\.7 GiB: .* are missing"):
        plan(named_machine("16GB"))


def test_an_override_that_cannot_fit_is_refused_with_three_ways_out() -> None:
    with pytest.raises(OutOfMemory) as error:
        plan(context=131_072, kv="full")
    message = str(error.value)
    assert "131,072 tokens of context and a full KV cache needs" in message
    assert "are missing. Any of these makes it fit: --kv 4/4; --context " in message
    assert "iogpu.wired_limit_mb=" not in message  # 34 GiB cannot be wired on 32 GB
    assert "\n" not in message


def test_each_way_out_does_make_it_fit() -> None:
    with pytest.raises(OutOfMemory) as error:
        plan(context=100_000, kv="8/8")
    advice = str(error.value).split("makes it fit: ")[1].rstrip(".").split("; ")
    assert len(advice) == 3
    assert advice[0].startswith("--kv ")
    plan(context=100_000, kv=advice[0].removeprefix("--kv "))
    words = advice[1].split()
    plan(context=int(words[1]), kv=words[3])


def test_a_memory_limit_is_kept() -> None:
    best = plan(memory_limit=16 * GIB)
    assert best.peak.total <= 16 * GIB
    assert plan().peak.total > 16 * GIB


def test_an_unquantized_model_is_advised_to_be_converted() -> None:
    whole = Model("bf16", MAGISTRAL.config, Weights(47 * GIB, GIB))
    with pytest.raises(OutOfMemory, match="its 4-bit conversion"):
        make_plan(whole, MAC, GPU, Wish())


def test_the_longest_context_grows_as_precision_falls() -> None:
    longest = [
        longest_context(MAGISTRAL, MAC, GPU, Wish(), scheme, 131_072)
        for scheme in ("full", "8/8", "8/4", "4/4")
    ]
    assert longest == sorted(longest)
    assert longest[0] < longest[1] < longest[2] < longest[3] == 131_072


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(InvalidOption, match="131,072 tokens at most"):
        plan(context=200_000)


@pytest.mark.parametrize("wish", [{"context": 0}, {"pictures": -1}, {"kv": "3/3"}])
def test_a_wish_out_of_range_is_named(wish: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        Wish(**wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "Mac", "M3 Max", "4GB", "Q9 Max 32GB"])
def test_a_machine_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match=r"names no machine|is no Apple chip"):
        named_machine(name)
