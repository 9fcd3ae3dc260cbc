"""What a conversion refuses to read, and what it takes along."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from magistral_convert import ConvertOptions, convert
from magistral_mlx.errors import CheckpointError, MagistralError, ModelNotFound, TokenizerError
from tests.checkpoints import (
    SYSTEM_PROMPT,
    params_of,
    random_weights,
    tiny_config,
    write_hf_checkpoint,
    write_mistral_checkpoint,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def refusal(kind: type[MagistralError], source: str | Path, target: Path) -> str:
    """The message of the error; nothing may be left of the target."""
    with pytest.raises(kind) as error:
        convert(source, target)
    assert not target.exists()
    assert not target.with_name(target.name + ".partial").exists()
    return str(error.value)


def test_no_such_model(tmp_path: Path):
    assert "there is no folder" in refusal(ModelNotFound, "no such thing", tmp_path / "out")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    message = refusal(CheckpointError, tmp_path / "empty", tmp_path / "out")
    assert "neither config.json nor params.json" in message


def test_a_missing_tensor_is_named(tmp_path: Path):
    weights = random_weights(tiny_config(), 0)
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    source = write_hf_checkpoint(tmp_path / "source", weights=weights)
    message = refusal(CheckpointError, source, tmp_path / "out")
    assert "lacks the tensor language_model.model.layers.1.mlp.up_proj.weight" in message


def test_an_unknown_tensor_is_named(tmp_path: Path):
    weights = random_weights(tiny_config(), 0)
    weights["language_model.model.layers.1.mlp.extra.weight"] = weights[
        "language_model.model.norm.weight"
    ]
    source = write_hf_checkpoint(tmp_path / "source", weights=weights)
    message = refusal(CheckpointError, source, tmp_path / "out")
    assert "holds the tensor language_model.model.layers.1.mlp.extra.weight" in message


def test_a_tensor_of_another_shape_is_named(tmp_path: Path):
    weights = random_weights(tiny_config(), 0)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name][:100]
    source = write_hf_checkpoint(tmp_path / "source", weights=weights)
    message = refusal(CheckpointError, source, tmp_path / "out")
    assert name in message
    assert "[100, 128], expected [256, 128]" in message


def test_a_truncated_shard_is_named(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    shard = source / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    message = refusal(CheckpointError, source, tmp_path / "out")
    assert f"{shard} is truncated" in message


def test_a_shard_that_shrinks_during_the_work_is_named(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    shard = source / "model-00002-of-00002.safetensors"
    with pytest.raises(CheckpointError, match="has become shorter than its header says"):
        convert(source, tmp_path / "out", on_progress=lambda report: os.truncate(shard, 5000))
    assert not (tmp_path / "out").exists()


def test_a_quantized_source_is_refused(tmp_path: Path):
    source = convert(write_hf_checkpoint(tmp_path / "source"), tmp_path / "4bit")
    message = refusal(CheckpointError, source, tmp_path / "out")
    assert "is quantized already (4 bits, affine)" in message


def test_a_missing_tokenizer_stops_before_the_work(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    (source / "tekken.json").unlink()
    message = refusal(TokenizerError, source, tmp_path / "out")
    assert "has no tekken.json" in message
    assert "--tokenizer" in message


def test_a_damaged_tokenizer_stops_before_the_work(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    (source / "tekken.json").write_text('{"vocab": []}')
    message = refusal(TokenizerError, source, tmp_path / "out")
    assert "is not a Tekken tokenizer" in message


def test_the_tokenizer_may_come_from_elsewhere(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    tekken = (source / "tekken.json").rename(tmp_path / "tekken.json")
    folder = convert(source, tmp_path / "out", ConvertOptions(tokenizer=str(tekken)))
    assert (folder / "tekken.json").read_bytes() == tekken.read_bytes()


def test_everything_that_belongs_to_the_model_is_taken_along(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "optimizer.pt").write_text("heavy")
    folder = convert(source, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        ".magistral-mlx.json",
        "README.md",
        "SYSTEM_PROMPT.txt",
        "config.json",
        "generation_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tekken.json",
        "tokenizer_config.json",
    }
    for name in ("SYSTEM_PROMPT.txt", "generation_config.json", "tekken.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_mistrals_layout_gets_the_files_that_it_lacks(tmp_path: Path):
    folder = convert(write_mistral_checkpoint(tmp_path / "source"), tmp_path / "out")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
    assert (folder / "SYSTEM_PROMPT.txt").read_text() == SYSTEM_PROMPT
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mistral3"
    assert config["architectures"] == ["Mistral3ForConditionalGeneration"]
    assert config["image_token_index"] == 10
    assert config["vision_config"]["model_type"] == "pixtral"


def test_a_text_only_model_in_mistrals_layout_becomes_a_plain_mistral(tmp_path: Path):
    config = tiny_config(vision=False)
    source = write_mistral_checkpoint(tmp_path / "source", config=config)
    assert "vision_encoder" not in params_of(config)
    folder = convert(source, tmp_path / "out")
    written = json.loads((folder / "config.json").read_text())
    assert written["model_type"] == "mistral"
    assert written["hidden_size"] == 128
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert "model.embed_tokens.weight" in index["weight_map"]


def test_settings_of_a_newer_configuration_are_written_where_every_runtime_looks(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source", names="new")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["dtype"] = "float32"
    config["_name_or_path"] = "/home/someone/secret"
    (source / "config.json").write_text(json.dumps(config))
    written = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert written["text_config"]["rope_theta"] == 1e6
    assert written["text_config"]["rope_parameters"]["rope_theta"] == 1e6
    assert written["vision_config"]["rope_theta"] == 1e4
    assert written["text_config"]["dtype"] == written["dtype"] == "bfloat16"
    assert "_name_or_path" not in written


def test_the_card_says_what_it_was_made_from_and_how_to_run_it(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "Magistral-Small-2509")
    options = ConvertOptions(recipe="4bit-plus", name="someone/magistral-plus")
    card = (convert(source, tmp_path / "out", options) / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n")
    lines = front.splitlines()
    assert "base_model: mistralai/Magistral-Small-2509" in lines
    assert "base_model_relation: quantized" in lines
    assert "license: apache-2.0" in lines
    assert "library_name: mlx" in lines
    assert "pipeline_tag: image-text-to-text" in lines
    assert "- mlx" in lines
    assert "# someone/magistral-plus" in body
    assert "magistral-mlx generate --model someone/magistral-plus" in body
    assert "bits a weight" in body
    assert "6 bits in the head" in body
    assert "| vision tower and projector | bfloat16 |" in body


def test_the_card_of_what_is_not_quantized_does_not_say_so(tmp_path: Path):
    source = write_hf_checkpoint(
        tmp_path / "Magistral-Small-2509", config=tiny_config(vision=False, layers=1)
    )
    card = (
        convert(source, tmp_path / "out", ConvertOptions(mode="none")) / "README.md"
    ).read_text()
    assert "base_model: mistralai/Magistral-Small-2509" in card
    assert "base_model_relation" not in card
    assert "| decoder | bfloat16 |" in card
    assert "vision" not in card


def test_the_card_tells_the_bits_of_the_tower_apart_from_a_mixture_in_the_decoder(tmp_path: Path):
    options = ConvertOptions(recipe="4bit-plus", quantize_vision=True)
    folder = convert(write_hf_checkpoint(tmp_path / "source"), tmp_path / "out", options)
    card = (folder / "README.md").read_text()
    assert "| vision tower and projector | 4 bits, groups of 64 |" in card


def test_quality_that_an_earlier_conversion_has_recorded_is_not_that_of_the_next(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source", config=tiny_config(vision=False, layers=1))
    config = json.loads((source / "config.json").read_text())
    config["magistral_mlx"] = {"quality": {"divergence": 0.9, "same_top": 0.5, "tokens": 4096}}
    (source / "config.json").write_text(json.dumps(config))
    folder = convert(source, tmp_path / "out", ConvertOptions(calibration=("none",)))
    assert "magistral_mlx" not in json.loads((folder / "config.json").read_text())


def test_the_card_of_an_unknown_checkpoint_claims_no_base(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "my-own", config=tiny_config(vision=False))
    config = json.loads((source / "config.json").read_text())
    config["_name_or_path"] = str(source)  # a folder is no repository
    (source / "config.json").write_text(json.dumps(config))
    card = (convert(source, tmp_path / "out") / "README.md").read_text()
    assert "base_model" not in card
    assert "pipeline_tag: text-generation" in card
    assert "mlx-vlm" not in card
