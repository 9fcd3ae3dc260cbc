"""FP8 checkpoints against torch's float8_e4m3fn: the same values, converted and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from magistral_convert import ConvertOptions, convert, source_rows
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.errors import CheckpointError
from magistral_mlx.memory.peak import loaded_weights
from tests.checkpoints import (
    tiny_config,
    write_hf_checkpoint,
    write_mistral_checkpoint,
)
from tests.fp8_files import Granularity, Spelling, quantize_folder

# Neither rows nor columns are multiples of 128 everywhere: 320, 200, 3 heads of 64, 1280.
CONFIG = tiny_config(
    layers=2,
    vision=False,
    hidden_size=320,
    intermediate_size=200,
    num_attention_heads=6,
    num_key_value_heads=3,
)
IDS = mx.array(np.random.default_rng(3).integers(1000, 1280, (1, 12)))
UNQUANTIZED = ConvertOptions(mode="none")
KINDS: list[tuple[Granularity, Spelling, torch.dtype]] = [
    ("tensor", "transformers", torch.bfloat16),
    ("tensor", "compressed-tensors", torch.float32),
    ("row", "compressed-tensors", torch.bfloat16),
    ("block", "transformers", torch.float32),
    ("block", "transformers", torch.bfloat16),
    ("block", "compressed-tensors", torch.float16),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("plain") / "model", seed=4, config=CONFIG)


def converted(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def logits(folder: Path) -> np.ndarray[Any, Any]:
    model = load_model(Checkpoint.open(folder), mx.float32)
    return np.array(model.logits(model(model.embed(IDS), model.make_caches())))


def test_every_code_has_torchs_value():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    np.testing.assert_array_equal(source_rows._FP8_VALUES, codes.float().numpy())
    ours = mx.from_fp8(mx.arange(256).astype(mx.uint8), mx.float32)
    np.testing.assert_array_equal(np.array(ours), codes.float().numpy())


@pytest.mark.parametrize(("granularity", "spelling", "dtype"), KINDS)
def test_a_conversion_without_quantization_is_torchs_product_rounded(
    plain: Path,
    tmp_path: Path,
    granularity: Granularity,
    spelling: Spelling,
    dtype: torch.dtype,
):
    values = quantize_folder(
        plain, tmp_path / "fp8", granularity=granularity, spelling=spelling, scale_dtype=dtype
    )
    found = converted(convert(tmp_path / "fp8", tmp_path / "out", UNQUANTIZED))
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(found[name], value.bfloat16()), name


@pytest.mark.parametrize(("granularity", "spelling", "dtype"), KINDS)
def test_loaded_as_it_is_it_computes_as_its_values_do(
    plain: Path,
    tmp_path: Path,
    granularity: Granularity,
    spelling: Spelling,
    dtype: torch.dtype,
):
    values = quantize_folder(
        plain, tmp_path / "fp8", granularity=granularity, spelling=spelling, scale_dtype=dtype
    )
    reference = write_hf_checkpoint(tmp_path / "reference", seed=4, config=CONFIG, shards=1)
    (reference / "model.safetensors.index.json").unlink()
    save_file(values, reference / "model-00001-of-00001.safetensors")
    np.testing.assert_array_equal(logits(tmp_path / "fp8"), logits(reference))


def test_the_plan_counts_its_weights_as_floats(plain: Path, tmp_path: Path):
    quantize_folder(plain, tmp_path / "fp8", granularity="block")
    loaded = loaded_weights(Checkpoint.open(tmp_path / "fp8"), 4)
    assert loaded == loaded_weights(Checkpoint.open(plain), 4)
    model = load_model(Checkpoint.open(tmp_path / "fp8"), mx.float32)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    assert loaded.decoder == sum(array.nbytes for array in arrays)


def test_quantized_to_4_bits_it_equals_the_conversion_of_its_bfloat16_values(
    plain: Path, tmp_path: Path
):
    quantize_folder(plain, tmp_path / "fp8", granularity="block")
    options = ConvertOptions(bits=4, group_size=32)
    widened = convert(tmp_path / "fp8", tmp_path / "bfloat16", UNQUANTIZED)
    direct = converted(convert(tmp_path / "fp8", tmp_path / "direct", options))
    config = widened / "config.json"  # without its note that nothing is quantized
    config.write_text((plain / "config.json").read_text())
    two_steps = converted(convert(widened, tmp_path / "two-steps", options))
    assert direct.keys() == two_steps.keys()
    for name, tensor in direct.items():
        assert torch.equal(tensor, two_steps[name]), name


def test_mistrals_layout_has_its_rows_put_in_order(tmp_path: Path):
    config = tiny_config(layers=2)
    mistral = write_mistral_checkpoint(tmp_path / "mistral", seed=4, config=config)
    quantize_folder(
        mistral, tmp_path / "fp8", granularity="row", spelling="mistral", scale_dtype=torch.float32
    )
    same = write_hf_checkpoint(tmp_path / "hf", seed=4, config=config)
    quantize_folder(same, tmp_path / "hf-fp8", granularity="row", scale_dtype=torch.float32)
    np.testing.assert_array_equal(logits(tmp_path / "fp8"), logits(tmp_path / "hf-fp8"))
    left = converted(convert(tmp_path / "fp8", tmp_path / "a", UNQUANTIZED))
    right = converted(convert(tmp_path / "hf-fp8", tmp_path / "b", UNQUANTIZED))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# What is wrong with a scale, or with a value

MATRIX = "model.layers.1.mlp.up_proj.weight"
SCALE = "model.layers.1.mlp.up_proj.weight_scale_inv"


def without_scale(stored: dict[str, torch.Tensor]) -> None:
    stored.pop(SCALE, None)


def scale_of_integers(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE] = torch.ones((2, 3), dtype=torch.int32)


def scale_in_fp8(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE] = torch.ones((2, 3)).to(torch.float8_e4m3fn)


def scale_of_other_blocks(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE] = torch.ones((4, 5))


def two_scales(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE.removesuffix("_inv")] = stored[SCALE].clone()


def five_bits_of_exponent(stored: dict[str, torch.Tensor]) -> None:
    if MATRIX in stored:
        stored[MATRIX] = stored[MATRIX].float().to(torch.float8_e5m2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without_scale, "without a scale"),
        (scale_of_integers, "a scale stored as I32"),
        (scale_in_fp8, "a scale stored as F8_E4M3"),
        (scale_of_other_blocks, "one for each block of 128 x 128"),
        (two_scales, "both scales of one weight"),
        (five_bits_of_exponent, "is stored as F8_E5M2"),
    ],
)
def test_what_cannot_be_dequantized_is_refused(
    plain: Path, tmp_path: Path, edit: Any, message: str
):
    quantize_folder(plain, tmp_path / "fp8", granularity="block", edit=edit)
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoint.open(tmp_path / "fp8")
    assert "model.layers.1.mlp.up_proj" in str(error.value)


def nan_code(stored: dict[str, torch.Tensor]) -> None:
    if MATRIX in stored:
        stored[MATRIX][7, 9] = torch.tensor(float("nan"))


def infinite_scale(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE][-1, -1] = float("inf")


def nan_scale(stored: dict[str, torch.Tensor]) -> None:
    if SCALE in stored:
        stored[SCALE][0, 1] = float("nan")


@pytest.mark.parametrize("edit", [nan_code, infinite_scale, nan_scale])
def test_values_that_are_no_numbers_are_refused(plain: Path, tmp_path: Path, edit: Any):
    quantize_folder(plain, tmp_path / "fp8", granularity="block", edit=edit)
    with pytest.raises(CheckpointError, match=f"{MATRIX} in .* holds infinities"):
        convert(tmp_path / "fp8", tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"{MATRIX} in .* holds infinities"):
        load_model(Checkpoint.open(tmp_path / "fp8"))
