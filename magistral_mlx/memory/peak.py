"""Prediction of a run's peak memory: pure arithmetic, which tests compare with measurements.

The peak is weights + KV cache + temporary arrays of one prompt chunk or one image. The last part
is an estimate; it is enforced by giving MLX the sum as its memory limit (`memory.limits`), above
which MLX waits for running work before it allocates more.

The file is longer than others because all terms of one sum stand in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from magistral_mlx.cache.attention import WORKSPACE, dequantized_bytes
from magistral_mlx.cache.blocks import QUERY_BLOCK, score_bytes
from magistral_mlx.cache.buffer import rounded
from magistral_mlx.cache.chunk import mask_bytes
from magistral_mlx.cache.packed import FEW_QUERIES
from magistral_mlx.cache.scheme import PIECE, RESERVED, KVScheme
from magistral_mlx.cache.segments import dequantized_copies
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.fp8 import FP8
from magistral_mlx.checkpoint.header import DTYPE_BYTES, FLOATS
from magistral_mlx.checkpoint.load import computes_in_float32, is_scale, keeps_scales
from magistral_mlx.checkpoint.names import EMBEDDING, LANGUAGE
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.model.vision import WORKSPACE as IMAGE_WORKSPACE

MIB = 1 << 20
_FIXED = 4 * MIB  # token ids, norms, angles and other small arrays
_LOGITS = 8  # arrays of the size of logits at once: as they are, in float32, and while sorted
_MOST_HEAD_ROWS = 128  # more rows of the head at once are no faster


@dataclass(frozen=True)
class BackendProfile:
    """Properties of a backend that determine its memory use.

    float_bytes: bytes of a value in the compute dtype. dequantized_bytes: block in which a
    quantized matrix is dequantized from `dequantized_rows` rows on; 0 if it never is.
    fused_attention: attention never materializes scores. packed_attention: a few queries attend to
    quantized tokens as they are stored. workspace: bytes of attention's temporary arrays. chunk:
    prompt tokens that go through the model at once, if memory allows it. excess: bytes that a run
    has taken beyond its plan on this machine (`doctor --check`).
    """

    float_bytes: int
    dequantized_bytes: int
    dequantized_rows: int
    fused_attention: bool
    workspace: int
    chunk: int
    packed_attention: bool = False
    excess: int = 0


# A GPU in bfloat16, assumed for plans for another Mac.
GPU = BackendProfile(
    2, 0, 0, fused_attention=True, workspace=WORKSPACE, chunk=2048, packed_attention=True
)


@dataclass(frozen=True)
class Weights:
    """Bytes of the loaded weights.

    embedding: bytes of the decoder's embedding table, of which a token reads one row; 0 if it is
    also the output matrix.
    """

    decoder: int
    vision: int
    embedding: int = 0

    @property
    def read(self) -> int:
        """Bytes that decoding one token reads."""
        return self.decoder - self.embedding


@dataclass(frozen=True)
class Shape:
    """Size of a run: prompt, answer and chunk in tokens, images in pixels (height, width)."""

    prompt: int
    answer: int
    chunk: int
    images: tuple[tuple[int, int], ...] = ()

    @property
    def context(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Peak:
    """Peak memory of a run by part, in bytes.

    cache: of a full context, whichever stage has the peak. workspace: bytes of that stage beyond
    weights and cache.
    """

    weights: int
    vision: int
    cache: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.vision + self.cache + self.workspace


def loaded_weights(checkpoint: Checkpoint, float_bytes: int) -> Weights:
    """Bytes of a checkpoint in memory: floats in the compute dtype, packed weights unchanged."""
    return sum_weights(loaded_sizes(checkpoint, float_bytes), checkpoint.config)


def loaded_sizes(checkpoint: Checkpoint, float_bytes: int) -> dict[str, int]:
    """Bytes of each tensor in memory, by canonical name."""
    compact = keeps_scales(checkpoint, float_bytes)
    sizes = {}
    for name, tensor in checkpoint.tensors.items():
        sizes[name] = tensor.nbytes
        if tensor.dtype not in (*FLOATS, FP8):
            continue
        values = tensor.nbytes // DTYPE_BYTES[tensor.dtype]
        if computes_in_float32(name, checkpoint.config):
            sizes[name] = values * 4
        elif not (compact and is_scale(name)):
            sizes[name] = values * float_bytes
    return sizes


def sum_weights(sizes: Mapping[str, int], config: ModelConfig) -> Weights:
    """Sum the bytes of tensors, given by canonical name."""
    decoder = sum(size for name, size in sizes.items() if name.startswith(LANGUAGE))
    embedding = sum(size for name, size in sizes.items() if name.startswith(EMBEDDING))
    tied = config.text.tie_word_embeddings
    return Weights(decoder, sum(sizes.values()) - decoder, embedding=0 if tied else embedding)


def predict(
    config: ModelConfig, weights: Weights, scheme: KVScheme, shape: Shape, profile: BackendProfile
) -> Peak:
    """Predict the peak memory of a run over its stages.

    Stages: image encoding; prefill in chunks; decoding, when the cache is largest and one layer
    of it may exist twice while it grows.
    """
    vision = weights.vision if shape.images else 0
    features = _features(config, shape) * profile.float_bytes
    cache = cache_bytes(config.text, scheme, shape.context, profile.float_bytes)
    first = min(shape.context, shape.prompt + RESERVED)
    first_cache = cache_bytes(config.text, scheme, first, profile.float_bytes)
    growing = cache // config.text.num_hidden_layers if shape.context > first else 0
    stages = [
        (0, _largest_image(config, shape, profile) + features),
        (first_cache, features + _chunk(config.text, scheme, shape, profile)),
        (cache, features + growing + _decode(config.text, scheme, shape, profile)),
    ]
    workspace = max(map(sum, stages)) - cache
    return Peak(weights.decoder, vision, cache, workspace + _FIXED + profile.excess)


def prefill_bytes(
    config: ModelConfig, scheme: KVScheme, shape: Shape, profile: BackendProfile
) -> int:
    """Temporary bytes of one prefill step: an image, or a chunk."""
    image = _largest_image(config, shape, profile)
    return max(image, _chunk(config.text, scheme, shape, profile)) + _FIXED


def feature_bytes(config: ModelConfig, shape: Shape, profile: BackendProfile) -> int:
    """Bytes of the features of a prompt's images during prefill."""
    return _features(config, shape) * profile.float_bytes


