"""The table of tensor names, shared by the loader and the converter.

Checkpoints of this model come in six dialects. Each name is brought to one canonical form, which
is Hugging Face's classic one, the paths of our own modules, and what mlx-lm and mlx-vlm read:

    language_model.model.layers.N.self_attn.q_proj.weight
    vision_tower.transformer.layers.N.attention.q_proj.weight
    multi_modal_projector.linear_1.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from magistral_mlx.config import ModelConfig, TextConfig, VisionConfig

INTERLEAVED = ("mistral", "gguf")  # layouts whose rope rotates neighbours, not halves
LANGUAGE, VISION, PROJECTOR = "language_model.", "vision_tower.", "multi_modal_projector."
EMBEDDING = "language_model.model.embed_tokens."
HEAD = "language_model.lm_head."
EMBEDDING_PATH, HEAD_PATH = EMBEDDING.rstrip("."), HEAD.rstrip(".")  # of the modules

# First match wins. Left: how a name may begin; right: how its canonical form begins.
_PREFIXES = (
    # newer transformers
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", VISION),
    ("model.multi_modal_projector.", PROJECTOR),
    # mlx-vlm
    ("vision_tower.vision_model.", VISION),
    # canonical: classic transformers, mlx-lm, mlx-vlm, our own
    (LANGUAGE, LANGUAGE),
    (VISION, VISION),
    (PROJECTOR, PROJECTOR),
    # text-only mistral of transformers and mlx-lm
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    # Mistral's own layout
    ("tok_embeddings.", "language_model.model.embed_tokens."),
    ("layers.", "language_model.model.layers."),
    ("norm.", "language_model.model.norm."),
    ("output.", "language_model.lm_head."),
    ("vision_encoder.", VISION),
    ("pre_mm_projector_norm.", "multi_modal_projector.norm."),
    ("patch_merger.", "multi_modal_projector.patch_merger."),
    ("vision_language_adapter.w_in.", "multi_modal_projector.linear_1."),
    ("vision_language_adapter.w_out.", "multi_modal_projector.linear_2."),
    # llama.cpp's
    ("token_embd.", "language_model.model.embed_tokens."),
    ("blk.", "language_model.model.layers."),
    ("output_norm.", "language_model.model.norm."),
    ("v.blk.", "vision_tower.transformer.layers."),
    ("v.patch_embd.", "vision_tower.patch_conv."),
    ("v.pre_ln.", "vision_tower.ln_pre."),
    ("mm.input_norm.", "multi_modal_projector.norm."),
    ("mm.patch_merger.", "multi_modal_projector.patch_merger.merging_layer."),
    ("mm.1.", "multi_modal_projector.linear_1."),
    ("mm.2.", "multi_modal_projector.linear_2."),
)

# The parts inside a layer that Mistral's layout and llama.cpp call otherwise: everywhere, then in
# the decoder.
_PARTS = {
    "attention.wq": "attention.q_proj",
    "attention.wk": "attention.k_proj",
    "attention.wv": "attention.v_proj",
    "attention.wo": "attention.o_proj",
    "feed_forward.w1": "feed_forward.gate_proj",
    "feed_forward.w2": "feed_forward.down_proj",
    "feed_forward.w3": "feed_forward.up_proj",
    "attn_q": "attention.q_proj",
    "attn_k": "attention.k_proj",
    "attn_v": "attention.v_proj",
    "attn_output": "attention.o_proj",
    "attn_out": "attention.o_proj",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "attn_norm": "attention_norm",
    "ln1": "attention_norm",
    "ln2": "ffn_norm",
}
_TEXT_PARTS = {
    "attention": "self_attn",
    "feed_forward": "mlp",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TEXT_LAYER = re.compile(r"(language_model\.model\.layers\.\d+\.)(\w+)(\..+)")

# Buffers that older exports saved, and a row of the embedding that llama.cpp keeps with the tower.
_BUFFERS = ("rotary_emb.inv_freq", "position_ids", "v.token_embd.img_break")


def canonical_name(name: str) -> str | None:
    """Return the canonical form of a tensor's name, or of a module's path.

    Returns None for a buffer that carries no weights, and the name itself where no dialect
    knows it, so that a check against `expected_tensors` reports it.
    """
    if name.endswith(_BUFFERS):
        return None
    for old, new in _PREFIXES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in _PARTS.items():
        name = name.replace(f".{old}.", f".{new}.")
    layer = _TEXT_LAYER.fullmatch(name)
    if layer and layer[2] in _TEXT_PARTS:
        name = layer[1] + _TEXT_PARTS[layer[2]] + layer[3]
    return name


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return canonical name -> shape of an unquantized checkpoint, in the model's order.

    `patch_conv.weight` is given as (out, channels, height, width), Hugging Face's convention.
    """
    tensors = dict(_text_tensors(config.text))
    if config.vision is not None:
        tensors |= _vision_tensors(config.vision)
        tensors |= _projector_tensors(config)
    return tensors


