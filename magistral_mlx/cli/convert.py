"""`magistral-mlx convert`: quantize a checkpoint to MLX format."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.params import FILE, MODEL, SIZE, Value, command, option
from magistral_mlx.option_spec import Choice

if TYPE_CHECKING:
    from magistral_convert import Conversion, ConvertOptions


def _choice(*values: object) -> Value:
    return Value(str, Choice(*map(str, values)), words=[str(value) for value in values])


@command()
@click.argument("source", required=False, type=MODEL)
@option(
    "-m",
    "--model",
    "named",
    type=MODEL,
    metavar="SOURCE",
    help="Checkpoint to convert, in place of the argument.",
)
@option(
    "-o",
    "--output",
    type=FILE,
    metavar="DIR",
    help="Folder to make.  [default: one in your cache, which `generate` finds]",
)
@option(
    "--bits",
    type=_choice(2, 3, 4, 5, 6, 8),
    metavar="2|3|4|5|6|8",
    section="Quantization",
    help="Bits of a weight.  [default: 4]",
)
@option(
    "--group-size",
    type=_choice(32, 64, 128),
    metavar="32|64|128",
    section="Quantization",
    help="Weights that share a scale.  [default: 64]",
)
@option(
    "--mode",
    type=_choice("affine", "mxfp4", "nvfp4", "mxfp8", "none"),
    metavar="MODE",
    section="Quantization",
    help="Format of a group: affine, mxfp4, nvfp4, mxfp8 (the last three fix bits and group size), "
    "or none for bfloat16, also from what is quantized.  [default: affine]",
)
@option(
    "--dequantize",
    is_flag=True,
    section="Quantization",
    help="Write bfloat16: another name of --mode none.",
)
@option(
    "--recipe",
    type=_choice("3bit", "4bit", "4bit-plus", "5bit", "16gb", "24gb"),
    metavar="RECIPE",
    section="Quantization",
    help="3bit, 4bit or 5bit; 4bit-plus, with the most sensitive matrices at 6 bits; 16gb or 24gb, "
    "bits chosen as by --target-size, for Macs with so much memory: 9.9 or 12.9 GB.",
)
@option(
    "--quantize-vision",
    is_flag=True,
    section="Quantization",
    help="Quantize vision tower and projector too.",
)
@option(
    "--calibration",
    "calibration",
    type=FILE,
    multiple=True,
    metavar="FILE|default|none",
    section="Quantization",
    help="Text whose inputs tell what an error costs; `default` is a text that comes along. May be "
    "given several times.  [default: default on a GPU, none on a CPU]",
)
@option(
    "--imatrix",
    type=FILE,
    metavar="FILE",
    section="Quantization",
    help="Importance matrix of llama.cpp, which tells what an error costs in place of text.",
)
@option(
    "--method",
    type=_choice("search", "gptq"),
    default="search",
    metavar="search|gptq",
    section="Quantization",
    help="gptq also compensates each error in the columns that follow; slower, and nearer to the "
    "original.  [default: search]",
)
@option(
    "--target-size",
    type=SIZE(),
    metavar="SIZE",
    section="Quantization",
    help="Choose 2 to 8 bits for each matrix, by what its error costs, to this size of all "
    "weights, as in 12.5GB.",
)
@option(
    "--target-bits",
    type=float,
    metavar="BITS",
    section="Quantization",
    help="The same, to these mean bits of a weight, scales included, as in 4.25.",
)
@option("--dry-run", is_flag=True, help="Show sizes and the disk needed, and stop.")
@option("--force", is_flag=True, help="Replace an earlier conversion, when the new is done.")
@option("--keep-source", is_flag=True, help="Keep what is downloaded, in the hub's cache.")
@option(
    "--tokenizer",
    type=FILE,
    metavar="PATH_OR_REPO",
    help="A tekken.json, or a folder or repository that has one.",
)
@option(
    "--adapter",
    type=FILE,
    metavar="DIR_OR_NAME",
    help="A LoRA adapter that becomes part of the weights.",
)
@option("--mmproj", type=FILE, metavar="FILE", help="Vision tower of a GGUF file.")
@option("--upload", metavar="REPO", help="Repository to upload the result to.")
@option("--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout.")
def convert(source: str | None, named: str | None, output: str | None, **asked: Any) -> int:
    """Quantize SOURCE, a folder, a GGUF file or a model's name, here or on the hub, to MLX format.

    What a GGUF file has quantized is laid out for MLX, not quantized again.

    An interrupted conversion goes on where it was when the same command is run again.
    """
    source = source or named
    if source is None or (named is not None and named != source):
        raise click.UsageError("name one checkpoint to convert, as SOURCE or with --model.")
    from magistral_convert import ConvertOptions, check
    from magistral_convert.calibration.facts import read_quality
    from magistral_convert.publish import publish
    from magistral_mlx.cli import convert_report as report
    from magistral_mlx.hub import require_repo

    options = ConvertOptions(
        bits=_int(asked["bits"]),
        group_size=_int(asked["group_size"]),
        mode=_mode(asked["mode"], dequantize=asked["dequantize"]),
        recipe=asked["recipe"],
        quantize_vision=asked["quantize_vision"],
        tokenizer=asked["tokenizer"],
        force=asked["force"],
        keep_source=asked["keep_source"],
        name=asked["upload"],
        mmproj=asked["mmproj"],
        calibration=asked["calibration"] or None,
        imatrix=asked["imatrix"],
        method=asked["method"],
        adapter=asked["adapter"],
        target_size=asked["target_size"],
        target_bits=asked["target_bits"],
    )
    if asked["upload"]:
        require_repo(asked["upload"])
    conversion = _prepare(source, output, options, dry_run=asked["dry_run"])
    if asked["dry_run"]:
        show = report.print_json if asked["as_json"] else report.print_plan
        show(conversion)
        return 0
    check(conversion)
    started = time.monotonic()
    for note in conversion.source.checkpoint.notes:
        report.note(f"Note: {note}")
    report.note(report.headline(conversion))
    for line in report.imatrix_lines(conversion):
        report.note(line)
    target = _run(conversion, source)
    seconds = time.monotonic() - started
    report.note(f"Done in {report.duration(seconds)}.")
    quality = read_quality(target)
    if quality:
        report.note(f"Quality: {quality.describe()}.")
    address = publish(target, asked["upload"]) if asked["upload"] else None
    if asked["as_json"]:
        report.print_json(conversion, seconds=seconds, address=address, quality=quality)
    else:
        click.echo(address or target)
    return 0


def _mode(mode: str | None, *, dequantize: bool) -> str:
    """The mode that is asked for by either of its options."""
    if dequantize and mode not in (None, "none"):
        raise click.UsageError(
            f"--dequantize writes bfloat16, and --mode {mode} quantizes. Give one of the two."
        )
    return "none" if dequantize else mode or "affine"


def _prepare(
    source: str, output: str | None, options: ConvertOptions, *, dry_run: bool
) -> Conversion:
    from magistral_convert import prepare
    from magistral_mlx.cli.convert_progress import conversion_progress
    from magistral_mlx.cli.process import kept_awake

    if not options.has_target:
        return prepare(source, output, options, dry_run=dry_run)
    with kept_awake(), conversion_progress() as on_progress:
        return prepare(source, output, options, on_progress, dry_run=dry_run)


def _run(conversion: Conversion, source: str) -> Path:
    from magistral_convert import run
    from magistral_mlx.cli.convert_progress import conversion_progress
    from magistral_mlx.cli.process import kept_awake

    try:
        with kept_awake(), conversion_progress() as on_progress:
            return run(conversion, on_progress)
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command goes on where this one was.", err=True)
        sys.exit(130)


def _int(value: str | None) -> int | None:
    return None if value is None else int(value)
