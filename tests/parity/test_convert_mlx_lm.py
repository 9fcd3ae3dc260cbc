"""Our conversion against mlx-lm's own of the same input: the same bytes, the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_model as load_in_mlx_lm
from mlx_lm.utils import quantize_model, save_model
from numpy.typing import NDArray

from magistral_convert import ConvertOptions, convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import StoredTensor, read_header
from magistral_mlx.checkpoint.load import load_model
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint

IDS = np.random.default_rng(3).integers(1000, 1280, 40).astype(np.int32)
OPTIONS = [
    *(ConvertOptions(bits=bits) for bits in (2, 3, 4, 5, 6, 8)),
    ConvertOptions(group_size=32),
    ConvertOptions(group_size=128),
    ConvertOptions(mode="mxfp4"),
    ConvertOptions(mode="nvfp4"),
    ConvertOptions(mode="mxfp8"),
    ConvertOptions(recipe="4bit-plus"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return write_hf_checkpoint(folder, seed=11, config=tiny_config(layers=9))


def by_mlx_lm(source: Path, target: Path, options: ConvertOptions) -> Path:
    """mlx-lm's conversion of the text part, with what the options mean there."""
    model, config = load_in_mlx_lm(source, lazy=True)
    scheme = options.scheme
    predicate = None
    if options.recipe == "4bit-plus":
        predicate = mixed_quant_predicate_builder("mixed_4_6", model, scheme.group_size)
    model, _ = quantize_model(
        model, config, scheme.group_size, scheme.bits, scheme.mode, quant_predicate=predicate
    )
    save_model(target, model)
    return target


def stored(folder: Path) -> dict[str, StoredTensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def content(tensor: StoredTensor) -> tuple[str, tuple[int, ...], bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        return tensor.dtype, tensor.shape, stream.read(tensor.nbytes)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.label)
def test_the_text_part_equals_mlx_lms_conversion_byte_for_byte(
    options: ConvertOptions, source: Path, tmp_path: Path
):
    ours = stored(convert(source, tmp_path / "ours", options))
    theirs = stored(by_mlx_lm(source, tmp_path / "theirs", options))
    assert {name for name in ours if name.startswith("language_model.")} == set(theirs)
    for name, tensor in theirs.items():
        assert content(ours[name]) == content(tensor), name


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_float_types_are_cast_as_mlx_lm_casts_them(dtype: str, tmp_path: Path):
    config = tiny_config(vision=False, layers=1)
    between = {  # values that bfloat16 has to round
        name: values * np.float32(1.0007) for name, values in random_weights(config, 1).items()
    }
    source = write_hf_checkpoint(tmp_path / "source", config=config, weights=between, dtype=dtype)
    ours = stored(convert(source, tmp_path / "ours"))

    model, raw = load_in_mlx_lm(source, lazy=True)
    model.set_dtype(mx.bfloat16)
    model, _ = quantize_model(model, raw, 64, 4)
    save_model(tmp_path / "theirs", model)
    theirs = stored(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    for name in theirs:
        assert content(ours[name]) == content(theirs[name]), name


@pytest.mark.parametrize("names", ["classic", "new"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.label)
def test_mlx_lm_loads_it_and_gives_the_same_logits(options: ConvertOptions, names, tmp_path: Path):
    config = tiny_config(layers=9, names=names)
    source = write_hf_checkpoint(tmp_path / "source", seed=12, config=config, names=names)
    folder = convert(source, tmp_path / "ours", options)
    assert_same_logits(our_logits(folder), mlx_lm_logits(folder))


def test_a_text_only_model_keeps_its_type_and_loads_in_mlx_lm(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source", seed=2, config=tiny_config(vision=False))
    folder = convert(source, tmp_path / "ours", ConvertOptions(recipe="4bit-plus"))
    assert_same_logits(our_logits(folder), mlx_lm_logits(folder))


def our_logits(folder: Path) -> NDArray[np.float32]:
    model = load_model(Checkpoint.open(folder), mx.float32)
    h = model(model.embed(mx.array(IDS[None])), model.make_caches())
    return np.array(model.logits(h))


def mlx_lm_logits(folder: Path) -> NDArray[np.float32]:
    model, _ = load_in_mlx_lm(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(IDS[None])))


def assert_same_logits(ours: NDArray[np.float32], theirs: NDArray[np.float32]):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
