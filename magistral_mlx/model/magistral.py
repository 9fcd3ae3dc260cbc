"""The whole model: vision tower, projector and decoder.

features = [model.encode_image(pixels) for pixels in images]   # each (tokens, D)
h = model.embed(tokens)                                 # (1, L, D), features put in
h = model(h, caches)                                    # (1, L, D)
logits = model.logits(h[:, -1:])                        # (1, 1, vocab_size)
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx.utils import tree_reduce

from magistral_mlx.backend import backend, mx, nn
from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.cache.kv import KVCache, LayerCache, make_cache
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.config import ModelConfig
from magistral_mlx.model.adapters import AdapterRows
from magistral_mlx.model.linear import use_adapters
from magistral_mlx.model.projector import Projector
from magistral_mlx.model.text import LanguageModel
from magistral_mlx.model.vision import VisionTower

# MLX encodes kernels ahead of the device until 10 command buffers are not done (`MAX_ACTIVE_TASKS`
# in mlx/transforms.cpp, lines 25 and 271 of commit 846d176), and one more is open. On Metal one is
# committed when it has more than 50 kernels, or inputs of more than 50 Mi values, packed ones
# counted in words; on smaller chips earlier (mlx/backend/metal/device.cpp, lines 350, 513 and 604).
# The CPU's tasks are smaller (mlx/backend/cpu/encoder.h, line 13).
_BUFFERS_IN_FLIGHT = 12
_VALUES_A_BUFFER = 51 << 20
_LAYERS_A_BUFFER = 4  # at most, by the number of kernels: a layer has 13 at least


class MagistralModel(nn.Module):
    """Magistral Small and its siblings. Modules are named as the tensors of a checkpoint."""

    def __init__(self, config: ModelConfig, dtype: mx.Dtype) -> None:
        """Build the decoder alone; `add_vision` builds the vision tower on the first image."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self._overlaps_passes: bool | None = None  # known when the weights are loaded
        self.language_model = LanguageModel(config.text)
        self.adapters = AdapterRows()
        use_adapters(self, self.adapters)

    @property
    def vision_loaded(self) -> bool:
        """Whether the vision tower has been built."""
        return "vision_tower" in self

    @property
    def overlaps_passes(self) -> bool:
        """Whether a pass of a few tokens may be dispatched before the one before it is done.

        A pass writes into the caches that the one before it reads. Where a layer's part of that
        one is done before this one's is encoded, the caches are written in place; else MLX copies
        them.
        """
        if self._overlaps_passes is None:
            layers = self.language_model.model.layers
            values = tree_reduce(lambda n, array: n + array.size, layers[0].parameters(), 0)
            together = min(_LAYERS_A_BUFFER, -(-_VALUES_A_BUFFER // values))
            deep = len(layers) > _BUFFERS_IN_FLIGHT * together
            self._overlaps_passes = deep and backend().name != "cuda"
        return self._overlaps_passes

    def add_vision(self) -> None:
        """Build the vision tower and the projector; their weights are still to be loaded."""
        assert self.config.vision is not None, "a text-only model has no vision tower"
        self.vision_tower = VisionTower(self.config.vision)
        self.multi_modal_projector = Projector(self.config)
        use_adapters(self, self.adapters)

    def drop_vision(self) -> None:
        """Remove the vision tower and the projector, as before `add_vision`."""
        del self.vision_tower, self.multi_modal_projector

    def make_caches(self, scheme: KVScheme = FULL, workspace: int = WORKSPACE) -> SequenceCaches:
        """Make an empty cache per layer. `workspace`: bytes of attention's temporary arrays."""
        layers = self.language_model.model.layers
        return SequenceCaches(make_cache(scheme, workspace) for _ in layers)

    def encode_image(self, pixels: mx.array) -> mx.array:
        """One image, (3, H, W) normalised pixels -> (tokens, D) embeddings.

        H and W are multiples of patch_size * spatial_merge_size.
        """
        return self.multi_modal_projector(self.vision_tower(pixels.astype(self.dtype)))

    def embed(self, tokens: mx.array) -> mx.array:
        """(B, L) token ids -> (B, L, D)"""
        return self.language_model.model.embed_tokens(tokens, self.dtype)

    def __call__(self, h: mx.array, caches: Sequence[LayerCache]) -> mx.array:
        """Run embeddings (B, L, D) through the decoder, appending to the caches -> (B, L, D)."""
        return self.language_model.model(h, caches)

    def prefill(self, h: mx.array, caches: Sequence[KVCache]) -> None:
        """Append to the caches what a call would, without computing outputs."""
        self.language_model.model.prefill(h, caches)

    def logits(self, h: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, vocab_size). Call it only for positions that are sampled."""
        return self.language_model.logits(h)
