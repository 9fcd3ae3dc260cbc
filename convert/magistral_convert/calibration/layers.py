"""A decoder layer as a function of its weights, which tells the inputs of its matrices.

The runtime's modules hold a whole model; here one layer is in memory at a time. B sequences of L
tokens, D the width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from magistral_convert.calibration.gptq import blocks
from magistral_mlx.backend import mx, nn
from magistral_mlx.config import TextConfig
from magistral_mlx.model.rope import Rope, query_growth, score_scale

Weights = Mapping[str, mx.array]  # part of a layer, such as "mlp.up_proj", -> (out, in) or (D,)
OnInput = Callable[[str, mx.array], None]

# The matrices that share an input, under the name of the first.
SHARED_INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


class LayerPass:
    """Runs sequences through layers of one model."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config
        self._rope = Rope(config)
        self._scale = score_scale(config)

    def __call__(self, h: mx.array, weights: Weights, on_input: OnInput | None = None) -> mx.array:
        """(B, L, D) -> (B, L, D), each sequence from position 0 on.

        Args:
            on_input: called with a name of SHARED_INPUTS and the input, (B, L, in).
        """
        eps = self._config.rms_norm_eps
        tell = on_input or (lambda name, x: None)
        x = mx.fast.rms_norm(h, weights["input_layernorm"], eps)
        tell("self_attn.q_proj", x)
        y = self._attend(x, weights)
        tell("self_attn.o_proj", y)
        h = h + y @ weights["self_attn.o_proj"].T
        x = mx.fast.rms_norm(h, weights["post_attention_layernorm"], eps)
        tell("mlp.gate_proj", x)
        z = nn.silu(x @ weights["mlp.gate_proj"].T) * (x @ weights["mlp.up_proj"].T)
        tell("mlp.down_proj", z)
        return h + z @ weights["mlp.down_proj"].T

    def _attend(self, x: mx.array, weights: Weights) -> mx.array:
        """(B, L, D) -> (B, L, heads * head_dim)"""
        batch, length, _ = x.shape
        config = self._config
        q, k, v = (
            (x @ weights[f"self_attn.{name}_proj"].T)
            .reshape(batch, length, -1, config.head_dim)
            .transpose(0, 2, 1, 3)
            for name in "qkv"
        )
        q, k = self._rope(q, 0), self._rope(k, 0)
        growth = query_growth(config.query_scaling, 0, length)
        if growth is not None:
            q = (q * growth).astype(x.dtype)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._scale, mask="causal")
        return y.transpose(0, 2, 1, 3).reshape(batch, length, -1)


class InputStatistics:
    """Mean squares of the columns of each input and, where asked for, their products.

    `products`: also `x.T @ x` of each block of columns, which error compensation needs.
    """

    def __init__(self, *, products: bool = False) -> None:
        self._squares: dict[str, mx.array] = {}
        self._products: dict[str, list[mx.array]] = {}
        self._counts: dict[str, int] = {}
        self._with_products = products

    def add(self, name: str, x: mx.array) -> None:
        """Add an input, (…, in)."""
        rows = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        squares = (rows * rows).sum(axis=0)
        if name in self._squares:
            squares = squares + self._squares[name]
        self._squares[name] = squares
        self._counts[name] = self._counts.get(name, 0) + len(rows)
        if self._with_products:
            products = [rows[:, part].T @ rows[:, part] for part in blocks(rows.shape[1])]
            if name in self._products:
                products = [a + b for a, b in zip(products, self._products[name], strict=True)]
            self._products[name] = products

    def evaluate(self) -> None:
        """Compute what has been added, so that the inputs can be freed."""
        mx.eval(self._squares, self._products)

    def mean_squares(self, name: str) -> mx.array:
        """(in,) float32"""
        return self._squares[name] / self._counts[name]

    def take_products(self, name: str) -> list[mx.array]:
        """Return and forget the mean products of each block, (K, K) float32."""
        return [products / self._counts[name] for products in self._products.pop(name)]
