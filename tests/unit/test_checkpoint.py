"""A checkpoint folder is read whole or refused with one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magistral_convert import ConvertOptions, convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.checkpoint.names import canonical_name, expected_tensors
from magistral_mlx.config_files import config_from_hf
from magistral_mlx.errors import CheckpointError, UnsupportedModel
from magistral_mlx.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES, Quantization, infer
from tests.checkpoints import (
    random_weights,
    tiny_config,
    write_hf_checkpoint,
    write_mistral_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf_checkpoint(tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            config[part][inner] = value
        else:
            config[part] = value
    path.write_text(json.dumps(config))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# What a folder can be


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert "neither config.json nor params.json" in refusal(tmp_path)


def test_a_folder_without_weights_says_which_files_it_wants(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    assert "holds no weights: expected model*.safetensors" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 weight files are missing, model-00002-of-00002.safetensors" in refusal(folder)


def test_a_truncated_shard_is_named_in_the_error(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refusal(folder)
    assert f"{shard} is truncated: it has {size - 100:,} of {size:,} bytes" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"\x10\0\0\0\0\0\0\0{not json at all", b"\xff" * 64, b"<!doctype html><html>"],
)
def test_a_shard_that_is_something_else_is_named(folder: Path, content: bytes) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(content)
    assert f"{shard} is " in refusal(folder)


def test_a_header_that_lies_about_its_sizes_is_refused(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 4
    encoded = json.dumps(header).encode()
    shard.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
    assert f"entry for {name}" in refusal(folder)


def test_a_damaged_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(folder)


def test_a_config_that_lacks_a_size_names_it(folder: Path) -> None:
    edit_config(folder, text_config__hidden_size=None)
    assert "lacks a usable 'hidden_size'" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"text_config__model_type": "mistral4"},
        {"text_config__sliding_window": 4096},
        {"text_config__rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}},
        {"text_config__hidden_act": "gelu"},
        {"vision_config__model_type": "siglip"},
        {"vision_feature_layer": -2},
    ],
)
def test_another_architecture_is_refused_with_those_that_run(
    folder: Path, changes: dict[str, Any]
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModel, match="This runtime runs mistral3"):
        Checkpoint.open(folder)


# Which tensors it must hold


def test_a_wrong_shape_names_tensor_shapes_and_file(folder: Path) -> None:
    edit_config(folder, text_config__intermediate_size=512)
    message = refusal(folder)
    assert "layers.0.mlp.gate_proj.weight in " in message
    assert "has the shape [256, 128], expected [512, 128]" in message


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), seed=0)
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    folder = write_hf_checkpoint(tmp_path, weights=weights)
    assert "lacks the tensor language_model.model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_an_unknown_tensor_is_named_as_it_is_spelled(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), seed=0)
    weights["language_model.model.layers.0.self_attn.q_norm.weight"] = np.ones(64, np.float32)
    folder = write_hf_checkpoint(tmp_path, weights=weights)
    assert "holds the tensor language_model.model.layers.0.self_attn.q_norm" in refusal(folder)


def test_half_a_vision_tower_is_incomplete(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), seed=0)
    weights = {name: w for name, w in weights.items() if "vision_tower" not in name}
    folder = write_hf_checkpoint(tmp_path, weights=weights)
    assert "lacks the tensor vision_tower.patch_conv.weight and" in refusal(folder)


def test_a_text_only_conversion_may_keep_the_vision_configuration(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), seed=0)
    weights = {name: w for name, w in weights.items() if name.startswith("language_model")}
    assert Checkpoint.open(write_hf_checkpoint(tmp_path, weights=weights)).config.vision is None


def test_both_layouts_at_once_read_the_hugging_face_one(folder: Path) -> None:
    write_mistral_checkpoint(folder)
    assert Checkpoint.open(folder).layout == "hf"


def test_the_configuration_is_the_same_in_every_spelling(tmp_path: Path) -> None:
    folders = [
        write_hf_checkpoint(tmp_path / "classic", names="classic"),
        write_hf_checkpoint(tmp_path / "new", names="new"),
        write_mistral_checkpoint(tmp_path / "mistral"),
    ]
    opened = [Checkpoint.open(folder) for folder in folders]
    assert opened[0].config == opened[1].config == opened[2].config
    assert set(opened[0].tensors) == set(opened[1].tensors) == set(opened[2].tensors)


# Names


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("model.layers.7.mlp.up_proj.scales", "language_model.model.layers.7.mlp.up_proj.scales"),
        ("lm_head.biases", "language_model.lm_head.biases"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        (
            "vision_tower.vision_model.transformer.layers.3.ffn_norm.weight",
            "vision_tower.transformer.layers.3.ffn_norm.weight",
        ),
        (
            "vision_encoder.transformer.layers.3.attention.wo.weight",
            "vision_tower.transformer.layers.3.attention.o_proj.weight",
        ),
        (
            "layers.11.ffn_norm.weight",
            "language_model.model.layers.11.post_attention_layernorm.weight",
        ),
        ("vision_language_adapter.w_out.bias", "multi_modal_projector.linear_2.bias"),
        ("somebody.elses.tensor", "somebody.elses.tensor"),
    ],
)  # fmt: skip
def test_a_name_of_any_dialect_has_one_canonical_form(stored: str, name: str) -> None:
    assert canonical_name(stored) == name


def test_the_full_size_model_has_24_billion_parameters() -> None:
    config = config_from_hf(
        tiny_config()
        | {
            "text_config": {
                "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "vocab_size": 131072, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                "rope_theta": 1e9,
            },
            "vision_config": {
                "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "head_dim": 64, "image_size": 1540, "patch_size": 14,
            },
        }
    )  # fmt: skip
    shapes = expected_tensors(config).values()
    assert sum(int(np.prod(shape)) for shape in shapes) == 24_011_361_280


# Quantized parts


@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_a_scheme_is_told_from_what_mlx_stores(bits: int, group_size: int) -> None:
    scheme = Quantization(bits, group_size)
    parts = mx.quantize(mx.random.normal((8, 384)), group_size=group_size, bits=bits)
    weight, scales, _ = (part.shape for part in parts)
    assert infer((8, 384), weight, scales, has_biases=True) == scheme
    assert (scheme.weight_shape((8, 384)), scheme.scales_shape((8, 384))) == (weight, scales)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_a_floating_point_mode_is_told_from_what_mlx_stores(mode: Any) -> None:
    weight, scales = mx.quantize(mx.random.normal((8, 384)), mode=mode)
    found = infer((8, 384), weight.shape, scales.shape, has_biases=False)
    assert found is not None
    assert found.mode == mode
    assert weight.nbytes + scales.nbytes == found.nbytes((8, 384))


def test_shapes_that_no_scheme_stores_are_not_guessed_at() -> None:
    assert infer((8, 384), (8, 49), (8, 6), has_biases=True) is None
    assert infer((8, 384), (8, 48), (8, 7), has_biases=True) is None
    assert infer((8, 384), (7, 48), (7, 6), has_biases=True) is None
    assert infer((8, 384), (8, 48), (8, 6), has_biases=False) is None


# Loading


def test_loading_reports_every_byte_of_the_decoder(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    seen: list[tuple[int, int]] = []
    load_model(checkpoint, on_progress=lambda done, total: seen.append((done, total)))
    decoder = sum(
        t.nbytes for name, t in checkpoint.tensors.items() if name.startswith("language_model")
    )
    assert seen[-1] == (decoder, decoder)
    assert decoder < checkpoint.nbytes


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_model_computes_in_the_dtype_it_was_loaded_in(folder: Path, dtype: mx.Dtype) -> None:
    model = load_model(Checkpoint.open(folder), dtype)
    h = model(model.embed(mx.array([[1, 2, 3]])), model.make_caches())
    assert model.logits(h).dtype == dtype


def test_a_large_model_keeps_its_scales_small_and_computes_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the scales of a tiny model were many gigabytes."""
    from magistral_convert import convert
    from magistral_mlx.checkpoint import load

    checkpoint = Checkpoint.open(convert(folder, folder.parent / "4bit"))
    tokens = mx.array([[5, 6, 7, 8, 9]])
    results = []
    for limit in (1 << 40, 0):
        monkeypatch.setattr(load, "_LARGE_SCALES", limit)
        model = load_model(checkpoint, mx.float32)
        scales = model.language_model.model.layers[0].self_attn.o_proj.scales
        assert scales.dtype == (mx.float32 if limit else mx.bfloat16)
        caches = model.make_caches()
        for part in (tokens[:, :4], tokens[:, 4:]):  # several rows, and one
            h = model(model.embed(part), caches)
        results.append(np.array(model.logits(h)))
    np.testing.assert_array_equal(results[0], results[1])


