"""The check after writing: honest quantization passes, anything else is caught."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_convert import ConvertOptions, convert, verify
from magistral_convert.quantize import dequantize_rows, quantize_rows, to_bfloat16
from magistral_convert.verify import goes_together, is_within_bound
from magistral_mlx.backend import mx
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    FIXED_MODES,
    Mode,
    Quantization,
)
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint

SCHEMES = [
    *(Quantization(bits, size) for bits in AFFINE_BITS for size in AFFINE_GROUP_SIZES),
    *(Quantization(bits, size, mode) for mode, (bits, size) in FIXED_MODES.items()),
]
ROWS, COLUMNS = 64, 512


def bfloat16_bits(values: NDArray) -> NDArray[np.uint16]:
    array = mx.array(values.astype(np.float32)).astype(mx.bfloat16)
    return np.array(array.view(mx.uint16))


def samples() -> dict[str, NDArray]:
    rng = np.random.default_rng(0)
    shape = (ROWS, COLUMNS)
    normal = rng.standard_normal(shape)
    return {
        "normal": normal,
        "as trained": 0.02 * normal,
        "tiny": 1e-4 * normal,
        "vanishing": 1e-20 * normal,
        "heavy tails": np.clip(rng.standard_t(2, shape), -100, 100),
        "one side": -np.abs(normal),
        "far from zero": 1 + 0.01 * normal,
        "mostly zero": normal * (rng.random(shape) < 0.02),
        "constant": np.full(shape, 0.7),
        "zero": np.zeros(shape),
    }


def written(bits: NDArray[np.uint16], scheme: Quantization | None) -> mx.array:
    return dequantize_rows([bytes(part) for part in quantize_rows(bits, scheme)], len(bits), scheme)


@pytest.mark.parametrize("scheme", [*SCHEMES, None], ids=str)
@pytest.mark.parametrize("kind", samples())
def test_what_the_quantizer_gives_is_within_its_bound(kind: str, scheme: Quantization | None):
    bits = bfloat16_bits(samples()[kind])
    assert is_within_bound(bits, written(bits, scheme), scheme)


@pytest.mark.parametrize("mode", FIXED_MODES)
def test_groups_too_small_for_a_scale_become_zeros_and_change_no_other(mode: Mode):
    bits, size = FIXED_MODES[mode]
    scheme = Quantization(bits, size, mode)
    values = samples()["normal"]
    plain = np.array(written(bfloat16_bits(values), scheme))
    for exponent in range(-40, -30):
        values[:, :256] = samples()["normal"][:, :256] * 10.0**exponent
        source = bfloat16_bits(values)
        found = written(source, scheme)
        assert is_within_bound(source, found, scheme), exponent
        np.testing.assert_array_equal(np.array(found)[:, 256:], plain[:, 256:])


@pytest.mark.parametrize("scheme", [*SCHEMES, None], ids=str)
def test_rows_in_another_order_are_caught(scheme: Quantization | None):
    bits = bfloat16_bits(samples()["as trained"])
    other = written(bits[::-1], scheme)
    assert not is_within_bound(bits, other, scheme)


@pytest.mark.parametrize("mode", ["affine", *FIXED_MODES])
def test_rows_of_any_size_go_with_what_is_made_of_them_and_no_others(mode: Mode):
    scheme = Quantization(*FIXED_MODES.get(mode, (4, 64)), mode)
    for exponent in (-39, -37, -22, -10, -4, -2, 0, 3, 30):
        if exponent > 0 and mode == "nvfp4":
            continue
        bits = bfloat16_bits(samples()["normal"] * 10.0**exponent)
        wanted = to_bfloat16(bits).astype(mx.float32)
        found = written(bits, scheme)
        assert goes_together(wanted, found, scheme), exponent
        if exponent >= -2:
            assert not goes_together(wanted, found[::-1], scheme), exponent
            assert not goes_together(wanted, mx.zeros_like(found), scheme), exponent
        assert not goes_together(mx.zeros_like(wanted), mx.ones_like(found), scheme)


@pytest.mark.parametrize("scheme", [*SCHEMES, None], ids=str)
def test_one_row_that_was_never_written_is_caught(scheme: Quantization | None):
    bits = bfloat16_bits(samples()["normal"])
    found = np.array(written(bits, scheme))
    found[17] = 0
    assert not is_within_bound(bits, mx.array(found), scheme)


@pytest.mark.parametrize("scheme", [*SCHEMES, None], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_caught(value: float, scheme: Quantization | None):
    values = samples()["normal"]
    values[3, 5] = value
    bits = bfloat16_bits(values)
    assert not is_within_bound(bits, written(bits, scheme), scheme)


def test_a_source_with_nans_ends_in_an_error_and_no_target(tmp_path: Path):
    weights = random_weights(tiny_config(), seed=0)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    weights[name][:] = np.nan
    source = write_hf_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "out", ConvertOptions())
    assert name in str(error.value)
    assert "infinities, NaNs" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_the_disk_gives_back_otherwise_end_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        verify,
        "dequantize_rows",
        lambda *given: 1.5 * dequantize_rows(*given),
    )
    source = write_hf_checkpoint(tmp_path / "source")
    with pytest.raises(CheckpointError, match="outside the error bound"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
