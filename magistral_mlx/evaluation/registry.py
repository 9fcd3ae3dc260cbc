"""What Inspect finds by our entry point: the provider."""

from __future__ import annotations

from magistral_mlx.evaluation.provider import MagistralProvider

__all__ = ["MagistralProvider"]
