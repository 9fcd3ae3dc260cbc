"""Sizes and bits of a conversion by part of the model, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_mlx.checkpoint.names import LANGUAGE, PROJECTOR, VISION

# The first whose text is in the tensor's name; the others are norms.
_PARTS = (
    (VISION, "vision tower"),
    (PROJECTOR, "projector"),
    ("embed_tokens", "embedding"),
    ("lm_head", "head"),
    ("self_attn", "attention"),
    (".mlp.", "MLP"),
)
_REST = "norms"


@dataclass(frozen=True)
class PartSize:
    """Size of one part of the model: parameters, and bytes before and after."""

    name: str
    parameters: int
    source_bytes: int
    output_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.output_bytes / self.parameters


def summarize(plan: ConversionPlan) -> list[PartSize]:
    """Return the size of each part of the model, in the model's order."""
    names = [name for _, name in _PARTS[2:]] + [_REST] + [name for _, name in _PARTS[:2]]
    by_name = {
        name: [tensor for tensor in plan.tensors if _part_of(tensor) == name] for name in names
    }
    return [_size(name, tensors) for name, tensors in by_name.items() if tensors]


def bits_by_matrix(plan: ConversionPlan) -> dict[str, list[int]]:
    """Return the bits of quantized matrices, by layer: those of the decoder under their names, such
    as `q_proj`, others under their part and their names, such as `vision tower q_proj`."""
    found: dict[str, list[int]] = {}
    for tensor in plan.tensors:
        if tensor.scheme:
            name = tensor.name.removesuffix(".weight").rpartition(".")[2]
            if not tensor.name.startswith(LANGUAGE):
                name = f"{_part_of(tensor)} {name}"
            found.setdefault(name, []).append(tensor.scheme.bits)
    return found


def _part_of(tensor: TensorConversion) -> str:
    return next((name for text, name in _PARTS if text in tensor.name), _REST)


def _size(name: str, tensors: Sequence[TensorConversion]) -> PartSize:
    return PartSize(
        name,
        parameters=sum(tensor.rows * tensor.columns for tensor in tensors),
        source_bytes=sum(tensor.source_bytes for tensor in tensors),
        output_bytes=sum(tensor.nbytes for tensor in tensors),
    )
