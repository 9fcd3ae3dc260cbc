"""The documentation is what the code says: options, commands, and how to install."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from magistral_mlx.cli.main import cli
from magistral_mlx.errors import MagistralError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A command on a line of its own, unless the line after it refuses it.
_COMMAND = re.compile(r"^(?:\$ |.* \| )?magistral-mlx (?P<words>[a-z].*)\n(?!magistral-mlx:)", re.M)
_FROM_PYPI = re.compile(r"(pip|pipx|uv tool) install '?magistral-mlx|uvx '?magistral-mlx")


def test_the_page_of_options_is_made_from_their_declarations() -> None:
    script = ROOT / "scripts" / "options_page.py"
    made = runpy.run_path(str(script))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), f"run python {script}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command on a page, up to a comment, a pipe or a file."""
    for found in _COMMAND.finditer(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        words = shlex.split(found["words"], comments=True)
        end = next((n for n, word in enumerate(words) if word in ("|", ">", "&")), None)
        yield words[:end]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_on_a_page_are_those_that_there_are(page: Path) -> None:
    context = click.Context(cli)
    for name, *words in commands(page):
        command = cli.get_command(context, name)
        assert command, f"{page} has magistral-mlx {name}"
        try:
            command.make_context(name, words)
        except (click.UsageError, MagistralError) as error:
            pytest.fail(f"{page} has magistral-mlx {name} {shlex.join(words)}: {error}")


def test_nothing_says_to_install_from_pypi_before_there_is_a_release() -> None:
    if re.search(r"^## \d", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        return
    code = [*ROOT.glob("magistral_mlx/**/*.py"), *ROOT.glob("convert/**/*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in (*PAGES, *code)}
    assert [path for path, text in texts.items() if _FROM_PYPI.search(text)] == []
