"""Models that say what a test wants them to, each loaded once a module, and closed after it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_mlx import Magistral
from tests.scripted import write_scripted_checkpoint

THOUGHT, ANSWER = "Let me see: it is", "A red circle."


@pytest.fixture(scope="session")
def talker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks THOUGHT, answers ANSWER; to a tool's result it says "Zero"."""
    return write_scripted_checkpoint(
        tmp_path_factory.mktemp("api") / "talker",
        ["[/INST]", "[THINK]", THOUGHT, "[/THINK]", ANSWER, "</s>"],
        ["[/TOOL_RESULTS]", "Zero", "</s>"],
        vision=True,
    )


@pytest.fixture(scope="module")
def talker(talker_folder: Path) -> Iterator[Magistral]:
    with Magistral.load(talker_folder) as magistral:
        yield magistral


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Magistral]:
    """Says "Wa" and calls f({}); to the result it says "Zero"."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("api") / "caller",
        ["[/INST]", "Wa", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"],
        ["[/TOOL_RESULTS]", "Zero", "</s>"],
    )
    with Magistral.load(folder) as magistral:
        yield magistral


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never stops by itself: "1, 2, 3, 1, 2, 3, …"."""
    return write_scripted_checkpoint(
        tmp_path_factory.mktemp("api") / "endless",
        ["[/INST]", "1"],
        ["1", "a", "2", "b", "3", "c", "1"],
        context=100_000,
    )


@pytest.fixture(scope="module")
def endless(endless_folder: Path) -> Iterator[Magistral]:
    with Magistral.load(endless_folder) as magistral:
        yield magistral
