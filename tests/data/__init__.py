"""Files that others made, to test against; a README beside them says where they come from."""

from pathlib import Path

GGUF = Path(__file__).parent / "gguf"
