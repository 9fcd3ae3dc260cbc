"""Who is let in: as many as memory allows, in the order in which they came, to their end."""

from collections.abc import Iterator
from typing import Any

import pytest

from magistral_mlx import Event, Magistral, TokenLogprob
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.unit.api.together import Together, held, settled

MIB = 1 << 20
CONTEXT = 1024  # 24 MiB of caches; all that there is for caches and work are 75 MiB
ENDLESS: dict[str, Any] = {
    "thinking": "off",
    "system": None,
    "logit_bias": {2: -100},
    "seed": 1,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Magistral]:
    """Random weights that write on and on, in caches of 24 KiB a token, and 82 MiB in all.

    Caches are made ready for fewer tokens than usual, so that few are enough to fill them.
    """
    config = tiny_config(layers=1, num_attention_heads=48, num_key_value_heads=48, vision=False)
    folder = write_hf_checkpoint(tmp_path_factory.mktemp("tight") / "model", config=config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magistral_mlx.memory.admission.RESERVED", 64)
        patch.setattr("magistral_mlx.engine.prefill.RESERVED", 64)
        with Magistral.load(
            folder, kv="full", context=CONTEXT, images=0, memory_limit=96 * MIB
        ) as magistral:
            yield magistral


def prompt_of(magistral: Magistral, letter: str, tokens: int) -> str:
    return letter * (tokens - len(magistral.prompt("", system=None, thinking="off")))


@pytest.mark.slow
def test_what_does_not_fit_beside_those_that_run_waits(tight: Magistral):
    before = settled(tight)
    together = Together(tight)
    with held(tight):
        for letter in "abcdef":
            prompt = prompt_of(tight, letter, 490)
            together.ask(letter, prompt, max_tokens=20, **ENDLESS)
    results = together.results()
    assert all(result.stats.completion_tokens == 20 for result in results.values())
    assert 2 <= together.most_at_once() <= 3
    assert together.begun() == list("abcdef")
    assert max(result.stats.peak_memory for result in results.values()) <= tight.plan.total
    assert settled(tight) <= before


def test_small_ones_run_at_once_where_large_ones_would_not(tight: Magistral):
    together = Together(tight)
    with held(tight):
        for letter in "abcdef":
            together.ask(letter, letter, max_tokens=20, **ENDLESS)
    results = together.results()
    assert together.most_at_once() == 6
    assert max(result.stats.peak_memory for result in results.values()) <= tight.plan.total


def test_a_large_one_is_not_overtaken_for_ever(tight: Magistral):
    settled(tight)

    def stop_once_all_wait(name: str, event: Event) -> None:
        if name == "running" and tight.activity.waiting == 3:
            together.answers["running"].cancel()

    together = Together(tight, stop_once_all_wait)
    with held(tight):
        together.ask("running", "a", max_tokens=1000, **ENDLESS)
        large = prompt_of(tight, "b", 600)
        together.ask("large", large, max_tokens=400, **(ENDLESS | {"logit_bias": {2: 100}}))
        for name in ("small", "smaller"):
            together.ask(name, name, max_tokens=2, **ENDLESS)
    together.results()
    assert together.begun() == ["running", "large", "small", "smaller"]


@pytest.mark.slow
def test_without_a_length_nobody_is_kept_out_and_the_newest_ends_when_memory_does(
    tight: Magistral,
):
    settled(tight)

    def join(name: str, event: Event) -> None:
        if name == "a" and "late" not in together.answers and together.tokens["a"] == 750:
            together.ask("late", "d", max_tokens=10, **ENDLESS)

    together = Together(tight, join)
    with held(tight):
        for letter in "abc":
            together.ask(letter, letter, **ENDLESS)
    together.result("a")
    results = together.results()
    assert together.most_at_once() == 3
    full = [results[name] for name in "ab"]
    assert [result.finish_reason for result in full] == ["length", "length"]
    assert all(result.usage.total_tokens == CONTEXT for result in full)
    assert results["c"].finish_reason == "memory"
    assert results["c"].stats.completion_tokens > 256
    assert results["late"].stats.completion_tokens == 10
    assert max(result.stats.peak_memory for result in results.values()) <= tight.plan.total


@pytest.mark.slow
def test_those_that_stand_still_go_on_when_another_has_ended(tight: Magistral):
    settled(tight)

    def stop(name: str, event: Event) -> None:
        if name == "first" and together.tokens["first"] == 850:
            together.answers["first"].cancel()

    together = Together(tight, stop)
    with held(tight):
        together.ask("first", "a", max_tokens=1000, **ENDLESS)
        together.ask("second", "b", max_tokens=800, **ENDLESS)
        together.ask("open", "c", **ENDLESS)
    results = together.results()
    assert results["first"].finish_reason == "cancelled"
    assert results["second"].stats.completion_tokens == 800
    assert results["open"].usage.total_tokens == CONTEXT
    # While the first one wrote alone, nobody else did.
    assert "first" * 50 in "".join(together.names(TokenLogprob))
    assert max(result.stats.peak_memory for result in results.values()) <= tight.plan.total
