"""Calibration of vision tower and projector: block by block, with images as inputs.

As in the decoder, each block has the inputs that the quantized ones before it give. Nothing is kept
on the disk: the images are few and small, so a conversion that was cut runs them through what is
written already. L patches of one image, D the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from magistral_convert.calibration.files import Unit, by_block
from magistral_convert.calibration.gptq import Factor, factorize
from magistral_convert.calibration.images import Pixels, calibration_images
from magistral_convert.calibration.layers import InputStatistics, OnInput, Weights
from magistral_convert.calibration.tensors import WrittenTensors, read_original
from magistral_convert.plan import TensorConversion
from magistral_convert.recipe import part_of
from magistral_mlx.backend import mx, nn
from magistral_mlx.checkpoint.names import PROJECTOR
from magistral_mlx.config import ModelConfig, VisionConfig
from magistral_mlx.model.rope import image_angles, rotate

Convert = Callable[[Unit, dict[str, mx.array], dict[str, list[Factor]]], None]
Grid = tuple[int, int]  # rows and columns of patches

# The matrices that share an input, under the name of the first.
_SHARED_INPUTS = {
    "attention.q_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.o_proj": ("attention.o_proj",),
    "feed_forward.gate_proj": ("feed_forward.gate_proj", "feed_forward.up_proj"),
    "feed_forward.down_proj": ("feed_forward.down_proj",),
}
_PROJECTOR_INPUTS = {
    name: (name,) for name in ("patch_merger.merging_layer", "linear_1", "linear_2")
}


def convert_vision(
    tensors: Sequence[TensorConversion],
    config: ModelConfig,
    convert: Convert,
    left: Callable[[Unit], Unit],
    written: WrittenTensors,
    dtype: mx.Dtype,
    *,
    compensates: bool,
) -> None:
    """Convert the tensors of tower and projector.

    Args:
        tensors: in the model's order; their files are on this machine.
        convert: quantizes and commits tensors, with what their columns count and the factors of
            `gptq`, by name.
        left: returns those that are not committed.
        compensates: use `gptq`.
    """
    units = by_block(tensors)
    if not left(list(tensors)):
        return
    if not any(tensor.is_quantized_here for tensor in tensors):
        for unit in units:
            convert(unit, {}, {})
        return
    assert config.vision is not None
    begin, *blocks, projector = units
    convert(begin, {}, {})
    weights = _read(begin, dtype, written)
    images = calibration_images(config)
    grids = [_grid(image, config.vision.patch_size) for image in images]
    states = [embed_image(image, weights, config.vision, dtype) for image in images]
    mx.eval(states)
    tower = VisionBlockPass(config.vision)

    def calibrate(
        unit: Unit,
        shared: Mapping[str, tuple[str, ...]],
        run: Callable[[mx.array, Grid, Weights, OnInput | None], mx.array],
    ) -> None:
        """Gather the statistics of a unit's inputs, and convert it."""
        if not any(tensor.is_quantized_here for tensor in left(unit)):
            convert(unit, {}, {})
            return
        statistics = InputStatistics(products=compensates)
        original = _read(unit, dtype)
        for x, grid in zip(states, grids, strict=True):
            run(x, grid, original, statistics.add)
            statistics.evaluate()
        del original
        importance: dict[str, mx.array] = {}
        factors: dict[str, list[Factor]] = {}
        names = {_part(tensor): tensor.name for tensor in unit}
        for first, members in shared.items():
            found = [names[member] for member in members]
            importance |= dict.fromkeys(found, statistics.mean_squares(first))
            if compensates:
                products = statistics.take_products(first)
                of_input = [factorize(np.array(block)) for block in products]
                factors |= dict.fromkeys(found, of_input)
        mx.eval(importance)
        convert(unit, importance, factors)

    for unit in blocks:
        calibrate(unit, _SHARED_INPUTS, tower)
        weights = _read(unit, dtype, written)
        for number, (x, grid) in enumerate(zip(states, grids, strict=True)):
            states[number] = tower(x, grid, weights)
            mx.eval(states[number])
        mx.clear_cache()
    calibrate(projector, _PROJECTOR_INPUTS, ProjectorPass(config))


