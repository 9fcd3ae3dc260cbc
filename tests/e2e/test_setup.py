"""`scripts/setup.sh` on a machine whose Python will not do, played by a stand-in."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"


def run_with(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run it in a copy of its folder, with stand-ins for programs first on the path."""
    (folder / "scripts").mkdir()
    script = folder / "scripts" / "setup.sh"
    script.write_text(SCRIPT.read_text())
    for name, text in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{folder}:/usr/bin:/bin"
    return subprocess.run(
        ["sh", str(script), "runtime"],
        env=os.environ | {"PATH": path, "PYTHON": str(folder / "python3")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_python_that_is_too_old_is_named_with_what_to_do(tmp_path: Path) -> None:
    old = 'case "$2" in *sys.exit*) exit 1;; *) echo "3.9.6 for arm64";; esac'
    done = run_with(tmp_path, python3=old)
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "3.9.6 for arm64" in done.stderr
    assert "brew install python@3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_old_macos_is_told_to_update(tmp_path: Path) -> None:
    done = run_with(tmp_path, uname="echo Darwin", sw_vers="echo 13.6", python3="exit 1")
    assert done.returncode == 1
    assert "this is macOS 13, and MLX needs macOS 14 or later" in done.stderr
