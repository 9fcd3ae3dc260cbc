"""Files of the source, in a conversion that goes layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_convert.recipe import EMBEDDING, HEAD, NORM, layer_of
from magistral_mlx.checkpoint.names import PROJECTOR, expected_tensors
from magistral_mlx.config import ModelConfig

Unit = list[TensorConversion]


def in_layer_order(plan: ConversionPlan, config: ModelConfig) -> ConversionPlan:
    """Return the plan with its tensors in the model's order, rather than in the source's."""
    order = {name: number for number, name in enumerate(expected_tensors(config))}
    return replace(plan, tensors=tuple(sorted(plan.tensors, key=lambda t: order[t.name])))


def by_layer(plan: ConversionPlan) -> list[Unit]:
    """Return what is converted together of a plan `in_layer_order`: the embedding, each layer, the
    rest."""
    return [list(group) for _, group in groupby(plan.tensors, key=_unit)]


def by_block(tensors: Sequence[TensorConversion]) -> list[Unit]:
    """Return what is converted together of vision tower and projector, in layer order: what comes
    before the blocks, each block, the projector."""

    def block(tensor: TensorConversion) -> str:
        if tensor.name.startswith(PROJECTOR):
            return PROJECTOR
        return tensor.name.partition(".layers.")[2].partition(".")[0]

    return [list(group) for _, group in groupby(tensors, key=block)]


def _unit(tensor: TensorConversion) -> tuple[int, int]:
    if tensor.name == EMBEDDING:
        return 0, 0
    layer = layer_of(tensor.name)
    return (2, 0) if layer is None else (1, layer)


def _last_uses(units: list[Unit]) -> dict[Path, int]:
    """Return the number of the last unit that each file is read for."""
    last = {
        file: number
        for number, unit in enumerate(units)
        for tensor in unit
        for file in tensor.files
    }
    if _is_tied(units):
        last |= dict.fromkeys(units[0][0].files, len(units) - 1)
    return last


def _is_tied(units: list[Unit]) -> bool:
    """Whether the embedding is the head too."""
    return all(tensor.name != HEAD for tensor in units[-1])


def norm_after_embedding(units: list[Unit]) -> TensorConversion:
    """Return the norm whose gain multiplies what the embedding gives: that before the head, where
    the embedding is the head too, or that of the first layer."""
    wanted = NORM if _is_tied(units) else "layers.0.input_layernorm.weight"
    return next(t for unit in units for t in unit if t.name.endswith(wanted))


def most_at_once(plan: ConversionPlan) -> int:
    """Return the most bytes of source files that are here at any one time."""
    units = by_layer(plan)
    last = _last_uses(units)
    sizes: dict[Path, int] = {}
    first: dict[Path, int] = {}
    for number, unit in enumerate(units):
        for tensor in unit:
            for part in (tensor.source, *tensor.beside):
                sizes[part.file] = sizes.get(part.file, 0) + part.nbytes
                first.setdefault(part.file, number)
    first |= dict.fromkeys(norm_after_embedding(units).files, 0)
    return max(
        sum(size for file, size in sizes.items() if first[file] <= number <= last[file])
        for number in range(len(units))
    )


class SourceFiles:
    """Fetches the source's files before they are read, and releases them after the last time."""

    def __init__(
        self,
        plan: ConversionPlan,
        fetch: Callable[[Path], None],
        release: Callable[[Path], None],
    ) -> None:
        self._units = by_layer(plan)
        self._fetch, self._release = fetch, release
        self._last = _last_uses(self._units)

    def open(self, tensors: Unit) -> None:
        """Fetch the files of tensors."""
        for file in dict.fromkeys(file for tensor in tensors for file in tensor.files):
            self._fetch(file)

    def done(self, number: int) -> None:
        """Release the files that no unit after this one is read from."""
        for file in [file for file, last in self._last.items() if last <= number]:
            self._release(file)
            del self._last[file]
