"""The reference of the Python API is whole: each public name stands in it, with a docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

import magistral_mlx

ROOT = Path(__file__).parents[2]
_DIRECTIVE = re.compile(r"^::: magistral_mlx\.(\w+)$", re.M)


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    loaded = griffe.load("magistral_mlx", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def test_each_public_name_stands_in_the_reference_once():
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    named = [name for page in pages for name in _DIRECTIVE.findall(page.read_text("utf-8"))]
    assert sorted(named) == magistral_mlx.__all__


def test_the_stub_names_what_the_package_offers(package: griffe.Module):
    stub = (ROOT / "magistral_mlx" / "__init__.pyi").read_text("utf-8")
    assert sorted(re.findall(r" import (\w+) as \1$", stub, re.M)) == magistral_mlx.__all__


def undocumented(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Yield the item, and the methods and properties that it adds, if they lack a docstring."""
    if not item.has_docstring:
        yield item.path
    for name, member in item.members.items():
        is_property = member.is_attribute and "property" in member.labels
        offered = not name.startswith("_") and (member.is_function or is_property)
        if offered and not member.has_docstring:
            yield member.path


@pytest.mark.parametrize("name", magistral_mlx.__all__)
def test_a_public_name_and_its_methods_have_docstrings(package: griffe.Module, name: str):
    assert list(undocumented(package[name])) == []
