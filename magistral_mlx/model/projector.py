"""The multimodal projector: merges squares of patches and maps them to the decoder's width."""

from __future__ import annotations

from magistral_mlx.backend import mx, nn
from magistral_mlx.config import ModelConfig
from magistral_mlx.model.linear import Linear


class PatchMerger(nn.Module):
    """Each square of `size` x `size` patches becomes one vector."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.merging_layer = Linear(width * size * size, width)

    def __call__(self, patches: mx.array) -> mx.array:
        """(rows, columns, D) -> (rows / size * columns / size, D)"""
        rows, columns, width = patches.shape
        size = self.size
        # Channel-major inside a square, as torch.nn.functional.unfold lays it out.
        squares = patches.reshape(rows // size, size, columns // size, size, width)
        squares = squares.transpose(0, 2, 4, 1, 3).reshape(-1, width * size * size)
        return self.merging_layer(squares)


class Projector(nn.Module):
    """Patches of the vision tower -> embeddings for the decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vision is not None
        seen, text = config.vision.hidden_size, config.text.hidden_size
        self.norm = nn.RMSNorm(seen, eps=config.text.rms_norm_eps)
        self.patch_merger = PatchMerger(seen, config.spatial_merge_size)
        self.linear_1 = Linear(seen, text, bias=config.projector_bias)
        self.linear_2 = Linear(text, text, bias=config.projector_bias)

    def __call__(self, patches: mx.array) -> mx.array:
        """(rows, columns, D_vision) -> (tokens, D)"""
        x = self.patch_merger(self.norm(patches))
        return self.linear_2(nn.gelu(self.linear_1(x)))
