"""Garbage is looked for again once a command has imported what it needs."""

from __future__ import annotations

import gc

import pytest

from magistral_mlx.cli.process import quick_imports


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_it_was_afterwards_whatever_happens(enabled: bool):
    if not enabled:
        gc.disable()
    inside: list[bool] = []

    def fail() -> None:
        with quick_imports():
            inside.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert inside == [False]
    assert gc.isenabled() == enabled


def test_what_was_imported_is_not_looked_through_again():
    with quick_imports():
        before = gc.get_freeze_count()
        made = [[n] for n in range(1000)]
    assert gc.get_freeze_count() >= before + len(made)