# An output head that the configuration says is the embedding


def tied_with_head(folder: Path, head: str, dtype: str = "bfloat16", shards: int = 2) -> Path:
    """Write a tied model that stores a head as well: "same" as the embedding, or "other"."""
    weights = random_weights(tiny_config(), seed=5)
    embedding = weights["language_model.model.embed_tokens.weight"]
    values = embedding.copy()
    if head == "other":
        values[-1, -1] += 1  # the last of all values
    weights["language_model.lm_head.weight"] = values
    write_hf_checkpoint(folder, weights=weights, dtype=dtype, shards=shards)
    edit_config(folder, tie_word_embeddings=True, text_config__tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_head_that_equals_the_tied_embedding_is_dropped(
    tmp_path: Path, dtype: str, shards: int
) -> None:
    checkpoint = Checkpoint.open(tied_with_head(tmp_path, "same", dtype, shards))
    assert checkpoint.config.text.tie_word_embeddings
    assert "language_model.lm_head.weight" not in checkpoint.tensors
    assert checkpoint.notes == ()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_head_that_differs_from_the_tied_embedding_is_used(tmp_path: Path, dtype: str) -> None:
    checkpoint = Checkpoint.open(tied_with_head(tmp_path, "other", dtype))
    assert not checkpoint.config.text.tie_word_embeddings
    assert "language_model.lm_head.weight" in checkpoint.tensors
    (note,) = checkpoint.notes
    assert "the stored head is used" in note
    untied = write_hf_checkpoint(
        tmp_path / "untied", weights=stored_values(checkpoint), dtype="float32"
    )
    np.testing.assert_array_equal(logits_of(checkpoint), logits_of(Checkpoint.open(untied)))


def test_a_tied_model_without_a_stored_head_is_as_it_was(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True) | {"tie_word_embeddings": True}
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path, config=config))
    assert checkpoint.config.text.tie_word_embeddings
    assert checkpoint.notes == ()