def _part(tensor: TensorConversion) -> str:
    if tensor.name.startswith(PROJECTOR):
        return tensor.name.removeprefix(PROJECTOR).removesuffix(".weight")
    return part_of(tensor.name) or tensor.name.rpartition("vision_tower.")[2]


def _read(
    unit: Unit, dtype: mx.Dtype, written: WrittenTensors | None = None
) -> dict[str, mx.array]:
    """Read the tensors of a unit by what they are in it, from the source or as they are written."""
    return {
        _part(tensor): written.read(tensor) if written else read_original(tensor, dtype)
        for tensor in unit
    }


def _grid(image: Pixels, size: int) -> Grid:
    return image.shape[0] // size, image.shape[1] // size


def embed_image(image: Pixels, weights: Weights, config: VisionConfig, dtype: mx.Dtype) -> mx.array:
    """(H, W, 3) pixels -> (1, L, D) patches, in row order."""
    size = config.patch_size
    rows, columns = _grid(image, size)
    # The stored convolution has its channels last.
    patches = mx.array(image).reshape(rows, size, columns, size, -1).transpose(0, 2, 1, 3, 4)
    x = patches.reshape(1, rows * columns, -1).astype(dtype) @ weights["patch_conv.weight"].T
    return mx.fast.rms_norm(x, weights["ln_pre.weight"], config.rms_norm_eps)


class VisionBlockPass:
    """A block of the tower as a function of its weights."""

    def __init__(self, config: VisionConfig) -> None:
        self._config = config

    def __call__(
        self, x: mx.array, grid: Grid, weights: Weights, on_input: OnInput | None = None
    ) -> mx.array:
        """(1, L, D) -> (1, L, D). on_input: called with a name of _SHARED_INPUTS and the input."""
        eps = self._config.rms_norm_eps
        tell = on_input or (lambda name, x: None)
        y = mx.fast.rms_norm(x, weights["attention_norm"], eps)
        tell("attention.q_proj", y)
        y = self._attend(y, grid, weights)
        tell("attention.o_proj", y)
        x = x + y @ weights["attention.o_proj"].T
        y = mx.fast.rms_norm(x, weights["ffn_norm"], eps)
        tell("feed_forward.gate_proj", y)
        gate, up = (y @ weights[f"feed_forward.{name}_proj"].T for name in ("gate", "up"))
        y = nn.silu(gate) * up
        tell("feed_forward.down_proj", y)
        return x + y @ weights["feed_forward.down_proj"].T

    def _attend(self, x: mx.array, grid: Grid, weights: Weights) -> mx.array:
        """(1, L, D) -> (1, L, heads * head_dim), all patches to each other."""
        head_dim = self._config.head_dim
        angles = image_angles(*grid, head_dim, self._config.rope_theta)
        q, k, v = (
            (x @ weights[f"attention.{name}_proj"].T)
            .reshape(1, x.shape[1], -1, head_dim)
            .transpose(0, 2, 1, 3)
            for name in "qkv"
        )
        q, k = rotate(q, angles), rotate(k, angles)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5)
        return y.transpose(0, 2, 1, 3).reshape(1, x.shape[1], -1)


class ProjectorPass:
    """The projector as a function of its weights."""

    def __init__(self, config: ModelConfig) -> None:
        self._size, self._eps = config.spatial_merge_size, config.text.rms_norm_eps

    def __call__(
        self, x: mx.array, grid: Grid, weights: Weights, on_input: OnInput | None = None
    ) -> mx.array:
        """(1, L, D) -> (L / size², width of the decoder). on_input: as for a block."""
        tell = on_input or (lambda name, x: None)
        size, (rows, columns) = self._size, grid
        x = mx.fast.rms_norm(x, weights["norm"], self._eps)
        squares = x.reshape(rows // size, size, columns // size, size, -1)
        # Channel-major inside a square, as torch.nn.functional.unfold lays it out.
        x = squares.transpose(0, 2, 4, 1, 3).reshape(rows * columns // size**2, -1)
        for name in _PROJECTOR_INPUTS:
            tell(name, x)
            x = x @ weights[name].T
            if f"{name}.bias" in weights:
                x = x + weights[f"{name}.bias"]
            if name == "linear_1":
                x = nn.gelu(x)
        return x
