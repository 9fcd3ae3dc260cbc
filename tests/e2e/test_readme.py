"""The README is true: its table of machines is what the command prints."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.test_generate import run
from tests.e2e.test_plan_command import EMPTY

README = Path(__file__).parents[2] / "README.md"


def test_the_table_of_machines_is_the_one_that_plan_prints():
    printed = run("plan", "--all-machines", **EMPTY)
    assert printed.returncode == 0, printed.stderr
    assert f"```\n{printed.stdout}```\n" in README.read_text(encoding="utf-8")
