"""Check that all dependencies install from wheels on every Mac that is supported.

    python scripts/check_wheels.py [MACOS ...]

macOS 14, 15 and 26 on arm64, Python 3.11 to 3.13, with the extra for the server. Nothing is
installed: pip resolves for the other platform, and wheels only. Needs the package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
MACOS = (14, 15, 26)
PYTHONS = ("3.11", "3.12", "3.13")
_OLDEST = 11  # macOS with arm64


def platforms(macos: int) -> list[str]:
    """Return the tags of wheels that a Mac with this system takes, newest first."""
    versions = [n for n in range(macos, _OLDEST - 1, -1) if n <= 15 or n >= 26]
    tags = [
        f"macosx_{version}_0_{arch}" for version in versions for arch in ("arm64", "universal2")
    ]
    return [*tags, *(f"macosx_10_{minor}_universal2" for minor in range(16, 8, -1))]


def requirements() -> list[str]:
    """Return the dependencies on a Mac, those of the server's extra included.

    pip applies markers of the machine it runs on, so those of a Mac are taken and dropped here.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    parts = [line.partition(";") for line in wanted]
    return [name.strip() for name, _, marker in parts if "linux" not in marker]


def resolve(macos: int, python: str) -> str:
    """Resolve for one system and Python -> what is missing, "" if nothing is."""
    tags = [option for tag in platforms(macos) for option in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as target:
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--target", target),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
            *(*tags, "--disable-pip-version-check", *requirements()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else " ".join(errors) or done.stderr.strip()


def main() -> int:
    """Check all systems and Pythons; 1 if a wheel is missing for one."""
    bad = 0
    for macos in [int(given) for given in sys.argv[1:]] or MACOS:
        for python in PYTHONS:
            missing = resolve(macos, python)
            mark = f"✗ {missing}" if missing else "✓"
            sys.stdout.write(f"macOS {macos}, Python {python}: {mark}\n")
            sys.stdout.flush()
            bad += bool(missing)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
