"""Set-up that every test shares."""

from pathlib import Path

import pytest

# Before any reference loads MLX by itself: it finds a fast BLAS on Linux.
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts processes, servers or references: all of e2e/ and parity/."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ("e2e", "parity"):
            item.add_marker(pytest.mark.slow)