def head_rows(text: TextConfig, scheme: KVScheme, shape: Shape, profile: BackendProfile) -> int:
    """Positions of a chunk whose logits fit at once into what its layers have taken, at least one.

    One fits in any case: decoding is predicted to take more (`_decode`).
    """
    outputs = min(shape.chunk, shape.prompt) * text.hidden_size * profile.float_bytes
    free = _chunk(text, scheme, shape, profile) - outputs
    row = _LOGITS * text.vocab_size * 4 + 2 * text.hidden_size * 4
    rows = min(free // row, _MOST_HEAD_ROWS)
    dequantized = _dequantized(text.hidden_size * text.vocab_size, rows, profile)
    if dequantized:
        rows = max((free - dequantized) // row, profile.dequantized_rows - 1)
    return max(1, min(rows, _MOST_HEAD_ROWS))


def row_bytes(text: TextConfig, scheme: KVScheme, tokens: int, profile: BackendProfile) -> int:
    """Temporary bytes of one sequence of `tokens` in a decoding pass over several."""
    return _decode(text, scheme, Shape(prompt=0, answer=tokens, chunk=1), profile)


def pass_bytes(text: TextConfig, rows: int, profile: BackendProfile) -> int:
    """Temporary bytes of a decoding pass that do not belong to a single sequence."""
    width = text.num_attention_heads * text.head_dim
    widest = max(width, text.intermediate_size, text.vocab_size)
    return _dequantized(text.hidden_size * widest, rows, profile) + _FIXED


def adapter_bytes(text: TextConfig, rows: int, profile: BackendProfile) -> int:
    """Temporary bytes of an adapter's changes to `rows` rows of the widest product."""
    width = text.num_attention_heads * text.head_dim
    return 2 * rows * max(width, text.intermediate_size) * profile.float_bytes


def cache_bytes(text: TextConfig, scheme: KVScheme, tokens: int, float_bytes: int) -> int:
    """Bytes of the caches of all layers with capacity for `tokens` tokens."""
    heads, width = text.num_key_value_heads, text.head_dim
    plain = 2 * heads * width * float_bytes  # keys and values of a token
    if not scheme.quantized:
        return text.num_hidden_layers * rounded(tokens) * plain
    assert scheme.key_bits and scheme.value_bits
    kept, packed = rounded(scheme.plain_capacity) * plain, 0
    if count := scheme.packed(tokens):
        # Keys have spare rows, in the place of whose scores those of plain tokens come.
        packed = rounded(count + scheme.plain_capacity) * _packed_bytes(
            text, scheme.key_bits, scheme, float_bytes
        )
        packed += rounded(count) * _packed_bytes(text, scheme.value_bits, scheme, float_bytes)
        packed += heads * width * float_bytes if scheme.center else 0
    return text.num_hidden_layers * (kept + packed)


def snapshot_bytes(text: TextConfig, scheme: KVScheme, float_bytes: int) -> int:
    """Largest bytes of a snapshot of the caches of all layers."""
    plain = 2 * text.num_key_value_heads * text.head_dim * float_bytes
    return text.num_hidden_layers * (scheme.window + scheme.slack + scheme.block) * plain


def packed_token_bytes(text: TextConfig, scheme: KVScheme, float_bytes: int) -> int:
    """Bytes of a token's quantized keys and values in one layer, scales and biases included."""
    assert scheme.key_bits and scheme.value_bits
    return sum(
        _packed_bytes(text, bits, scheme, float_bytes)
        for bits in (scheme.key_bits, scheme.value_bits)
    )


def _packed_bytes(text: TextConfig, bits: int, scheme: KVScheme, float_bytes: int) -> int:
    """Bytes of a token's keys, or values, of so many bits in one layer."""
    scales = 2 * text.head_dim // scheme.group_size * float_bytes
    return text.num_key_value_heads * (text.head_dim * bits // 8 + scales)


def _largest_image(config: ModelConfig, shape: Shape, profile: BackendProfile) -> int:
    """Bytes of encoding the largest of a prompt's images."""
    return max((_image(config, size, profile) for size in set(shape.images)), default=0)


def _features(config: ModelConfig, shape: Shape) -> int:
    """Values of the images' features, twice: separate and concatenated."""
    if config.vision is None:
        return 0
    token = config.vision.patch_size * config.spatial_merge_size
    tokens = sum(
        count * (height // token) * (width // token)
        for (height, width), count in Counter(shape.images).items()
    )
    return 2 * tokens * config.text.hidden_size


def _image(config: ModelConfig, size: tuple[int, int], profile: BackendProfile) -> int:
    """Temporary bytes of one image in the tower: its pixels, and its patches in one layer."""
    vision = config.vision
    assert vision is not None
    patches = (size[0] // vision.patch_size) * (size[1] // vision.patch_size)
    heads, width = vision.num_attention_heads, vision.num_attention_heads * vision.head_dim
    hidden, wide = vision.hidden_size, vision.intermediate_size
    pixels = 3 * size[0] * size[1] * 4
    scores = _scores(heads, patches, patches, IMAGE_WORKSPACE, profile)
    if _in_blocks(heads, patches, patches, IMAGE_WORKSPACE, profile):
        # Attention is evaluated before the rest of the layer begins. In the first layer the
        # pixels exist once more, as patches.
        attention = patches * (2 * hidden + 8 * width) + 8 * QUERY_BLOCK * width
        mlp = patches * (6 * hidden + 3 * width + 2 * wide)
        return pixels + max(
            pixels + attention * profile.float_bytes + scores, mlp * profile.float_bytes
        )
    layer = patches * (6 * hidden + 6 * width + 4 * wide) * profile.float_bytes
    return 2 * pixels + layer + scores


def _chunk(text: TextConfig, scheme: KVScheme, shape: Shape, profile: BackendProfile) -> int:
    """Temporary bytes of one chunk of the prompt in one layer."""
    rows = min(shape.chunk, shape.prompt)
    width = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    attention = rows * (5 * text.hidden_size + 4 * width + 5 * keys) * profile.float_bytes
    if scheme.quantized and profile.float_bytes == 2:  # cast to float16, and back
        attention += rows * 2 * (width + keys) * profile.float_bytes
    attention += _attention(text, scheme, rows, shape.prompt, profile)
    # Gate, and up with the parts it is concatenated from; on a GPU the next operation as well.
    wide = 4 if profile.fused_attention else 3
    mlp = rows * (4 * text.hidden_size + wide * text.intermediate_size) * profile.float_bytes
    attention += _dequantized(text.hidden_size * width, rows, profile)
    mlp += _dequantized(text.hidden_size * text.intermediate_size, rows, profile)
    return max(attention, mlp)


def _dequantized(largest: int, rows: int, profile: BackendProfile) -> int:
    """Temporary bytes of matrices of up to `largest` values, dequantized one at a time."""
    if rows < profile.dequantized_rows:
        return 0
    return 2 * min(profile.dequantized_bytes, largest * profile.float_bytes)


def _attention(
    text: TextConfig, scheme: KVScheme, rows: int, keys: int, profile: BackendProfile
) -> int:
    """Temporary bytes of attention of `rows` queries over `keys` cached tokens."""
    heads, width = text.num_key_value_heads, text.head_dim
    if not scheme.quantized:
        return _scores(text.num_attention_heads, rows, keys, profile.workspace, profile)
    if profile.fused_attention:
        token = heads * dequantized_bytes(1, width, profile.float_bytes)
        token += packed_token_bytes(text, scheme, profile.float_bytes)
        seen = keys + rows  # those of the chunk twice: plain, and as they are after quantization
        return min(profile.workspace, seen * token + mask_bytes(rows, seen))
    queries = text.num_attention_heads * min(rows, scheme.block if scheme.window else PIECE)
    token = queries * score_bytes(profile.float_bytes) + heads * width * 4 * _copies(scheme)
    return min(profile.workspace, keys * token)


def _copies(scheme: KVScheme) -> int:
    """Arrays of a block's size while its keys and values are dequantized."""
    assert scheme.key_bits and scheme.value_bits
    return dequantized_copies(scheme.key_bits) + dequantized_copies(scheme.value_bits)


def _scores(heads: int, rows: int, keys: int, workspace: int, profile: BackendProfile) -> int:
    """Bytes of materialized scores: all of them, or those of a block of queries."""
    if profile.fused_attention:
        return 0
    bytes_a_row = heads * keys * score_bytes(profile.float_bytes)
    if _in_blocks(heads, rows, keys, workspace, profile):
        return min(workspace, min(rows, QUERY_BLOCK) * bytes_a_row)
    return rows * bytes_a_row * 5 // 8


def _in_blocks(heads: int, rows: int, keys: int, workspace: int, profile: BackendProfile) -> bool:
    """Whether `attend` works in blocks, because the scores exceed the workspace."""
    scores = heads * rows * keys * score_bytes(profile.float_bytes)
    return not profile.fused_attention and scores > workspace


def _decode(text: TextConfig, scheme: KVScheme, shape: Shape, profile: BackendProfile) -> int:
    """Temporary bytes of decoding one token: logits, sampling, attention of layers in flight.

    With draft tokens there are more queries, but fewer layers in flight: scores and a copy of their
    weights in one (`attend_packed`), and scores in the next.
    """
    scores = text.num_attention_heads * shape.context * 4
    few = FEW_QUERIES * text.num_attention_heads * shape.context * 3 * profile.float_bytes
    if not profile.fused_attention:
        attention = 2 * _attention(text, scheme, 1, shape.context, profile)
    elif scheme.quantized:
        if not profile.packed_attention:
            few = _attention(text, scheme, 1, shape.context, profile)
        attention = max(12 * scores, min(profile.workspace, few))
    else:
        attention = 12 * scores
    return 10 * text.vocab_size * 4 + attention
