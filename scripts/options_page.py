"""Write docs/options.md from the declarations of the options: python scripts/options_page.py."""

from __future__ import annotations

from dataclasses import Field
from pathlib import Path
from typing import Any

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.options import Options
from magistral_mlx.engine.dry import Dry
from magistral_mlx.option_spec import declarations, default_text, spec_of

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
_HEAD = """# Options

Every option of an answer and of loading, made from the code by `scripts/options_page.py`. In Python
they are keyword arguments of [`generate`, `stream` and `chat`](reference/options.md), and of
`Magistral.load`; on the command line an underscore is a hyphen, as in `--max-tokens`. The server's
requests have most of them as fields of the same name: see its `/openapi.json`.
"""


def page() -> str:
    """The whole page."""
    answers = declarations(Options)
    sections: dict[str, dict[str, Field[Any]]] = {}
    for name, field in answers.items():
        spec = spec_of(field)
        assert spec
        sections.setdefault(spec.section, {})[name] = field
    parts = [_HEAD]
    for section, found in sections.items():
        parts.append(f"## {section}\n\n{_table(found)}")
        if section == "Sampling":
            parts.append(
                "`dry` takes `True` or a `Dry` with these settings; on the command line they are "
                f"`--dry-multiplier` and so on.\n\n{_table(declarations(Dry))}"
            )
    parts.append(f"## Loading\n\n{_table(declarations(LoadOptions))}")
    return "\n".join(parts)


def _table(found: dict[str, Field[Any]]) -> str:
    rows = ["| option | takes | default | what it does |", "|---|---|---|---|"]
    for name, field in found.items():
        spec = spec_of(field)
        assert spec
        default = default_text(field)
        if isinstance(field.default, bool):
            default = str(field.default)
        cells = (f"`{name}`", spec.kind.words, default, spec.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
