"""The architecture page and the glossary name files, functions and classes that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
_HOP = re.compile(r"^\| (\d+) \| `([\w.]+)` \| `([\w/]+\.py)` \|", re.M)
HOPS = [(int(number), name, file) for number, name, file in _HOP.findall(PAGE)]


def definitions(file: str) -> set[str]:
    """The functions and methods of a file, by qualified name."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            elif isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, "")
    return found


def test_every_path_that_is_named_exists():
    paths = set(re.findall(r"`((?:magistral_mlx|convert|tests)/[\w/.]*)`", PAGE))
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_a_token_takes_22_hops_at_most():
    assert [number for number, _, _ in HOPS] == list(range(1, len(HOPS) + 1))
    assert 15 <= len(HOPS) <= 22


@pytest.mark.parametrize(("number", "name", "file"), HOPS, ids=[name for _, name, _ in HOPS])
def test_each_hop_is_a_function_of_its_file(number: int, name: str, file: str):
    assert name in definitions(file)


def test_every_class_of_the_glossary_exists():
    packages = (ROOT / "magistral_mlx", ROOT / "convert" / "magistral_convert")
    sources = [path.read_text("utf-8") for package in packages for path in package.rglob("*.py")]
    classes = {name for text in sources for name in re.findall(r"^class (\w+)", text, re.M)}
    named = set(re.findall(r"`([A-Z][a-z]\w+)`", GLOSSARY)) - {"Event"}  # a union of classes
    assert named - classes == set()


def test_the_glossary_is_in_order():
    terms = [line.split("|")[1].strip() for line in GLOSSARY.splitlines() if line[:2] == "| "][1:]
    assert terms == sorted(terms, key=str.casefold)
