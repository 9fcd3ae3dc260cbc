"""A conversion: prepare, check, run."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from magistral_convert.auxiliary import auxiliary_files
from magistral_convert.card import model_card
from magistral_convert.disk import allocated_bytes, check_free_space, storage_errors, write_file
from magistral_convert.options import ConvertOptions, OnConversionProgress
from magistral_convert.output_format import is_flat, output_config
from magistral_convert.plan import ConversionPlan, plan_conversion
from magistral_convert.recipe import Recipe
from magistral_convert.source import Source, open_source, raw_config
from magistral_convert.staging import StagingFolder, staging_path
from magistral_convert.target import check_target, target_path
from magistral_mlx.checkpoint.folder import Checkpoint

_FORMAT = 1  # to be raised when the same options give other bytes
_SMALL_FILES = 64 << 20  # allowance for the files beside the weights


@dataclass(frozen=True)
class Conversion:
    """A prepared conversion: all that is known before a weight is read."""

    source: Source
    target: Path
    options: ConvertOptions
    plan: ConversionPlan
    config: dict[str, Any]  # config.json of the output

    @property
    def space_needed(self) -> list[tuple[Path, int]]:
        """Bytes of disk still needed, by place: the output, and downloaded shards."""
        done = allocated_bytes(staging_path(self.target) / "model")
        output = max(self.plan.output_bytes + _SMALL_FILES - done, 0)
        return [(self.target, output), self.source.space_needed()]


def prepare(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
) -> Conversion:
    """Open the source, check its tensors and plan the output.

    Nothing is written but the small files of a repository, into the hub's cache.

    Args:
        source: a folder, or the name of a repository on the hub.
        output: the output folder; None is one in the user's cache, where `generate` looks.

    Raises:
        MagistralError: one of its kinds; see `open_source` and `plan_conversion`.
    """
    options = options or ConvertOptions()
    target = target_path(source, output, options)
    opened = open_source(source, staging_path(target) / "source", options)
    raw, model = raw_config(opened), opened.checkpoint.config
    recipe = Recipe.of(options, model)
    if opened.checkpoint.blocks and not options.asks_to_quantize:
        recipe = replace(recipe, keeps_floats=True)
    plan = plan_conversion(opened.checkpoint, recipe, flat=is_flat(raw, model))
    return Conversion(opened, target, options, plan, output_config(raw, model, plan.quantization))


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
    on_progress: OnConversionProgress | None = None,
) -> Path:
    """Convert a checkpoint and return the output folder.

    The folder appears when it is complete. An interrupted conversion (an exception, a killed
    process, a power cut) continues where it stopped when this is called again, with the same
    result.

    Args: as in `prepare`; `on_progress` is called from the calling thread.

    Raises:
        MagistralError: one of its kinds, before anything is converted where possible.
    """
    return run(prepare(source, output, options), on_progress)


def check(conversion: Conversion) -> None:
    """Check the target and the free disk space before the conversion.

    Raises:
        TargetExists, InvalidOption: see `check_target`.
        StorageError: too little disk space.
    """
    check_target(conversion.target, conversion.source.folder, force=conversion.options.force)
    check_free_space(conversion.space_needed)


def run(conversion: Conversion, on_progress: OnConversionProgress | None = None) -> Path:
    """Run a prepared conversion; see `convert`."""
    from magistral_convert import pipeline  # imports MLX

    source, target, options = conversion.source, conversion.target, conversion.options
    check(conversion)
    files = auxiliary_files(source.folder, options.tokenizer)
    with StagingFolder(target, conversion.plan, _identity(conversion)) as work:
        pipeline.run(
            conversion.plan,
            work,
            fetch=lambda file: source.fetch(file, on_progress),
            release=source.release,
            on_progress=on_progress,
        )
        _write_auxiliary(work.model, conversion, files)
        Checkpoint.open(work.model)  # as the loader will
        work.publish(force=options.force)
    return target


def _write_auxiliary(folder: Path, conversion: Conversion, files: dict[str, bytes]) -> None:
    """Write the files beside the shards; config.json last, as it marks a checkpoint."""
    source, plan = conversion.source, conversion.plan
    card = model_card(
        source.base_model,
        conversion.options.name or conversion.target.name,
        source.checkpoint.config,
        conversion.options,
        plan,
    )
    with storage_errors(folder):
        for name, content in files.items():
            write_file(folder / name, content)
        write_file(folder / "README.md", card.encode())
        write_file(folder / "model.safetensors.index.json", _json(plan.index))
        write_file(folder / "config.json", _json(conversion.config))


def _identity(conversion: Conversion) -> dict[str, str]:
    """Return digests of all that decides the output's bytes; another staging is not continued."""
    from magistral_mlx.backend import backend

    digest = hashlib.sha256()
    digest.update(json.dumps([_FORMAT, version("mlx"), backend().name]).encode())
    digest.update(conversion.source.identity.encode())
    digest.update(_json(conversion.config))
    for shard in conversion.plan.shards:
        digest.update(shard.header)
    return {"source": conversion.source.identity, "output": digest.hexdigest()}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
