"""Memory is kept to the plan while a model is loaded, and given back by close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import Magistral
from magistral_mlx.backend import mx
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.limits import PROCESS
from tests.checkpoints import tiny_config, write_hf_checkpoint

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, which write on and on."""
    return write_hf_checkpoint(tmp_path_factory.mktemp("random"))


def limits() -> tuple[int, int]:
    """MLX's memory and cache limits, read by setting them twice."""
    memory, cache = mx.set_memory_limit(1 << 40), mx.set_cache_limit(1 << 40)
    mx.set_memory_limit(memory)
    mx.set_cache_limit(cache)
    return memory, cache


def test_limits_are_set_while_a_model_is_loaded_and_put_back(folder: Path) -> None:
    before = limits()
    with Magistral.load(folder) as magistral:
        plan = magistral.plan
        assert limits() == (plan.total, plan.buffer_cache + plan.peak.workspace)
    assert limits() == before


def test_two_models_share_the_limits(folder: Path) -> None:
    before = limits()
    with Magistral.load(folder, context=512) as first:
        with Magistral.load(folder, context=1024) as second:
            assert second.plan.limit == first.plan.limit - first.plan.total
            assert limits()[0] == first.plan.total + second.plan.total
            assert second.generate("Hi", max_tokens=3, seed=1).finish_reason == "length"
        assert limits()[0] == first.plan.total
    assert limits() == before


def test_two_models_never_have_more_than_the_machine_together(folder: Path) -> None:
    with Magistral.load(folder, context=512) as first:
        machine = first.plan.limit
        assert PROCESS.allowed(first.plan) == PROCESS.limit(first.plan) == machine
        with Magistral.load(folder, context=1024) as second:
            assert PROCESS.allowed(first.plan) == PROCESS.allowed(second.plan) == machine
            assert PROCESS.limit(first.plan) == machine - second.plan.total
        assert PROCESS.limit(first.plan) == machine


def test_a_memory_limit_holds_beside_another_model(folder: Path) -> None:
    with (
        Magistral.load(folder, context=512, memory_limit=128 * MIB) as first,
        Magistral.load(folder, context=1024) as second,
    ):
        assert PROCESS.limit(first.plan) == 128 * MIB
        assert PROCESS.allowed(first.plan) == 128 * MIB + second.plan.total


def test_an_image_that_memory_was_not_planned_for_is_refused(folder: Path) -> None:
    """With a large one the tower needs more than 64 MB; a small one and text go on.

    The tower leaves once the prompt has been read: what was planned for needs the memory.
    """
    large, small = PIL.Image.new("RGB", (1540, 1540)), PIL.Image.new("RGB", (56, 56))
    with Magistral.load(folder, images=0, memory_limit=64 * 10**6) as magistral:
        with pytest.raises(OutOfMemory, match=r"memory was planned for 0.*with images=1"):
            magistral.generate("What is it?", large)
        for images in ([small], []):
            result = magistral.generate("Hi", images, max_tokens=3, seed=1)
            assert result.finish_reason == "length"
            assert magistral.activity.memory.weights == magistral.plan.model.weights.decoder


def test_samples_from_a_small_cache_without_snapshots_are_those_of_their_seeds(
    folder: Path,
) -> None:
    """The prompt is read again for each, as the cache cannot be trimmed back to it exactly."""
    options: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True, "logprobs": True}
    options |= {"system": None, "thinking": "off"}
    prompt = "word " * 47
    with Magistral.load(folder, context=512, kv="2/2", images=0, memory_limit=64 * MIB) as model:
        assert not model.plan.snapshots
        _, second = model.generate(prompt, n=2, seed=5, max_tokens=75, **options).samples
        alone = model.generate(prompt, seed=6, max_tokens=5, **options)
        assert second.stats.peak_memory <= model.plan.total
    assert alone.logprobs and alone.logprobs == second.logprobs[:5]


@pytest.mark.parametrize("limit", [0, 10**6, 64 * 10**6 - 1])
def test_a_limit_that_nothing_fits_into_is_refused_with_the_least_that_is_taken(
    folder: Path, limit: int
) -> None:
    with pytest.raises(InvalidOption, match="must be 64 MB or more"):
        Magistral.load(folder, memory_limit=limit)


def test_limits_are_put_back_when_loading_fails(folder: Path, tmp_path: Path) -> None:
    before = limits()
    broken = write_hf_checkpoint(tmp_path / "broken")
    (broken / "tekken.json").write_text("{")
    with pytest.raises(Exception, match="tekken"):
        Magistral.load(broken)
    assert limits() == before


@pytest.mark.slow
def test_a_context_cut_by_memory_ends_with_that_reason(tmp_path: Path) -> None:
    """32,768 tokens of cache would take 96 MiB."""
    config = tiny_config(max_position_embeddings=32_768)
    folder = write_hf_checkpoint(tmp_path, config=config)
    with Magistral.load(folder, kv="full", images=0, memory_limit=64 * MIB) as magistral:
        assert magistral.plan.shortened
        assert 1024 <= magistral.context < 32_768
        text = "\N{GREEK SMALL LETTER ALPHA}" * (magistral.context // 2 - 50)  # 2 tokens each
        result = magistral.generate(text, seed=1, thinking="off", system=None)
    assert result.finish_reason == "memory"
    assert result.stats.peak_memory <= 64 * MIB


def test_a_context_that_was_asked_for_ends_with_length(folder: Path) -> None:
    with Magistral.load(folder, context=64, images=0) as magistral:
        result = magistral.generate("Hi", seed=1, thinking="off", system=None)
    assert result.finish_reason == "length"


def test_a_run_that_would_pass_the_plan_stops_with_what_it_has(folder: Path) -> None:
    """Something else in the process takes the memory: the answer ends, nothing crashes."""
    with Magistral.load(folder, context=512, images=0, memory_limit=128 * MIB) as magistral:
        stream = magistral.stream("Hi", seed=1, thinking="off", system=None)
        next(stream)
        hog = mx.zeros((160 * MIB,), mx.uint8)
        mx.eval(hog)
        result = stream.result()
        del hog
        assert result.finish_reason == "memory"
        again = magistral.generate("Hi", seed=1, max_tokens=5, thinking="off", system=None)
        assert again.finish_reason == "length"


def test_what_cannot_fit_is_refused_before_loading(folder: Path) -> None:
    active = mx.get_active_memory()
    with pytest.raises(OutOfMemory, match="are missing"):
        Magistral.load(folder, context=4096, kv="full", memory_limit=64 * MIB)
    assert mx.get_active_memory() == active
