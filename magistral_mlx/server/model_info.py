"""Descriptions of a server's models, for its clients and its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from magistral_mlx.checkpoint.folder import Checkpoint


@dataclass(frozen=True)
class ModelInfo:
    """A model as clients see it.

    created: when its files were written, seconds since 1970. context: tokens of prompt and answer
    together. loaded: whether it is in memory now. system_prompt: its own, None for none.
    files: what is stored of it. parent: the model that an adapter changes; None for a model.
    """

    id: str
    created: int
    context: int
    supports_images: bool
    thinks: bool
    loaded: bool
    system_prompt: str | None
    files: ModelFiles
    parent: str | None = None


@dataclass(frozen=True)
class ModelFiles:
    """Size and form of a model's files.

    bits: of most weights; None where they are not quantized. digest: of configuration and weights.
    """

    size_bytes: int
    parameters: int
    bits: int | None
    is_gguf: bool
    digest: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelFiles:
        """Describe the files of a checkpoint."""
        return cls(
            checkpoint.nbytes,
            checkpoint.parameters,
            checkpoint.common_bits,
            checkpoint.layout == "gguf",
            checkpoint.fingerprint(),
        )

    @property
    def quantization(self) -> str:
        """The bits in words."""
        return "BF16" if self.bits is None else f"{self.bits}-bit"
