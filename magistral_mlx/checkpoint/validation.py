"""Validation of a checkpoint's tensors against the model in its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magistral_mlx.checkpoint.fp8 import FP8, check_scale
from magistral_mlx.checkpoint.header import FLOATS, StoredTensor
from magistral_mlx.checkpoint.names import expected_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import Quantization, infer


def check_tensors(
    tensors: dict[str, StoredTensor],
    config: ModelConfig,
    where: Path,
    fp8_scales: Mapping[str, StoredTensor],
) -> dict[str, Quantization]:
    """Check that the tensors are those of the model, no more and no fewer, each of its shape.

    Returns:
        Canonical name of each quantized weight -> its scheme.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or misshapen.
    """
    quantized: dict[str, Quantization] = {}
    known: set[str] = set()
    missing: list[str] = []
    for name, shape in expected_tensors(config).items():
        stored = tensors.get(name)
        if stored is None:
            missing.append(name)
            continue
        known.add(name)
        scales = tensors.get(_beside(name, "scales"))
        if scales is None:
            _check_plain(name, stored, shape)
            if stored.dtype == FP8:
                check_scale(stored, fp8_scales.get(name))
        else:
            biases = tensors.get(_beside(name, "biases"))
            quantized[name] = _check_quantized(name, stored, scales, biases, shape)
            known |= {_beside(name, "scales"), _beside(name, "biases")}
    if missing:
        raise CheckpointError(
            f"{where} lacks {_few(missing)}, which the model in its configuration has. "
            "Fetch or convert it again."
        )
    unknown = [stored.name for name, stored in tensors.items() if name not in known]
    if unknown:
        raise CheckpointError(
            f"{where} holds {_few(unknown)}, which this model does not have. "
            "It is another model, or a newer format than this version knows."
        )
    return quantized


def _check_plain(name: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    allowed = [shape]
    if name.endswith("patch_conv.weight"):
        out, channels, height, width = shape
        allowed.append((out, height, width, channels))
    if stored.shape not in allowed:
        raise _misshapen(stored, f"expected {list(shape)}")
    if stored.dtype not in (*FLOATS, FP8):
        raise CheckpointError(
            f"{stored.name} in {stored.file} is stored as {stored.dtype}; this runtime reads "
            f"{', '.join(FLOATS)}, {FP8} and MLX's quantized formats. Take the checkpoint in one "
            "of these."
        )


def _check_quantized(
    name: str,
    weight: StoredTensor,
    scales: StoredTensor,
    biases: StoredTensor | None,
    shape: tuple[int, ...],
) -> Quantization:
    if weight.dtype != "U32" or len(shape) != 2:
        raise _misshapen(weight, "expected a matrix packed into U32")
    if biases is not None and biases.shape != scales.shape:
        raise _misshapen(biases, f"expected {list(scales.shape)}, the shape of its scales")
    _check_scale_dtypes(scales, biases)
    found = infer((shape[0], shape[1]), weight.shape, scales.shape, has_biases=biases is not None)
    if found is None:
        raise _misshapen(
            weight,
            f"with scales {list(scales.shape)}: no quantization of {list(shape)} looks so",
        )
    return found


def _check_scale_dtypes(scales: StoredTensor, biases: StoredTensor | None) -> None:
    """Affine scales and biases are floats of one dtype; other modes have one byte a scale."""
    expected = ("U8",) if biases is None else FLOATS if biases.dtype == scales.dtype else ()
    if scales.dtype in expected:
        return
    stored = scales.dtype if biases is None else f"{scales.dtype} with biases of {biases.dtype}"
    raise CheckpointError(
        f"{scales.name} in {scales.file} is stored as {stored}; expected "
        f"{'U8' if biases is None else 'F32, F16 or BF16 for both'}. The file is damaged, or its "
        "biases are missing: fetch or convert the model again."
    )


def _beside(name: str, part: str) -> str:
    return name.removesuffix("weight") + part


def _misshapen(stored: StoredTensor, why: str) -> CheckpointError:
    return CheckpointError(
        f"{stored.name} in {stored.file} has the shape {list(stored.shape)}, {why}. "
        "The file does not belong to this configuration, or is damaged: fetch it again."
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"the tensor {names[0]}{more}"
