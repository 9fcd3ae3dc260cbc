"""The shape of the code: names that mean one thing, files that can be held in mind.

The layers, and that no import goes in a circle, are import-linter's to check (`make lint`).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "magistral_mlx", ROOT / "convert" / "magistral_convert")
FILES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
LONGEST, SHORTEST = 300, 40  # lines
_REASON = re.compile(r"longer\s+than\s+others\s+because\s+\w")  # in the docstring of the module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def is_table(tree: ast.Module) -> bool:
    """Whether a module holds nothing but data: no function, and no class with a method."""
    return not any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree)
    )


def test_no_two_public_classes_have_one_name():
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name_of(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_a_long_file_says_why_it_is_one():
    long = [path for path in FILES if lines_of(path) > LONGEST]
    unexplained = {
        name_of(path): lines_of(path)
        for path in long
        if not _REASON.search(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
    }
    assert unexplained == {}


@pytest.mark.parametrize("package", ["api", "server"])
def test_no_file_is_a_splinter(package: str):
    """A short file is a table, or the `__init__` of a package."""
    short = {
        name_of(path): lines_of(path)
        for path in sorted((ROOT / "magistral_mlx" / package).rglob("*.py"))
        if path.name != "__init__.py" and lines_of(path) < SHORTEST
        if not is_table(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert short == {}
