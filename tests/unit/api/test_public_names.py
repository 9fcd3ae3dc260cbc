"""What `import magistral_mlx` offers, and what it costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import magistral_mlx

HEAVY = (
    "mlx",
    "numpy",
    "mistral_common",
    "transformers",
    "torch",
    "PIL",
    "huggingface_hub",
    "rich",
    "asyncio",
)


@pytest.mark.parametrize(
    "statement",
    ["import magistral_mlx", "from magistral_mlx import Magistral, User, MagistralError"],
)
def test_importing_loads_nothing_heavy(statement: str):
    program = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_every_public_name_is_there():
    for name in magistral_mlx.__all__:
        assert getattr(magistral_mlx, name) is not None
        assert name in dir(magistral_mlx)


def test_type_checkers_see_the_same_names():
    stub = Path(magistral_mlx.__file__).with_suffix(".pyi").read_text()
    imported = re.findall(r"^from (\S+) import (\w+) as \2$", stub, flags=re.MULTILINE)
    assert sorted(name for _, name in imported) == sorted(magistral_mlx.__all__)
    for module, name in imported:
        assert getattr(sys.modules[module], name) is getattr(magistral_mlx, name)


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="module 'magistral_mlx' has no attribute 'nonsense'"):
        magistral_mlx.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_and_event_is_public():
    from magistral_mlx import errors, events

    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds <= set(magistral_mlx.__all__)
    shown = {kind.__name__ for kind in events.Event.__args__}
    assert shown <= set(magistral_mlx.__all__)
