"""Adapters in a loaded model: by request, in one pass, in the prefix cache and in the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from magistral_mlx import Magistral
from magistral_mlx.api.models import plan_model
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError, InvalidOption, ModelNotFound, OutOfMemory
from magistral_mlx.hub.adapters import adapter_name
from magistral_mlx.model.adapters import Adapter, AdapterRows, MatrixChange
from tests.adapter_files import write_adapter, write_peft_adapter
from tests.checkpoints import tiny_config, write_hf_checkpoint

PROMPT = "How many primes are there below one hundred, and which one of them is the largest?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 10, "ignore_eos": True, "logprobs": True}
Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    write_hf_checkpoint(root / "base", seed=1, names="new")
    write_peft_adapter(root / "one", seed=1)
    write_peft_adapter(root / "two", seed=2, rank=7, use_rslora=True)
    write_peft_adapter(root / "vision", seed=3)
    write_peft_adapter(root / "wide", seed=4, rank=64)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Magistral]:
    adapters = {"two": folder / "two"}
    with Magistral.load(
        folder / "base", adapter=folder / "one", adapters=adapters, dtype="float32", context=512
    ) as loaded:
        yield loaded


def answer(model: Magistral, adapter: str | None, **options: Any) -> list[tuple[int, float]]:
    result = model.generate(PROMPT, adapter=adapter, **GREEDY | options)
    assert result.logprobs is not None
    return [(token.id, token.logprob) for token in result.logprobs]


def test_each_request_gets_its_own_adapter(model: Magistral) -> None:
    base, one, two = (answer(model, name) for name in ("base", "one", "two"))
    assert model.adapters == ("one", "two")
    assert answer(model, None) == one
    assert len({tuple(base), tuple(one), tuple(two)}) == 3


def test_one_pass_serves_several_adapters(model: Magistral) -> None:
    names = ["base", "one", "two", "one"]
    alone = {name: answer(model, name) for name in names}
    requests = [model.submit(PROMPT, adapter=name, **GREEDY) for name in names]
    for name, request in zip(names, requests, strict=True):
        request.wait()
        (result,) = request.results
        assert result.logprobs is not None
        assert [token.id for token in result.logprobs] == [id for id, _ in alone[name]]
        found = [token.logprob for token in result.logprobs]
        assert np.allclose(found, [logprob for _, logprob in alone[name]], atol=1e-4)
        assert result.stats.passes <= len(found)


def test_a_prefix_is_reused_by_the_same_adapter_alone(folder: Path, tmp_path: Path) -> None:
    """In memory and on disk, also by a process that loads another adapter of that name."""
    text = " ".join(["words"] * 200)

    def reused(model: Magistral, adapter: str) -> int:
        return model.generate(text, adapter=adapter, max_tokens=1).stats.cached_tokens

    def load(source: Path) -> Magistral:
        return Magistral.load(folder / "base", adapters={"mine": source}, cache_dir=tmp_path)

    with load(folder / "one") as model:
        assert reused(model, "mine") == 0
        assert reused(model, "base") == 0
        assert reused(model, "mine") > 200
    with load(folder / "two") as model:
        assert reused(model, "mine") == 0
    with load(folder / "one") as model:
        assert reused(model, "mine") > 200


def test_adapters_come_and_go(folder: Path) -> None:
    with Magistral.load(folder / "base", dtype="float32", context=512) as model:
        base = answer(model, None)
        assert model.load_adapter(folder / "one") == "one"
        one = answer(model, "one")
        assert one != base == answer(model, None)
        before = model.activity.memory.weights
        model.load_adapter(folder / "two", "one")
        assert answer(model, "one") not in (one, base)
        assert model.activity.memory.weights > before
        model.drop_adapter("one")
        assert model.adapters == ()
        with pytest.raises(InvalidOption, match=r"no adapter 'one' here\. Known: base"):
            answer(model, "one")
        with pytest.raises(InvalidOption):
            model.drop_adapter("one")


@pytest.mark.parametrize("name", ["base", None, "", "three"])
def test_what_is_no_loaded_adapter_cannot_be_dropped(model: Magistral, name: Any) -> None:
    with pytest.raises(InvalidOption):
        model.drop_adapter(name)
    assert model.adapters == ("one", "two")


@pytest.mark.parametrize("name", [None, "", 3])
def test_what_is_no_name_of_an_adapter_cannot_be_loaded(model: Magistral, name: Any) -> None:
    with pytest.raises(InvalidOption, match=r"name_or_dir is .*; it must be a name, not empty"):
        model.load_adapter(name)


def test_its_bytes_are_in_the_plan(folder: Path) -> None:
    plain = plan_model(folder / "base", dtype="float32", context=512)
    with_one = plan_model(folder / "base", dtype="float32", context=512, adapter=folder / "one")
    stored = StoredAdapter.open(folder / "one", plain.model.config)
    parameters = 3 * 4 * (128 + 256 + 128 + 128 + 128 + 256 + 256 + 128)
    assert stored.nbytes(4) == with_one.model.adapters == 4 * parameters
    assert with_one.peak.weights - plain.peak.weights == 4 * parameters


def test_one_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    big = write_peft_adapter(tmp_path / "big", rank=4000)
    plan = plan_model(folder / "base", context=512)
    limit = max(64_000_000, plan.peak.total + 8_000_000)
    with Magistral.load(folder / "base", context=512, memory_limit=limit) as model:
        with pytest.raises(OutOfMemory, match="the adapter big takes"):
            model.load_adapter(big)
        assert model.adapters == ()
        assert model.generate("Hi", max_tokens=2).text is not None


def beside_the_plan(folder: Path, share: float) -> int:
    """Memory limit that leaves a share of what the adapter "wide" takes, with the work."""
    plain = plan_model(folder / "base", context=512)
    with_one = plan_model(folder / "base", context=512, adapter=folder / "wide")
    taken = with_one.peak.total - plain.peak.total
    assert taken > with_one.model.adapters
    return plain.peak.total + plain.buffer_cache + 2 * int(share * taken)


def test_one_that_is_loaded_later_takes_what_one_in_the_plan_does(folder: Path) -> None:
    limit = beside_the_plan(folder, share=0.99)
    with (
        Magistral.load(folder / "base", context=512, memory_limit=limit) as model,
        pytest.raises(OutOfMemory, match="the adapter wide takes"),
    ):
        model.load_adapter(folder / "wide")


def test_the_memory_of_a_dropped_one_comes_back_whoever_holds_its_answers(folder: Path) -> None:
    limit = beside_the_plan(folder, share=1.2)
    held = []
    with Magistral.load(folder / "base", context=512, memory_limit=limit) as model:
        for _ in range(2):
            model.load_adapter(folder / "wide")
            held.append(model.submit(PROMPT, adapter="wide", max_tokens=5, ignore_eos=True))
            model.drop_adapter("wide")
            assert held[-1].wait().finish_reason == "length"


def test_names_of_adapters(folder: Path) -> None:
    assert adapter_name("owner/My-LoRA@v1") == "My-LoRA"
    assert adapter_name(folder / "one") == "one"
    assert adapter_name("owner/base") == "adapter"
    for name in ("base", "", "a:b", "../x", "é"):
        with pytest.raises(InvalidOption, match="cannot be the name"):
            Magistral.load(folder / "base", adapters={name: folder / "one"})
    with pytest.raises(ModelNotFound, match="not the name of a repository"):
        Magistral.load(folder / "base", adapter=folder / "none")


def factors(out: int = 256, inner: int = 128, rank: int = 4, path: str = Q_PROJ) -> dict[str, Any]:
    return {
        f"{path}.lora_A.weight": np.ones((rank, inner), np.float32),
        f"{path}.lora_B.weight": np.ones((out, rank), np.float32),
    }


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another base": (
        factors(inner=192),
        {},
        "has the shape [4, 192], not [4, 128]. It was trained",
    ),
    "another rank": (
        {**factors(), f"{Q_PROJ}.lora_B.weight": np.ones((256, 3), np.float32)},
        {},
        "has the shape [256, 3], not [256, 4]",
    ),
    "a layer too many": (
        factors(path=Q_PROJ.replace("layers.0", "layers.3")),
        {},
        "changes a matrix that this model does not have",
    ),
    "another architecture": (
        factors(path="base_model.model.model.layers.0.mlp.experts.0.up_proj"),
        {},
        "changes a matrix that this model does not have",
    ),
    "one factor": (
        {f"{Q_PROJ}.lora_A.weight": np.ones((4, 128), np.float32)},
        {},
        "has no partner",
    ),
    "a norm": (
        {**factors(), "base_model.model.model.norm.weight": np.ones(128, np.float32)},
        {},
        "neither a factor of LoRA",
    ),
    "another method": (factors(), {"peft_type": "IA3"}, "an adapter of the type 'IA3'"),
    "pissa": (factors(), {"init_lora_weights": "pissa_niter_4"}, "changed the weights of its base"),
    "activated": (factors(), {"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
    "no number": (factors(), {"lora_alpha": "16"}, "says lora_alpha='16'; expected a finite"),
    "no pattern": (factors(), {"alpha_pattern": {"(": 1}}, "expected a regular expression"),
    "nothing": ({}, {}, "holds no tensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_adapter_is_one_line(tmp_path: Path, config: ModelConfig, name: str) -> None:
    tensors, settings, expected = WRONG[name]
    write_adapter(tmp_path, tensors, **settings)
    with pytest.raises(CheckpointError) as error:
        StoredAdapter.open(tmp_path, config)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return Checkpoint.open(folder / "base").config


def test_a_folder_without_an_adapter(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match=r"it has no adapter_config\.json"):
        StoredAdapter.open(tmp_path, config)
    settings = {"fine_tune_type": "full", "num_layers": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"lacks adapters.safetensors"):
        StoredAdapter.open(tmp_path, config)
    (tmp_path / "adapters.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    with pytest.raises(CheckpointError, match="it holds whole matrices"):
        StoredAdapter.open(tmp_path, config)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a pickle"):
        StoredAdapter.open(tmp_path, config)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": ')
    with pytest.raises(CheckpointError, match=r"not valid JSON .*\. Fetch or save the adapter"):
        StoredAdapter.open(tmp_path, config)


def test_not_a_number_in_an_adapter(folder: Path, tmp_path: Path) -> None:
    tensors = factors()
    tensors[f"{Q_PROJ}.lora_B.weight"][7, 1] = np.nan
    write_adapter(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="holds infinities or NaNs"):
        Magistral.load(folder / "base", adapter=tmp_path)


def test_a_whole_head_is_read_by_blocks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magistral_mlx.checkpoint.adapters.load._BLOCK", 9_999)
    head = np.random.default_rng(4).standard_normal((1280, 128), np.float32)
    write_adapter(tmp_path, {"base_model.model.lm_head.weight": head})
    model = load_model(Checkpoint.open(folder / "base"), mx.bfloat16)
    stored = StoredAdapter.open(tmp_path, model.config)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    (change,) = load_adapter(stored, model).changes.values()
    assert mx.get_peak_memory() - before < 1.5 * stored.nbytes(2)
    assert change.weight is not None
    assert mx.array_equal(change.weight, mx.array(head).astype(mx.bfloat16))
    head[1279, 1] = np.inf
    write_adapter(tmp_path, {"base_model.model.lm_head.weight": head})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .* holds infinities or NaNs"):
        load_adapter(stored, model)


def test_vision_in_a_text_model(tmp_path: Path) -> None:
    base = write_hf_checkpoint(tmp_path / "text", config=tiny_config(vision=False))
    path = "base_model.model.model.vision_tower.transformer.layers.0.attention.q_proj"
    write_adapter(tmp_path / "adapter", factors(128, 128, path=path))
    with pytest.raises(CheckpointError, match="this model does not have"):
        Magistral.load(base, adapter=tmp_path / "adapter")


def test_an_adapter_is_computed_for_its_rows_alone() -> None:
    computed: dict[str, list[list[float]]] = {"one": [], "two": []}

    def adapter(name: str, paths: str) -> Adapter:
        def change(x: mx.array, y: mx.array) -> mx.array:
            computed[name].append(x[:, 0, 0].tolist())
            return y + (100 if name == "one" else 1000)

        return Adapter(0, 0, dict.fromkeys(paths.split(), cast(MatrixChange, change)))

    one, two, rows = adapter("one", "q v"), adapter("two", "q"), AdapterRows()
    x = mx.arange(5, dtype=mx.float32)[:, None, None]  # (B, 1, 1)
    with rows.using([two, None, one, two, one]):
        found = {path: rows.changed(path, x, 10 * x).reshape(-1).tolist() for path in "qvo"}
    assert found == {
        "q": [1000, 10, 120, 1030, 140],
        "v": [0, 10, 120, 30, 140],
        "o": [0, 10, 20, 30, 40],
    }
    assert computed == {"one": [[2, 4], [2, 4]], "two": [[0, 3]]}
    with rows.using([one, one]):
        assert rows.changed("v", x[:2], x[:2]).reshape(-1).tolist() == [100, 101]
    assert not rows
