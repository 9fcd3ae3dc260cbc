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
from magistral_convert.calibration.decisions import (
    calibrates_by,
    check_weights_are_here,
    choose_bits,
    decoder_is_blocks,
    read_text,
)
from magistral_convert.calibration.facts import CalibrationFacts
from magistral_convert.calibration.files import in_layer_order, most_at_once
from magistral_convert.calibration.imatrix import ImportanceMatrix, read_importance_matrix
from magistral_convert.calibration.memory import check_memory, peak_bytes, state_bytes
from magistral_convert.calibration.sizing import Sizing, expected_schemes
from magistral_convert.calibration.text import CalibrationText
from magistral_convert.card import model_card
from magistral_convert.disk import allocated_bytes, check_free_space, storage_errors, write_file
from magistral_convert.fusion import fusions
from magistral_convert.options import ConvertOptions, OnConversionProgress
from magistral_convert.output_format import METADATA, is_flat, output_config
from magistral_convert.plan import ConversionPlan, plan_conversion
from magistral_convert.recipe import Recipe
from magistral_convert.source import Source, open_source, raw_config
from magistral_convert.staging import StagingFolder, staging_path
from magistral_convert.target import check_target, target_path
from magistral_mlx.backend import backend
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.config import ModelConfig
from magistral_mlx.hub import find_tokenizer
from magistral_mlx.hub.adapters import locate_adapter

_FORMAT = 5  # to be raised when the same options give other bytes
_SMALL_FILES = 64 << 20  # allowance for the files beside the weights


