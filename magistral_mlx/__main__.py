"""`python -m magistral_mlx`: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, with an exit status of 130 after Ctrl-C at any time."""
    try:
        from magistral_mlx.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
