"""Peak memory of a calibrated conversion: arithmetic over shapes.

Beside the hidden states it is the largest of these: the weights of a layer, original or written,
while text runs through them and statistics are gathered; its products while they are factorized;
blocks that are being searched; the original head and the written one.
"""

from __future__ import annotations

from magistral_convert.calibration.files import Unit, by_block, by_layer
from magistral_convert.calibration.text import HELD_OUT, SEQUENCE
from magistral_convert.options import ConvertOptions
from magistral_convert.pipeline import search_threads
from magistral_convert.plan import ConversionPlan
from magistral_convert.recipe import layer_of
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.errors import OutOfMemory
from magistral_mlx.memory.machine import this_machine

BATCH_TOKENS = 2048  # that run through a layer at once
PRODUCT_COLUMNS = 8192  # columns whose products are kept together
LOGITS_ROWS = 128  # tokens whose logits are in memory at once
# Width and height of the images in squares of patches: at full size 28 pixels and four patches.
IMAGE_SIZES = ((16, 12), (12, 16), (20, 9), (14, 14))
_IMAGES = 2 * len(IMAGE_SIZES)
COMPENSATED_BYTES = 16 << 20  # of the source in a block with `gptq`: its columns go one by one
_COMPENSATING = 18  # times that: its weights, what is left of them, codes, scales in their order
_SEARCH = 512 << 20  # blocks of the worker threads, searched at once
_BLOCKS = 64 << 20  # of a tensor that is being read
# Matrices that have the input of another, whose products are theirs.
_SHARING = ("k_proj.weight", "v_proj.weight", "up_proj.weight")
_F32, _F64 = 4, 8


def peak_bytes(
    plan: ConversionPlan,
    config: TextConfig,
    tokens: int,
    *,
    float_bytes: int,
    compensates: bool,
    vision: ModelConfig | None = None,
) -> int:
    """Return the most bytes of arrays at any one time.

    Args:
        tokens: of calibration text.
        float_bytes: of a value while computing, 2 on a GPU and 4 on a CPU.
        vision: the configuration, where vision tower and projector are calibrated too.
    """
    layers = [unit for unit in by_layer(plan) if layer_of(unit[0].name) is not None]
    every = [_of_layer(unit, float_bytes, compensates=compensates) for unit in layers]
    head = _of_head(config, float_bytes)
    if vision:
        every.append(_of_vision(plan, vision, float_bytes, compensates=compensates))
    return state_bytes(config, tokens, float_bytes) + max([*every, head])


def check_memory(peak: int | None, options: ConvertOptions) -> None:
    """Raise `OutOfMemory` where a peak, if there is one, is more than this machine may use."""
    most = this_machine().limit
    if peak is None or peak <= most:
        return
    instead = "--method search" if options.method == "gptq" else "--calibration none"
    if options.has_target and options.method != "gptq":
        instead = f"--bits and --calibration none in place of {options.calibrating}"
    raise OutOfMemory(
        f"calibration takes {peak / 1e9:.1f} GB of memory, and {most / 1e9:.1f} GB may be used "
        f"here. Give {instead}."
    )


def state_bytes(config: TextConfig, tokens: int, float_bytes: int) -> int:
    """Bytes of the hidden states before and after a layer."""
    sequences = max(1, tokens // SEQUENCE) + 2 * HELD_OUT
    return 2 * sequences * SEQUENCE * config.hidden_size * float_bytes


def _of_layer(unit: Unit, float_bytes: int, *, compensates: bool) -> int:
    sizes = [tensor.rows * tensor.columns for tensor in unit]
    weights, largest = sum(sizes) * float_bytes, max(sizes)
    widest = max(tensor.columns for tensor in unit if tensor.rows > 1)
    # Gate, up and their product, and the squares of an input in float32.
    running = BATCH_TOKENS * widest * (4 * float_bytes + 2 * _F32)
    reading = largest * float_bytes + _BLOCKS
    if not compensates:
        return max(weights + reading + running, _SEARCH)
    products = _products(unit)
    # Products that are left or whose factor is done, those of one input, and a block's inverse.
    factorizing = 2 * products + 4 * _F64 * min(widest, PRODUCT_COLUMNS) ** 2
    compensating = search_threads() * _COMPENSATING * COMPENSATED_BYTES
    return max(weights + reading + running + products, factorizing, products + compensating)


def _products(unit: Unit) -> int:
    """Products of the inputs of a layer, by blocks along the diagonal."""
    total = 0
    for tensor in unit:
        if tensor.rows > 1 and not tensor.name.endswith(_SHARING):
            whole, rest = divmod(tensor.columns, PRODUCT_COLUMNS)
            total += whole * PRODUCT_COLUMNS**2 + rest**2
    return total * _F32


def _of_vision(
    plan: ConversionPlan, config: ModelConfig, float_bytes: int, *, compensates: bool
) -> int:
    """A block or the projector, the images between two blocks, and the scores of one."""
    assert config.vision
    tensors = [t for t in plan.tensors if not t.name.startswith(LANGUAGE)]
    units = [unit for unit in by_block(tensors) if any(t.is_quantized_here for t in unit)]
    largest = max((_of_layer(u, float_bytes, compensates=compensates) for u in units), default=0)
    patches = max(width * height for width, height in IMAGE_SIZES) * config.spatial_merge_size**2
    states = 2 * _IMAGES * patches * config.vision.hidden_size * float_bytes
    scores = 3 * config.vision.num_attention_heads * patches**2 * _F32
    return largest + states + scores


def _of_head(config: TextConfig, float_bytes: int) -> int:
    """The original head, the written one while it is put together, and some rows of logits."""
    logits = 6 * LOGITS_ROWS * config.vocab_size * _F32
    return 3 * config.vocab_size * config.hidden_size * float_bytes + logits + _BLOCKS
