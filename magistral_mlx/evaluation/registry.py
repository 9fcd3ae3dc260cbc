"""What Inspect finds by our entry point: the provider, and our own tasks."""

from __future__ import annotations

from magistral_mlx.evaluation.demo_task import demo
from magistral_mlx.evaluation.livecodebench import livecodebench
from magistral_mlx.evaluation.provider import magistral_mlx

__all__ = ["demo", "livecodebench", "magistral_mlx"]
