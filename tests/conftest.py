"""Set-up that every test shares."""

# First, before any reference loads MLX by itself: it finds a fast BLAS on Linux.
import magistral_mlx.backend  # noqa: F401

from hypothesis import settings  # isort: skip

# The same examples in every run: a change is judged by itself, not by the luck of the draw.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")
