"""Set-up that every test shares."""

import gc
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What a machine's proxies, hub settings and folders are must not decide a test.
for _name in list(os.environ):
    if _name.upper().endswith("_PROXY") or _name.startswith(
        ("HF_", "HUGGING", "TRANSFORMERS_", "MAGISTRAL_MLX_", "OLLAMA_", "XDG_")
    ):
        del os.environ[_name]

# Tests run in as many processes as there are cores, and their matrices are small: an OpenBLAS that
# shares each of them among threads takes twice the time, in waiting.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and so would what tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tokens are compared exactly, which float32 on MLX's CPU backend allows, on a Mac too.
os.environ["MAGISTRAL_MLX_DEVICE"] = "cpu"

# Before any reference loads MLX by itself: it finds a fast BLAS on Linux.
import magistral_mlx.backend  # noqa: E402, F401

from hypothesis import HealthCheck, settings  # noqa: E402  # isort: skip

# The same examples in every run: a change is judged by itself, not by the luck of the draw. No
# bound on time: the machine may be busy.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeds_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed draw 1, 2, 3, … in each test, not what the system's chance gives."""
    seeds = itertools.count(1)
    monkeypatch.setattr("secrets.randbelow", lambda bound: next(seeds) % bound)


@pytest.fixture(scope="module", autouse=True)
def _models_end_with_their_module() -> Iterator[None]:
    """Give the memory of shared models back: tests of memory may run next in this process."""
    yield
    if "tests.engine_models" in sys.modules:
        sys.modules["tests.engine_models"].tiny_model.cache_clear()
    gc.collect()


def pytest_collection_finish() -> None:
    """Take the references' modules, millions of objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts processes, servers or references: all of e2e/ and parity/.

    Elsewhere than on Linux tests marked `linux` are skipped; -ra names each of them and why.
    """
    for item in items:
        needs = item.get_closest_marker("linux")
        if needs and sys.platform != "linux":
            item.add_marker(pytest.mark.skip(reason=f"Linux only: {needs.args[0]}"))
        if item.path.relative_to(Path(__file__).parent).parts[0] in ("e2e", "parity"):
            item.add_marker(pytest.mark.slow)
