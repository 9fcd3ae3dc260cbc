"""Set-up that every test shares."""

# First, before any reference loads MLX by itself: it finds a fast BLAS on Linux.
import magistral_mlx.backend  # noqa: F401
