"""A GGUF model as a checkpoint: its configuration, its parts, its tower, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.layout import deinterleave_heads
from magistral_mlx.checkpoint.load import load_model, read_stored
from magistral_mlx.checkpoint.names import interleaved_heads
from magistral_mlx.config import QueryScaling, Yarn
from magistral_mlx.errors import CheckpointError, UnsupportedModel
from magistral_mlx.model.linear import stored_as
from magistral_mlx.quantization import Quantization
from tests.checkpoints import random_weights, tiny_config
from tests.data import GGUF
from tests.gguf_files import everything, gguf_name, write_mmproj, write_text_gguf

CONFIG = tiny_config(layers=1, hidden_size=256, intermediate_size=256)
WEIGHTS = random_weights(CONFIG, seed=3)


def write(path: Path, kind: str = "Q8_0", **metadata: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_gguf(path, CONFIG, WEIGHTS, everything(kind), **metadata)
    return path


def mmproj(path: Path, config: dict[str, Any] = CONFIG, **metadata: Any) -> Path:
    write_mmproj(path, config, random_weights(config, seed=3), everything("F16"), **metadata)
    return path


def test_the_configuration_is_that_of_the_model(tmp_path: Path):
    write(tmp_path / "model.gguf")
    mmproj(tmp_path / "mmproj-model.gguf")
    config = Checkpoint.open(tmp_path / "model.gguf").config
    text, vision = config.text, config.vision
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (256, 256, 1)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (4, 2, 64)
    assert (text.vocab_size, text.max_position_embeddings) == (1280, 4096)
    assert (text.rope_theta, text.tie_word_embeddings, text.yarn) == (1e6, False, None)
    assert text.rms_norm_eps == pytest.approx(1e-5)
    assert vision is not None
    assert (vision.hidden_size, vision.num_hidden_layers, vision.head_dim) == (128, 2, 64)
    assert (vision.image_size, vision.patch_size, vision.num_channels) == (1540, 14, 3)
    assert (config.spatial_merge_size, config.projector_bias, vision.rope_theta) == (2, False, 1e4)


def test_each_matrix_has_the_form_of_its_type():
    checkpoint = Checkpoint.open(GGUF / "small.Q4_K_M.gguf")
    layer = "language_model.model.layers.2."
    assert checkpoint.quantized[layer + "mlp.gate_proj.weight"] == Quantization(4, 32)
    assert checkpoint.quantized[layer + "mlp.down_proj.weight"] == Quantization(8, 32)
    assert checkpoint.tensors[layer + "mlp.down_proj.scales"].shape == (256, 24)
    assert checkpoint.blocks[layer + "mlp.down_proj.weight"].dtype == "Q6_K"


def test_a_head_that_mlx_has_no_form_for_stays_floating_point(tmp_path: Path):
    head = "language_model.lm_head.weight"
    checkpoint = Checkpoint.open(GGUF / "small.Q4_K_M.gguf")
    assert head not in checkpoint.quantized
    assert checkpoint.tensors[head].dtype == "F32"
    assert checkpoint.blocks[head].dtype == "Q6_K"
    exact = Checkpoint.open(write(tmp_path / "m.gguf", "Q8_0"))
    assert exact.quantized[head] == Quantization(8, 32)


def test_a_model_without_a_head_ties_it_to_the_embedding(tmp_path: Path):
    weights = {name: w for name, w in WEIGHTS.items() if "lm_head" not in name}
    write_text_gguf(tmp_path / "m.gguf", CONFIG, weights, everything("F16"))
    assert Checkpoint.open(tmp_path / "m.gguf").config.text.tie_word_embeddings


def test_yarn_and_the_scaling_of_queries_are_read(tmp_path: Path):
    scaling = "mistral3.rope.scaling."
    path = write(
        tmp_path / "m.gguf",
        **{
            scaling + "type": "yarn",
            scaling + "factor": 16.0,
            scaling + "original_context_length": 256,
            scaling + "yarn_beta_fast": 32.0,
            scaling + "yarn_beta_slow": 1.0,
            scaling + "yarn_log_multiplier": 1.0,
            "mistral3.attention.temperature_scale": 0.1,
        },
    )
    text = Checkpoint.open(path).config.text
    assert text.yarn == Yarn(16.0, 256, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0)
    assert text.yarn.query_key_factor == 1
    assert text.query_scaling == QueryScaling(pytest.approx(0.1), 256)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("mistral3.attention.head_count", 8, r"\[256, 256\], expected \[512, 256\]"),
        ("mistral3.attention.key_length", 32, "heads of 32 and 64"),
        ("mistral3.rope.dimension_count", 128, "heads of 64 and 128"),
        ("mistral3.block_count", 2, "counts 2 layers in its metadata and 1 in its tensors"),
        ("mistral3.block_count", 2**32 - 1, "counts 4294967295 layers"),
        ("mistral3.embedding_length", 512, r"expected \[1280, 512\]"),
        ("mistral3.vocab_size", 1000, r"expected \[1000, 256\]"),
        ("mistral3.feed_forward_length", 512, r"expected \[512, 256\]"),
        ("mistral3.context_length", 0, "says 0 for mistral3.context_length"),
        ("mistral3.rope.freq_base", float("inf"), "says inf for mistral3.rope.freq_base"),
        ("mistral3.rope.freq_base", float("nan"), "says nan"),
        ("mistral3.attention.layer_norm_rms_epsilon", "small", "says 'small'"),
        ("mistral3.rope.scaling.type", "longrope", "'longrope' rope scaling"),
        ("mistral3.expert_count", 8, "a mixture of experts"),
        ("mistral3.attention.sliding_window", 4096, "sliding-window"),
        ("tokenizer.ggml.pre", "llama-bpe", "tokenizer 'llama-bpe'"),
    ],
)
def test_metadata_that_contradict_the_model_are_told(tmp_path: Path, key, value, told):
    path = write(tmp_path / "m.gguf", "F16", **{key: value})
    with pytest.raises(CheckpointError, match=told) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "phi3"])
def test_another_architecture_is_refused_by_name(tmp_path: Path, architecture: str):
    path = write(tmp_path / "m.gguf")
    raw = path.read_bytes().replace(b"mistral3", architecture.encode().ljust(8, b"_"))
    path.write_bytes(raw)
    with pytest.raises(UnsupportedModel, match=f"architecture '{architecture}.*mistral3 or llama"):
        Checkpoint.open(path)


def test_a_tower_alone_is_no_model(tmp_path: Path):
    with pytest.raises(UnsupportedModel, match="architecture 'clip'"):
        Checkpoint.open(mmproj(tmp_path / "mmproj.gguf"))


# The tower beside it


def sees(path: Path) -> str | None:
    """The name of the file that the model's tower comes from."""
    tensors = Checkpoint.open(path).tensors
    patches = tensors.get("vision_tower.patch_conv.weight")
    return patches.file.name if patches else None