def interleaved_heads(name: str, config: ModelConfig) -> int | None:
    """Heads whose rows stand in interleaved rope order where `INTERLEAVED`; None if it has none.

    Only the query and key projections rotate: their weights, and what goes with a quantized one.
    Our modules rotate halves, as Hugging Face's do.
    """
    module = name.rpartition(".")[0]
    if module.endswith(".self_attn.q_proj"):
        return config.text.num_attention_heads
    if module.endswith(".self_attn.k_proj"):
        return config.text.num_key_value_heads
    if config.vision and module.endswith((".attention.q_proj", ".attention.k_proj")):
        return config.vision.num_attention_heads
    return None


def is_channels_last(shape: tuple[int, ...], config: ModelConfig) -> bool:
    """Return whether a patch_conv weight is (out, H, W, channels), as in MLX and mlx-vlm."""
    vision = config.vision
    return vision is not None and shape[1:] == (
        vision.patch_size,
        vision.patch_size,
        vision.num_channels,
    )


def _text_tensors(text: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, mlp = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    yield "language_model.model.embed_tokens.weight", (text.vocab_size, dim)
    for n in range(text.num_hidden_layers):
        layer = f"language_model.model.layers.{n}."
        yield layer + "input_layernorm.weight", (dim,)
        yield layer + "self_attn.q_proj.weight", (queries, dim)
        yield layer + "self_attn.k_proj.weight", (keys, dim)
        yield layer + "self_attn.v_proj.weight", (keys, dim)
        yield layer + "self_attn.o_proj.weight", (dim, queries)
        yield layer + "post_attention_layernorm.weight", (dim,)
        yield layer + "mlp.gate_proj.weight", (mlp, dim)
        yield layer + "mlp.up_proj.weight", (mlp, dim)
        yield layer + "mlp.down_proj.weight", (dim, mlp)
    yield "language_model.model.norm.weight", (dim,)
    if not text.tie_word_embeddings:
        yield "language_model.lm_head.weight", (text.vocab_size, dim)


def _vision_tensors(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    dim, mlp = vision.hidden_size, vision.intermediate_size
    heads = vision.num_attention_heads * vision.head_dim
    patch = (dim, vision.num_channels, vision.patch_size, vision.patch_size)
    tensors: dict[str, tuple[int, ...]] = {
        "vision_tower.patch_conv.weight": patch,
        "vision_tower.ln_pre.weight": (dim,),
    }
    for n in range(vision.num_hidden_layers):
        layer = f"vision_tower.transformer.layers.{n}."
        tensors |= {
            layer + "attention_norm.weight": (dim,),
            layer + "attention.q_proj.weight": (heads, dim),
            layer + "attention.k_proj.weight": (heads, dim),
            layer + "attention.v_proj.weight": (heads, dim),
            layer + "attention.o_proj.weight": (dim, heads),
            layer + "ffn_norm.weight": (dim,),
            layer + "feed_forward.gate_proj.weight": (mlp, dim),
            layer + "feed_forward.up_proj.weight": (mlp, dim),
            layer + "feed_forward.down_proj.weight": (dim, mlp),
        }
    return tensors


def _projector_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    assert config.vision is not None
    seen, text = config.vision.hidden_size, config.text.hidden_size
    tensors: dict[str, tuple[int, ...]] = {
        PROJECTOR + "norm.weight": (seen,),
        PROJECTOR + "patch_merger.merging_layer.weight": (
            seen,
            seen * config.spatial_merge_size**2,
        ),
        PROJECTOR + "linear_1.weight": (text, seen),
        PROJECTOR + "linear_2.weight": (text, text),
    }
    if config.projector_bias:
        tensors |= {
            PROJECTOR + "linear_1.bias": (text,),
            PROJECTOR + "linear_2.bias": (text,),
        }
    return tensors


def head_prefix(config: ModelConfig) -> str:
    """How the names of the head's tensors begin; a tied head is the embedding."""
    return EMBEDDING if config.text.tie_word_embeddings else HEAD