@pytest.mark.parametrize("head", ["same", "other"])
def test_the_conversion_of_a_tied_model_is_tied_if_its_head_is(tmp_path: Path, head: str) -> None:
    source = tied_with_head(tmp_path / "source", head)
    converted = Checkpoint.open(convert(source, tmp_path / "out", ConvertOptions(bits=8)))
    tied = head == "same"
    assert converted.config.text.tie_word_embeddings is tied
    assert ("language_model.lm_head.weight" in converted.tensors) is not tied
    assert converted.notes == ()
    # A conversion by others keeps the head and the claim that it is the embedding.
    edit_config(tmp_path / "out", tie_word_embeddings=True)
    again = Checkpoint.open(tmp_path / "out")
    assert again.config.text.tie_word_embeddings is tied


def stored_values(checkpoint: Checkpoint) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for file in checkpoint.files:
        arrays |= mx.load(str(file))  # type: ignore[arg-type]
    return {name: np.array(array.astype(mx.float32)) for name, array in arrays.items()}


def logits_of(checkpoint: Checkpoint) -> Any:
    model = load_model(checkpoint, mx.float32)
    tokens = mx.array([[1, 1003, 1042, 1200]])
    return np.array(model.logits(model(model.embed(tokens), model.make_caches())))


# Scales of another dtype than a quantizer writes


@pytest.mark.parametrize(
    ("mode", "part", "dtype"),
    [
        ("affine", "scales", "I16"),
        ("affine", "biases", "U16"),
        ("affine", "biases", "F16"),
        ("affine", "scales", "F16"),
        ("mxfp4", "scales", "I8"),
        ("nvfp4", "scales", "BOOL"),
        ("mxfp8", "scales", "F8_E4M3"),
    ],
)
def test_scales_of_a_wrong_dtype_are_refused(
    folder: Path, tmp_path: Path, mode: str, part: str, dtype: str
) -> None:
    out = convert(folder, tmp_path / "out", ConvertOptions(mode=mode))
    shard = out / "model-00001-of-00001.safetensors"
    name = f"language_model.model.layers.0.mlp.up_proj.{part}"
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name]["dtype"] = dtype
    encoded = json.dumps(header).encode()
    shard.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
    message = refusal(out)
    assert "language_model.model.layers.0.mlp.up_proj.scales" in message
    assert dtype in message