def test_of_several_towers_the_one_named_like_the_model_is_taken(tmp_path: Path):
    path = write(tmp_path / "Magistral-Small-2509-Q8_0.gguf")
    assert sees(path) is None
    mmproj(tmp_path / "mmproj-Devstral-Small-2507-F16.gguf")
    mmproj(tmp_path / "mmproj-Magistral-Small-2509-F32.gguf")
    mmproj(tmp_path / "mmproj-Magistral-Small-2509-F16.gguf")
    assert sees(path) == "mmproj-Magistral-Small-2509-F16.gguf"


def test_a_tower_of_another_width_or_kind_is_left_alone(tmp_path: Path):
    path = write(tmp_path / "model.gguf")
    other = tiny_config(layers=1)
    mmproj(tmp_path / "mmproj-model.gguf", other)
    mmproj(tmp_path / "mmproj-a.gguf", **{"clip.vision.projection_dim": 128})
    (tmp_path / "mmproj-broken.gguf").write_bytes(b"GGUF")
    assert sees(path) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("clip.projector_type", "qwen2vl_merger", "type 'qwen2vl_merger'.*'pixtral'"),
        ("clip.vision.projection_dim", 512, "projects images to 512 values.*256"),
        ("clip.vision.spatial_merge_size", 3, "merges 3 x 3 patches.*and 4 in all"),
        ("clip.vision.block_count", 9, "counts 9 layers.*and 2 in its tensors"),
        ("clip.vision.attention.layer_norm_epsilon", 1e-6, "epsilon of 1e-06"),
        ("clip.use_silu", False, "SiLU"),
        ("clip.vision.feed_forward_length", 512, "expected"),
    ],
)
def test_a_tower_that_is_named_and_does_not_fit_is_refused(tmp_path: Path, key, value, told):
    from magistral_mlx.checkpoint.gguf.checkpoint import open_gguf

    path = write(tmp_path / "model.gguf")
    other = mmproj(tmp_path / "mmproj-other.gguf", **{key: value})
    with pytest.raises(CheckpointError, match=told):
        Checkpoint.from_gguf(open_gguf(path, other))


