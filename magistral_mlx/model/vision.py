"""The vision tower: Pixtral's transformer over the patches of one image (arXiv 2410.07073).

Patches attend only within their image, so images are processed one at a time: no mask, and memory
grows with the largest image instead of the square of all of them together.
"""

from __future__ import annotations

from magistral_mlx.backend import mx, nn
from magistral_mlx.cache.attention import attend
from magistral_mlx.cache.segments import Segment
from magistral_mlx.config import VisionConfig
from magistral_mlx.model.linear import Linear
from magistral_mlx.model.rope import image_angles, rotate
from magistral_mlx.model.text import MLP

WORKSPACE = 64 << 20  # bytes of materialized scores; more is not faster


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel: one matrix product over flattened patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.weight = mx.zeros(
            (config.hidden_size, config.num_channels, config.patch_size, config.patch_size)
        )

    def __call__(self, pixels: mx.array) -> mx.array:
        """(channels, H, W) pixels -> (1, rows * columns, D) patches, in row order."""
        channels, height, width = pixels.shape
        size = self.patch_size
        rows, columns = height // size, width // size
        patches = (
            pixels.reshape(channels, rows, size, columns, size)
            .transpose(1, 3, 0, 2, 4)
            .reshape(1, rows * columns, channels * size * size)
        )
        return patches @ self.weight.reshape(self.weight.shape[0], -1).T


class VisionAttention(nn.Module):
    """Attention of all patches of an image to each other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        width = self.num_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, width)
        self.v_proj = Linear(config.hidden_size, width)
        self.o_proj = Linear(width, config.hidden_size)

    def __call__(self, x: mx.array, angles: mx.array) -> mx.array:
        q = rotate(self._heads(self.q_proj(x)), angles)  # (1, H, L, head_dim)
        k = rotate(self._heads(self.k_proj(x)), angles)
        v = self._heads(self.v_proj(x))
        y = attend(
            q,
            [Segment(k, v, k.shape[2])],
            scale=self.head_dim**-0.5,
            causal=False,
            workspace=WORKSPACE,
        )
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(1, x.shape[1], -1))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(1, x.shape[1], self.num_heads, self.head_dim).transpose(0, 2, 1, 3)


class VisionBlock(nn.Module):
    """Attention, then MLP, each on a normed copy and added back."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = VisionAttention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, angles: mx.array) -> mx.array:
        x = x + self.attention(self.attention_norm(x), angles)
        return x + self.feed_forward(self.ffn_norm(x))


class VisionTransformer(nn.Module):
    """The stack of blocks, a separate module because of the checkpoint's tensor names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = [VisionBlock(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, angles: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x, angles)
            mx.eval(x)  # one layer in flight at a time bounds memory
        return x


class VisionTower(nn.Module):
    """Pixels of one image -> one vector per patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_conv = PatchConv(config)
        self.ln_pre = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.transformer = VisionTransformer(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        """(channels, H, W), H and W multiples of patch_size -> (rows, columns, D)."""
        rows, columns = (side // self.config.patch_size for side in pixels.shape[1:])
        angles = image_angles(rows, columns, self.config.head_dim, self.config.rope_theta)
        x = self.ln_pre(self.patch_conv(pixels))
        return self.transformer(x, angles).reshape(rows, columns, -1)
