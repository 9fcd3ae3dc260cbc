"""What Inspect finds by our entry point: the provider, and our own tasks."""

from __future__ import annotations

from magistral_mlx.evaluation.demo_task import demo
from magistral_mlx.evaluation.livecodebench import livecodebench, livecodebench6
from magistral_mlx.evaluation.provider import magistral_mlx

__all__ = ["demo", "livecodebench", "livecodebench6", "magistral_mlx"]