def test_ollama_pairs_model_and_tower_by_its_manifest(tmp_path: Path):
    blobs, manifest = tmp_path / "blobs", tmp_path / "manifests/registry.ollama.ai/library/m/24b"
    blobs.mkdir()
    manifest.parent.mkdir(parents=True)
    model = write(blobs / "sha256-aa", "Q4_0")
    mmproj(blobs / "sha256-bb")
    write(blobs / "sha256-cc")
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
        for kind, digest in (("model", "aa"), ("projector", "bb"), ("template", "dd"))
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    assert sees(model) == "sha256-bb"
    assert sees(blobs / "sha256-cc") is None


# Files and folders


def split(path: Path, count: int) -> list[Path]:
    """The tensors of a model over several files, as llama.cpp's gguf-split leaves them."""
    import gguf

    reader = gguf.GGUFReader(path)
    parts = []
    for number in range(count):
        part = path.with_name(f"{path.stem}-{number + 1:05d}-of-{count:05d}.gguf")
        writer = gguf.GGUFWriter(part, "mistral3")
        for key, field in reader.fields.items() if number == 0 else ():
            if not key.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    path.unlink()
    return parts


def test_the_files_of_a_split_model_are_one_checkpoint(tmp_path: Path):
    whole = write(tmp_path / "model.gguf")
    wanted = {name: tensor.shape for name, tensor in Checkpoint.open(whole).tensors.items()}
    parts = split(whole, 3)
    for named in (parts[0], parts[2], tmp_path):
        found = Checkpoint.open(named)
        assert {name: tensor.shape for name, tensor in found.tensors.items()} == wanted
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 files.*model-00002-of-00003.gguf"):
        Checkpoint.open(parts[0])


def test_a_part_that_lost_its_name_is_told(tmp_path: Path):
    part = split(write(tmp_path / "model.gguf"), 2)[0]
    lost = part.rename(tmp_path / "lost.gguf")
    with pytest.raises(CheckpointError, match="one of 2 files"):
        Checkpoint.open(lost)


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path):
    write(tmp_path / "model-Q8_0.gguf")
    write(tmp_path / "model-F16.gguf", "F16")
    with pytest.raises(CheckpointError, match=r"2 GGUF models.*model-F16.gguf, model-Q8_0.gguf"):
        Checkpoint.open(tmp_path)


def test_a_truncated_file_says_how_much_is_missing(tmp_path: Path):
    path = write(tmp_path / "model.gguf")
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 100)
    with pytest.raises(CheckpointError, match=f"truncated: it has {size - 100:,} of"):
        Checkpoint.open(path)


def test_fingerprints_tell_one_file_from_another(tmp_path: Path):
    first, second = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", "Q4_0")
    prints = {Checkpoint.open(path).fingerprint() for path in (first, second, first)}
    assert len(prints) == 2


KINDS = {  # of a layer's matrices: alike in the form that they are laid out in, or not
    "q_proj Q4_0, k_proj Q4_1, v_proj Q4_K, gate_proj Q4_K, up_proj Q4_0": "all in one",
    "q_proj Q4_K, k_proj Q4_K, v_proj Q6_K, gate_proj Q5_K, up_proj Q8_0": "in part",
    "q_proj Q6_K, k_proj Q8_0, v_proj Q8_0, gate_proj Q8_0, up_proj Q6_K": "fitted and exact",
    "q_proj F16, k_proj Q8_0, v_proj F16, gate_proj Q4_1, up_proj Q4_K": "beside floats",
}


@pytest.mark.parametrize("kinds", KINDS, ids=KINDS.get)
def test_matrices_of_a_stack_lie_in_it_as_each_is_laid_out(tmp_path: Path, kinds: str):
    of = dict(pair.split() for pair in kinds.split(", "))
    names = {gguf_name(name): name.split(".")[-2] for name in WEIGHTS if ".layers." in name}
    write_text_gguf(
        tmp_path / "m.gguf",
        CONFIG,
        WEIGHTS,
        lambda name: "F32" if "norm" in name else of.get(names.get(name, ""), "Q8_0"),
    )
    checkpoint = Checkpoint.open(tmp_path / "m.gguf")
    model = load_model(checkpoint, mx.float32)
    loaded = dict(tree_flatten(model.parameters()))
    stacks = {path: held for path, held in stored_as(model).items() if len(held) > 1}
    assert stacks
    for path, held in stacks.items():
        alone = read_stored(checkpoint, held, mx.float32, compact=False)
        parts = []
        for name in held:
            part = np.array(alone[name].astype(loaded[path].dtype))
            heads = interleaved_heads(name, checkpoint.config)
            parts.append(deinterleave_heads(part, len(part) // heads if heads else None))
        np.testing.assert_array_equal(np.array(loaded[path]), np.concatenate(parts))
