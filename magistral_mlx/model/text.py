"""The decoder: a Mistral transformer with grouped-query attention (arXiv 2310.06825).

Reads top-down from the parts to the whole. L is the number of new tokens, D the width.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import mx, nn
from magistral_mlx.cache.kv import LayerCache
from magistral_mlx.config import TextConfig
from magistral_mlx.model.linear import Embedding, Linear

FEW_ROWS = 64  # tokens that run through all layers as one graph; more are a chunk of a prompt


class Attention(nn.Module):
    """Causal attention; `num_attention_heads` share `num_key_value_heads` keys and values."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(width, config.hidden_size)

    def __call__(self, x: mx.array, cache: LayerCache) -> mx.array:
        q = self._heads(self.q_proj(x), self.num_heads)  # (B, H, L, head_dim)
        k = self._heads(self.k_proj(x), self.num_kv_heads)  # (B, H_kv, L, head_dim)
        v = self._heads(self.v_proj(x), self.num_kv_heads)
        q, k = self._rope(q, cache.offset), self._rope(k, cache.offset)
        y = cache.attend(q, k, v, scale=self.head_dim**-0.5)  # (B, H, L, head_dim)
        batch, _, length, _ = y.shape
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _heads(self, x: mx.array, heads: int) -> mx.array:
        """(B, L, heads * head_dim) -> (B, heads, L, head_dim)"""
        batch, length, _ = x.shape
        return x.reshape(batch, length, heads, self.head_dim).transpose(0, 2, 1, 3)

    def _rope(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=offset
        )


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then MLP, each on a normed copy and added back."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, cache: LayerCache) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The blocks between the embedding and the head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, h: mx.array, caches: Sequence[LayerCache]) -> mx.array:
        is_chunk = h.shape[1] > FEW_ROWS
        for layer, cache in zip(self.layers, caches, strict=True):
            if is_chunk:
                # One layer in flight at a time bounds memory, and how long a GPU is kept busy. The
                # last one stays lazy: a chunk that is not the prompt's last needs no more of it.
                mx.eval(h)
            h = layer(h, cache)
        return self.norm(h)


class LanguageModel(nn.Module):
    """Decoder and head. The head is a matrix of its own, or the embedding's where they are tied."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def logits(self, h: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, vocab_size)"""
        return self.lm_head(h) if "lm_head" in self else self.model.embed_tokens.as_linear(h)
