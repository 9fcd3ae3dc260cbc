"""Workflows, release notes, and the wheels of dependencies."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
NOTES = runpy.run_path(str(ROOT / "scripts/release_notes.py"))
WHEELS = runpy.run_path(str(ROOT / "scripts/check_wheels.py"))


def test_workflows_are_valid_by_githubs_schema() -> None:
    assert [file.name for file in WORKFLOWS] == ["ci.yml", "release.yml"]
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_what_it_should_on_each_system_and_python() -> None:
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    for wanted in (
        "macos-14, macos-15, macos-26",
        '"3.11", "3.12", "3.13"',
        "make lint",
        "make test",
        "make demo",
        "doctor --check",
        "actionlint",
    ):
        assert wanted in text


CHANGELOG = """# Changelog

## Unreleased

- next

## 0.2.0 (2027-01-15)

- second, with a line

  of its own

## 0.1.0

- first
"""


@pytest.mark.parametrize(
    ("version", "notes"),
    [
        ("0.2.0", "- second, with a line\n\n  of its own"),
        ("0.1.0", "- first"),
        ("Unreleased", "- next"),
        ("0.3.0", ""),
        ("0.1", ""),
    ],
)
def test_the_notes_of_a_release_are_its_section(version: str, notes: str) -> None:
    assert NOTES["notes"](CHANGELOG, version) == notes


def test_a_tag_of_another_version_is_refused() -> None:
    script = str(ROOT / "scripts/release_notes.py")
    done = subprocess.run(
        [sys.executable, script, "99.0.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("the tag is 99.0.0; magistral_mlx/__init__.py has ")


def test_wheels_are_asked_for_as_a_mac_takes_them() -> None:
    tags = WHEELS["platforms"](26)
    assert tags[0] == "macosx_26_0_arm64"
    assert {"macosx_15_0_arm64", "macosx_11_0_arm64", "macosx_10_9_universal2"} <= set(tags)
    assert "macosx_16_0_arm64" not in tags  # 15 was followed by 26
    assert "macosx_15_0_arm64" not in WHEELS["platforms"](14)
    assert not any("x86_64" in tag for tag in tags)


def test_the_dependencies_that_are_resolved_are_those_of_a_mac() -> None:
    wanted = WHEELS["requirements"]()
    assert any(line.startswith("mlx>=") for line in wanted)
    assert not any("cpu" in line for line in wanted)
    assert any(line.startswith("fastapi") for line in wanted)
