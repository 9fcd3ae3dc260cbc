"""The options of scripts that measure once: those of `common.options` that do something there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import OUT


def arguments(doc: str, *, full: bool = False, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse --out, --full where there is one, and own options: name -> keywords of add_argument."""
    first, _, rest = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if full:
        parser.add_argument("--full", action="store_true", help="all of it, however long it takes")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the record and the plot")
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()
