"""docs/options.md is what the declarations say."""

import runpy
from pathlib import Path


def test_the_page_of_options_is_made_from_their_declarations():
    script = Path(__file__).parents[2] / "scripts" / "options_page.py"
    made = runpy.run_path(str(script))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), f"run python {script}"
