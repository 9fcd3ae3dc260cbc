"""Set-up that every test shares."""

# First, before any reference loads MLX by itself: it finds a fast BLAS on Linux.
import magistral_mlx.backend  # noqa: F401

from hypothesis import HealthCheck, settings  # isort: skip

# The same examples in every run: a change is judged by itself, not by the luck of the draw. No
# bound on time: the machine may be busy.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")
