"""The decoder: a Mistral transformer with grouped-query attention (arXiv 2310.06825).

Reads top-down from the parts to the whole. L is the number of new tokens, D the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from magistral_mlx.backend import backend, mx, nn
from magistral_mlx.cache.kv import KVCache, LayerCache
from magistral_mlx.cache.segments import as_float16
from magistral_mlx.config import TextConfig
from magistral_mlx.model.linear import Embedding, Linear, Projections
from magistral_mlx.model.rope import Rope, query_growth, score_scale


class Attention(nn.Module):
    """Causal attention; `num_attention_heads` share `num_key_value_heads` keys and values."""

    def __init__(self, config: TextConfig, rope: Rope) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rope = rope
        self.score_scale = score_scale(config)
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv_proj = Projections(
            config.hidden_size, q_proj=width, k_proj=kv_width, v_proj=kv_width
        )
        self.o_proj = Linear(width, config.hidden_size)

    def __call__(self, x: mx.array, cache: LayerCache, growth: float | mx.array | None) -> mx.array:
        """(B, L, D) -> (B, L, D). growth: see `query_growth`."""
        q, k, v = self._qkv(x, cache)
        if growth is not None:
            q = q * (growth.astype(q.dtype) if isinstance(growth, mx.array) else growth)
        y = cache.attend(q, k, v, scale=self.score_scale)  # (B, H, L, head_dim)
        batch, length, _ = x.shape
        if length > 1:
            y = y.transpose(0, 2, 1, 3)
        o: mx.array = self["o_proj"](y.astype(x.dtype).reshape(batch, length, -1))
        return o

    def prefill(self, x: mx.array, cache: KVCache) -> None:
        """Append the keys and values of (B, L, D) to the cache, without computing outputs."""
        _, k, v = self._qkv(x, cache)
        cache.append(k, v)

    def _qkv(self, x: mx.array, cache: LayerCache) -> tuple[mx.array, mx.array, mx.array]:
        """(B, L, D) -> (B, H, L, head_dim) and twice (B, H_kv, L, head_dim), rotated by rope."""
        rotated = self.num_heads + self.num_kv_heads
        qkv = self._heads(self["qkv_proj"](x))
        if cache.in_float16 and qkv.dtype == mx.bfloat16:
            qkv = as_float16(qkv)
        qk, v = mx.split(qkv, [rotated], axis=1)
        q, k = mx.split(self.rope(qk, cache.offset), [self.num_heads], axis=1)
        return q, k, v

    def _heads(self, x: mx.array) -> mx.array:
        """(B, L, heads * head_dim) -> (B, heads, L, head_dim)"""
        batch, length, _ = x.shape
        if length == 1:
            return x.reshape(batch, -1, 1, self.head_dim)
        return x.reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, compiled into one kernel."""
    return nn.silu(gate) * up


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Projections(
            hidden_size, gate_proj=intermediate_size, up_proj=intermediate_size
        )
        self.down_proj = Linear(intermediate_size, hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        # Unnamed, gate and up are freed before the next matrix is dequantized.
        y: mx.array = self["down_proj"](swiglu(*self["gate_up_proj"].apart(x)))
        return y


class Block(nn.Module):
    """Attention, then MLP, each with pre-norm and a residual connection."""

    def __init__(self, config: TextConfig, rope: Rope) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, rope)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, cache: LayerCache, growth: float | mx.array | None) -> mx.array:
        x = x + self["self_attn"](self["input_layernorm"](x), cache, growth)
        y: mx.array = x + self["mlp"](self["post_attention_layernorm"](x))
        return y

    def prefill(self, x: mx.array, cache: KVCache) -> None:
        """Append to the cache what a call would, without computing outputs."""
        self["self_attn"].prefill(self["input_layernorm"](x), cache)


class Decoder(nn.Module):
    """The blocks between the embedding and the head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        rope = Rope(config)
        self.layers = [Block(config, rope) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.query_scaling = config.query_scaling

    def __call__(self, h: mx.array, caches: Sequence[LayerCache]) -> mx.array:
        y: mx.array = self["norm"](self.through(self["layers"], h, caches))
        return y

    def prefill(self, h: mx.array, caches: Sequence[KVCache]) -> None:
        """Append to the caches what a call would, without most of the last block's work."""
        *layers, last = self["layers"]
        last.prefill(self.through(layers, h, caches), caches[-1])

    def through(
        self, layers: Sequence[Block], h: mx.array, caches: Sequence[LayerCache]
    ) -> mx.array:
        """(B, L, D) -> (B, L, D) after the first layers, before the final norm."""
        growth = query_growth(self.query_scaling, caches[0].offset, h.shape[1])
        is_chunk = h.size // h.shape[-1] > backend().few_rows
        for layer, cache in zip(layers, caches, strict=False):
            if is_chunk:
                # One layer at a time bounds memory, and the time of one GPU submission.
                mx.eval(h)
            h = layer(h, cache, growth)
        return h


class LanguageModel(nn.Module):
    """Decoder and head; the head is a separate matrix, or the embedding if they are tied."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def logits(self, h: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, vocab_size), in float32 if the head is quantized.

        The head is a small part of a token's work, and what it rounds decides between near ties
        (`computes_in_float32` in magistral_mlx/checkpoint/load.py).
        """
        tied = "lm_head" not in self
        if (self.model.embed_tokens if tied else self.lm_head).quantized:
            h = h.astype(mx.float32)
        return self.model.embed_tokens.as_linear(h) if tied else self.lm_head(h)
