"""Report of a conversion, before and after it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from magistral_convert import Conversion
from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.imatrix import by_part
from magistral_convert.outcomes import Outcome, outcomes
from magistral_convert.plan import ConversionPlan
from magistral_convert.summary import bits_by_matrix, summarize
from magistral_mlx.cli.terminal import print_wide, write

_LISTED = 20  # names that a file has and the model has not


def note(line: str) -> None:
    """A line for the person who watches; stdout is for programs."""
    write(f"{line}\n", err=True)


def headline(conversion: Conversion) -> str:
    """Name source and target in one line."""
    plan = conversion.plan
    return (
        f"{_gb(plan.source_bytes)} -> {_gb(plan.output_bytes)} "
        f"({plan.bits_per_weight:.2f} bits a weight) in {conversion.target}"
    )


def print_plan(conversion: Conversion) -> None:
    """A table of sizes by part of the model, and the disk that it takes."""
    plan = conversion.plan
    becoming = outcomes(plan) if shows_types(conversion) else []
    table = Table("part", box=None, pad_edge=False)
    for heading in ("parameters", "before", "after", "bits a weight"):
        table.add_column(heading, justify="right")
    for group in summarize(plan):
        table.add_row(
            group.name,
            f"{group.parameters:,}",
            _gb(group.source_bytes),
            _gb(group.output_bytes),
            f"{group.bits_per_weight:.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{plan.parameters:,}",
        _gb(plan.source_bytes),
        _gb(plan.output_bytes),
        f"{plan.bits_per_weight:.2f}",
    )
    print_wide(table)
    console = Console(highlight=False, soft_wrap=True)
    if becoming:
        console.print()
        print_wide(_types(becoming))
        if not _judged(becoming):
            console.print("The error of each type is told once the source is on this machine.")
    if conversion.options.has_target:
        console.print()
        print_wide(_bits(plan))
    if lines := imatrix_lines(conversion):
        console.print("\n" + "\n".join(lines), markup=False)
    console.print(f"\nOutput: {conversion.target}, {len(plan.shards)} file(s)")
    if conversion.sizing:
        console.print(f"Error:  {conversion.sizing.describe()}")
    elif conversion.calibrates:
        console.print(
            "Error:  measured at the end; --target-bits measures beforehand what to expect"
        )
    if (peak := conversion.peak_bytes) is not None:
        console.print(f"Memory: {_gb(peak)} at most, calibrating")
    for place, needed, free in _room(conversion):
        console.print(f"Disk:   {_gb(needed)} needed, {_gb(free)} free at {place}")


def imatrix_lines(conversion: Conversion) -> list[str]:
    """A table of what an importance matrix and the model do not have in common."""
    found = conversion.imatrix
    if found is None:
        return []
    count = len(found.columns)
    lines = [f"Importance: {found.file} has {count} of {count + len(found.missing)} matrices"]
    if found.missing:
        lines.append("  not in it, weighted by calibration (matrix, layers):")
        parts = dict(by_part(found.missing))
        width = max(map(len, parts))
        lines += [f"    {part:<{width}}  {layers}".rstrip() for part, layers in parts.items()]
    if found.unknown:
        lines.append("  not in this model, passed over:")
        lines += [f"    {name}" for name in found.unknown[:_LISTED]]
        if len(found.unknown) > _LISTED:
            lines.append(f"    and {len(found.unknown) - _LISTED} more")
    return lines


def _bits(plan: ConversionPlan) -> Table:
    """Return a table of the bits of each matrix, by layer."""
    table = Table("matrix", "bits, by layer", box=None, pad_edge=False)
    for name, bits in bits_by_matrix(plan).items():
        table.add_row(name, " ".join(map(str, bits)))
    return table


def shows_types(conversion: Conversion) -> bool:
    """Whether tensors are stored in several ways, so that what becomes of each is worth telling."""
    return any(tensor.is_quantized for tensor in conversion.plan.tensors)


def _types(becoming: list[Outcome]) -> Table:
    """Return a table of the stored form of each tensor type, its size and, if known, its error."""
    table = Table("type", "what is done", box=None, pad_edge=False)
    judged = _judged(becoming)
    for heading in ("tensors", "before", "after", *(["error"] if judged else [])):
        table.add_column(heading, justify="right")
    for outcome in becoming:
        table.add_row(
            outcome.kind,
            outcome.done,
            str(outcome.tensors),
            _gb(outcome.source_bytes),
            _gb(outcome.output_bytes),
            *([] if outcome.error is None else [_share(outcome.error)]),
        )
    return table


def _judged(becoming: list[Outcome]) -> bool:
    """Whether the errors are known."""
    return all(outcome.error is not None for outcome in becoming)


def _share(error: float) -> str:
    """An error as a person reads it."""
    if error >= 5e-5:
        return f"{error:.2%}"
    return f"{error:.0e}" if error else "none"


def print_json(
    conversion: Conversion,
    *,
    seconds: float | None = None,
    address: str | None = None,
    quality: Quality | None = None,
) -> None:
    """The same figures, for programs. Sizes are in bytes."""
    plan = conversion.plan
    figures: dict[str, Any] = {
        "target": str(conversion.target),
        "source_bytes": plan.source_bytes,
        "output_bytes": plan.output_bytes,
        "parameters": plan.parameters,
        "bits_per_weight": plan.bits_per_weight,
        "tensors": len(plan.tensors),
        "shards": [shard.file for shard in plan.shards],
        "quantization": plan.quantization,
        "parts": [
            asdict(group) | {"bits_per_weight": group.bits_per_weight} for group in summarize(plan)
        ],
    }
    if seconds is None:
        if shows_types(conversion):
            figures["types"] = [asdict(outcome) for outcome in outcomes(plan)]
        figures["disk"] = [
            {"place": str(place), "needed": needed, "free": free}
            for place, needed, free in _room(conversion)
        ]
    else:
        figures["seconds"] = seconds
    if conversion.options.has_target:
        if conversion.sizing:
            figures["expected"] = conversion.sizing.as_dict()
        figures["bits"] = {t.name: t.scheme.bits for t in plan.tensors if t.scheme}
    if (imatrix := conversion.imatrix) is not None:
        figures["imatrix"] = {
            "file": imatrix.file,
            "found": len(imatrix.columns),
            "missing": imatrix.missing,
            "unknown": imatrix.unknown,
        }
    if (peak := conversion.peak_bytes) is not None:
        figures["peak_bytes"] = peak
    if quality is not None:
        figures["quality"] = quality.as_dict()
    if address is not None:
        figures["address"] = address
    click.echo(json.dumps(figures, indent=2))


def _room(conversion: Conversion) -> list[tuple[Path, int, int]]:
    """Place, bytes needed and bytes free, for each place that needs any."""
    rooms = []
    for place, needed in conversion.space_needed:
        existing = next(path for path in (place, *place.absolute().parents) if path.is_dir())
        if needed:
            rooms.append((place, needed, shutil.disk_usage(existing).free))
    return rooms


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 10**8 else f"{nbytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
