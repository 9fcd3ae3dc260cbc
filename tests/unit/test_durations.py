"""Durations as people write them."""

import pytest

from magistral_mlx.cli.durations import parse_duration
from magistral_mlx.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("10m", 600), ("1.5h", 5400), (".5m", 30), ("2d", 172800), ("0", 0)],
)
def test_a_number_and_a_unit_are_seconds(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [None, "never"])
def test_nothing_and_never_are_no_limit(text: str | None):
    assert parse_duration(text) is None


@pytest.mark.parametrize("text", ["", "soon", "10 minutes", "-1s", "1e9", "10m5s", "nan", "inf"])
def test_anything_else_is_refused_with_examples(text: str):
    with pytest.raises(InvalidOption, match="10m"):
        parse_duration(text)