@dataclass(frozen=True)
class Conversion:
    """A prepared conversion: all that is known before a weight is read."""

    source: Source
    target: Path
    options: ConvertOptions
    plan: ConversionPlan
    config: dict[str, Any]  # config.json of the output
    calibrates: bool
    adapter: StoredAdapter | None = None
    imatrix: ImportanceMatrix | None = None
    text: CalibrationText | None = None  # where it has been read already
    sizing: Sizing | None = None

    @property
    def space_needed(self) -> list[tuple[Path, int]]:
        """Bytes of disk still needed, by place: the output, and downloaded shards."""
        done = allocated_bytes(staging_path(self.target) / "model")
        output = max(self.plan.output_bytes + _SMALL_FILES - done, 0)
        place, downloads = self.source.space_needed()
        if self.calibrates:
            output += self._states_bytes
            if not self.options.keep_source:
                downloads = min(downloads, 1) * most_at_once(self.plan)
        return [(self.target, output), (place, downloads)]

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that arrays take; None without calibration, which takes a few blocks."""
        if not self.calibrates:
            return None
        return peak_bytes(
            self.plan,
            self.source.checkpoint.config.text,
            self.options.text_tokens,
            float_bytes=backend().dtype.size,
            compensates=self.options.method == "gptq",
            vision=self._calibrated_vision,
        )

    @property
    def _calibrated_vision(self) -> ModelConfig | None:
        """The configuration, where vision tower and projector are calibrated too."""
        config = self.source.checkpoint.config
        calibrated = self.calibrates and self.options.quantize_vision and config.vision
        return config if calibrated else None

    @property
    def _states_bytes(self) -> int:
        """Hidden states of two layers."""
        text = self.source.checkpoint.config.text
        return state_bytes(text, self.options.text_tokens, backend().dtype.size)


def prepare(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
    on_progress: OnConversionProgress | None = None,
    *,
    dry_run: bool = False,
) -> Conversion:
    """Open the source, check its tensors and plan the output.

    Nothing is written but the small files of a repository, into the hub's cache. A target size
    takes a pass over the weights, after what `check` does.

    Args:
        source: a folder, or the name of a repository on the hub.
        output: the output folder; None is one in the user's cache, where `generate` looks.
        on_progress: called during such a pass.
        dry_run: nothing is to be written, so that only the memory is checked.

    Raises:
        MagistralError: one of its kinds; see `open_source` and `plan_conversion`.
    """
    options = options or ConvertOptions()
    target = target_path(source, output, options)
    opened = open_source(source, staging_path(target) / "source", options)
    raw, model = raw_config(opened), opened.checkpoint.config
    keeps_floats = decoder_is_blocks(opened.checkpoint) and not options.asks_to_quantize
    recipe = replace(Recipe.of(options, model), keeps_floats=keeps_floats)
    calibrates = calibrates_by(opened, recipe, options)
    text: CalibrationText | None = None
    sizing: Sizing | None = None
    name = options.adapter
    adapter = None if name is None else StoredAdapter.open(locate_adapter(name), model)
    changes = fusions(adapter, model) if adapter else None
    flat = is_flat(raw, model)
    plan = plan_conversion(opened.checkpoint, recipe, flat=flat, changes=changes)
    imatrix = read_importance_matrix(options.imatrix, plan) if options.imatrix else None

    def planned(recipe: Recipe) -> Conversion:
        plan = plan_conversion(opened.checkpoint, recipe, flat=flat, changes=changes)
        if calibrates:
            plan = in_layer_order(plan, model)
        config = output_config(raw, model, plan.quantization)
        return Conversion(
            opened, target, options, plan, config, calibrates, adapter, imatrix, text, sizing
        )

    if options.has_target:
        check_weights_are_here(opened)
        expected = planned(replace(recipe, chosen=expected_schemes(plan, options)))
        if dry_run:
            check_memory(expected.peak_bytes, options)
        else:
            check(expected)
        text = read_text(opened, options)
        sizing = choose_bits(opened, recipe, options, changes, adapter, text, on_progress)
        recipe = replace(recipe, chosen=sizing.schemes)
    elif dry_run:
        if options.tokenizer:
            find_tokenizer(opened.folder, options.tokenizer)
        if calibrates and options.calibration:
            read_text(opened, options)
    return planned(recipe)


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
    return run(prepare(source, output, options, on_progress), on_progress)


def check(conversion: Conversion) -> None:
    """Check the target, the free disk space and the memory before the conversion.

    Raises:
        TargetExists, InvalidOption: see `check_target`.
        StorageError: too little disk space.
        OutOfMemory: calibration needs more memory than there is.
    """
    check_target(conversion.target, conversion.source.folder, conversion.options)
    check_free_space(conversion.space_needed)
    check_memory(conversion.peak_bytes, conversion.options)


def run(conversion: Conversion, on_progress: OnConversionProgress | None = None) -> Path:
    """Run a prepared conversion; see `convert`."""
    from magistral_convert import pipeline  # imports MLX
    from magistral_convert.calibration import pipeline as calibrated

    source, target, options = conversion.source, conversion.target, conversion.options
    check(conversion)
    files = auxiliary_files(source.folder, options.tokenizer, source.checkpoint.layout)
    text = None
    if conversion.calibrates:
        text = conversion.text or read_text(source, options)
    facts = None
    with StagingFolder(target, conversion.plan, _identity(conversion, text)) as work:

        def fetch(file: Path) -> None:
            source.fetch(file, on_progress)

        if text is None:
            pipeline.run(
                conversion.plan,
                work,
                fetch=fetch,
                release=source.release,
                on_progress=on_progress,
            )
        else:
            quality = calibrated.run(
                conversion.plan,
                work,
                source.checkpoint.config,
                text,
                compensates=options.method == "gptq",
                given=conversion.imatrix.columns if conversion.imatrix else {},
                fetch=fetch,
                release=source.release,
                on_progress=on_progress,
            )
            facts = CalibrationFacts(
                text.tokens.size,
                text.is_default,
                options.method,
                quality,
                conversion.imatrix.file if conversion.imatrix else None,
            )
        _write_auxiliary(work.model, conversion, files, facts)
        Checkpoint.open(work.model)  # as the loader will
        work.publish(force=options.force)
    return target


def _write_auxiliary(
    folder: Path,
    conversion: Conversion,
    files: dict[str, bytes],
    facts: CalibrationFacts | None,
) -> None:
    """Write the files beside the shards; config.json last, as it marks a checkpoint."""
    source, plan = conversion.source, conversion.plan
    card = model_card(
        source.base_model,
        conversion.options.name or conversion.target.name,
        source.checkpoint.config,
        conversion.options,
        plan,
        facts,
    )
    config = conversion.config | ({METADATA: facts.as_dict()} if facts else {})
    with storage_errors(folder):
        for name, content in files.items():
            write_file(folder / name, content)
        write_file(folder / "README.md", card.encode())
        write_file(folder / "model.safetensors.index.json", _json(plan.index))
        write_file(folder / "config.json", _json(config))


def _identity(conversion: Conversion, text: CalibrationText | None) -> dict[str, str]:
    """Return digests of all that decides the output's bytes; another staging is not continued."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_FORMAT, version("mlx"), backend().name]).encode())
    digest.update(conversion.source.identity.encode())
    digest.update(_json(conversion.config))
    if text:
        digest.update(f"{text.identity} {conversion.options.method}".encode())
        if conversion.options.mode == "affine":
            digest.update(version("numba").encode())  # what it compiles may sum in another order
    if config := conversion._calibrated_vision:
        from magistral_convert.calibration.images import calibration_images, images_identity

        digest.update(images_identity(calibration_images(config)).encode())
    if conversion.imatrix:
        digest.update(conversion.imatrix.identity.encode())
    if conversion.adapter:
        digest.update(str(conversion.adapter.fingerprint()).encode())
    for shard in conversion.plan.shards:
        digest.update(shard.header)
    return {"source": conversion.source.identity, "output": digest.hexdigest()}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
