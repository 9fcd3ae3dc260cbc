"""FP8 weights: float8_e4m3fn codes with scales beside them, as Ministral 3 is published.

    w = code * scale, with a scale per tensor, per row, or per block of 128 x 128

The scale of `….weight` is stored as `weight_scale_inv` (transformers, despite its name a factor),
`weight_scale` (compressed-tensors, ModelOpt) or `qscale_weight` (Mistral's own layout). Scales of
activations serve FP8 arithmetic, which is not used here, and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from magistral_mlx.checkpoint.header import FLOATS, StoredTensor
from magistral_mlx.errors import CheckpointError

FP8 = "F8_E4M3"
_BLOCK = 128
_WEIGHT_SCALES = (".weight_scale_inv", ".weight_scale", ".qscale_weight")
_ACTIVATION_SCALES = (
    ".activation_scale", ".input_scale", ".qscale_act", ".output_scale",
    ".q_scale", ".k_scale", ".v_scale",
)  # fmt: skip


def split_scales(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Separate the weights of a checkpoint from FP8 scales; both by canonical name of the weight.

    Scales of activations are dropped. Without FP8 weights nothing is taken for a scale.

    Raises:
        CheckpointError: two scales of one weight.
    """
    if all(tensor.dtype != FP8 for tensor in tensors.values()):
        return dict(tensors), {}
    weights: dict[str, StoredTensor] = {}
    scales: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _WEIGHT_SCALES if name.endswith(suffix)), None)
        if suffix is not None:
            weight = name.removesuffix(suffix) + ".weight"
            if weight in scales:
                raise CheckpointError(
                    f"{tensor.name} and {scales[weight].name} in {tensor.file.parent} are both "
                    "scales of one weight. Fetch the checkpoint again."
                )
            scales[weight] = tensor
        elif not name.endswith(_ACTIVATION_SCALES):
            weights[name] = tensor
    # The scale of a weight that is stored in floating point serves nothing.
    return weights, {name: scale for name, scale in scales.items() if _is_fp8(weights.get(name))}


def check_scale(weight: StoredTensor, scale: StoredTensor | None) -> None:
    """Check that the scale of an FP8 matrix is there, in a known shape and dtype.

    Raises:
        CheckpointError: it is not.
    """
    if scale is None:
        raise CheckpointError(
            f"{weight.name} in {weight.file} is stored as {FP8} without a scale "
            "(weight_scale_inv). Fetch the checkpoint again, or take one in bfloat16."
        )
    if scale.dtype not in FLOATS:
        raise CheckpointError(
            f"{scale.name} in {scale.file} is a scale stored as {scale.dtype}; expected one of "
            f"{', '.join(FLOATS)}. Fetch that file again, or take the checkpoint in bfloat16."
        )
    if len(weight.shape) != 2 or scale_block(weight.shape, scale.shape) is None:
        raise CheckpointError(
            f"{scale.name} in {scale.file} has the shape {list(scale.shape)} for a weight of "
            f"{list(weight.shape)}; expected one scale, one for each row, or one for each block of "
            f"{_BLOCK} x {_BLOCK}. Fetch that file again, or take the checkpoint in bfloat16."
        )


def scale_block(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale; None for shapes that do not fit.

    Args:
        weight: shape of the matrix.
        scale: shape of its scales, of any rank for one scale.
    """
    rows, columns = weight
    if all(size == 1 for size in scale):
        return rows, columns
    if scale in ((rows,), (rows, 1)):
        return 1, columns
    if scale == (-(-rows // _BLOCK), -(-columns // _BLOCK)):
        return _BLOCK, _BLOCK
    return None


def _is_fp8(tensor: StoredTensor | None) -> bool:
    return tensor is not None and tensor.dtype == FP8
