"""Print the changelog's section of a version, for a release; see CONTRIBUTING.md.

    python scripts/release_notes.py 0.1.0

Fails if the version is not that of the package, or if CHANGELOG.md has no section of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def notes(changelog: str, version: str) -> str:
    """Return the text of the section `## VERSION`, without its heading, or "" if there is none."""
    sections = re.split(r"^## (.*)$", changelog, flags=re.MULTILINE)[1:]
    found = {title.split()[0]: text for title, text in zip(*[iter(sections)] * 2, strict=True)}
    return found.get(version, "").strip()


def package_version(source: str) -> str:
    """Return the version that `magistral_mlx/__init__.py` gives."""
    found = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    return found[1] if found else ""


def main() -> int:
    """Print the notes; 1 if something about the version is wrong."""
    (version,) = sys.argv[1:]
    ours = package_version((ROOT / "magistral_mlx/__init__.py").read_text(encoding="utf-8"))
    if version != ours:
        sys.stderr.write(f"the tag is {version}; magistral_mlx/__init__.py has {ours}.\n")
        return 1
    text = notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if not text:
        sys.stderr.write(f"CHANGELOG.md has no section '## {version}': rename 'Unreleased'.\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
