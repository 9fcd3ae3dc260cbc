"""A conversion from beginning to end: prepare, check, work, publish."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from magistral_convert.card import model_card
from magistral_convert.companions import gather
from magistral_convert.options import ConvertOptions
from magistral_convert.plan import Plan, make_plan
from magistral_convert.progress import OnProgress
from magistral_convert.recipe import Recipe
from magistral_convert.source import Source, open_source, raw_config
from magistral_convert.spelling import is_bare, output_config
from magistral_convert.storage import check_room, explained, occupied, write_file
from magistral_convert.target import absolute_target, check_target
from magistral_convert.work import WorkFolder, work_path
from magistral_mlx.checkpoint.folder import Checkpoint

_FORMAT = 1  # raise it when the same options make other bytes
_SMALL_FILES = 64 << 20  # room for what stands beside the weights


@dataclass(frozen=True)
class Conversion:
    """Everything about a conversion, known before a weight is read."""

    source: Source
    target: Path
    options: ConvertOptions
    plan: Plan
    config: dict[str, Any]  # config.json of the output

    @property
    def room_needed(self) -> list[tuple[Path, int]]:
        """Where it takes disk from now on, and how many bytes: output and passing downloads."""
        done = occupied(work_path(self.target) / "model")
        output = max(self.plan.output_bytes + _SMALL_FILES - done, 0)
        return [(self.target, output), self.source.room_needed()]


def prepare(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
) -> Conversion:
    """Open the source, check its tensors and plan the output; nothing is written but small files
    of a repository into the hub's cache.

    Args:
        source: a folder, or the name of a repository on the hub.
        output: the folder to make; None is one in the user's cache, where `generate` looks.

    Raises:
        MagistralError: one of its kinds; see `open_source` and `make_plan`.
    """
    options = options or ConvertOptions()
    target = absolute_target(source, output, options)
    opened = open_source(source, work_path(target) / "source", keep=options.keep_source)
    raw, model = raw_config(opened), opened.checkpoint.config
    plan = make_plan(opened.checkpoint, Recipe.of(options, model), bare=is_bare(raw, model))
    return Conversion(opened, target, options, plan, output_config(raw, model, plan.quantization))


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert a checkpoint; the folder of the result.

    The target appears when all of it is there. An interrupted conversion (an exception, a killed
    process, a power cut) goes on where it was when it is called again, with the same result.

    Args: as in `prepare`; `on_progress` is called from the calling thread.

    Raises:
        MagistralError: one of its kinds, before the work where it can be known before.
    """
    return run(prepare(source, output, options), on_progress)


def check(conversion: Conversion) -> None:
    """Check what can stop it before the work: the target and the disk.

    Raises:
        TargetExists, InvalidOption: see `check_target`.
        StorageError: too little room.
    """
    check_target(conversion.target, conversion.source.folder, force=conversion.options.force)
    check_room(conversion.room_needed)


def run(conversion: Conversion, on_progress: OnProgress | None = None) -> Path:
    """Carry out what `prepare` has planned; see `convert`."""
    from magistral_convert import stream  # brings MLX

    source, target, options = conversion.source, conversion.target, conversion.options
    check(conversion)
    files = gather(source.folder, options.tokenizer)
    with WorkFolder(target, conversion.plan, _identity(conversion)) as work:
        stream.run(
            conversion.plan,
            work,
            fetch=lambda file: source.fetch(file, on_progress),
            release=source.release,
            on_progress=on_progress,
        )
        _write_beside(work.model, conversion, files)
        Checkpoint.open(work.model)  # as the loader will
        work.publish(force=options.force)
    return target


def _write_beside(folder: Path, conversion: Conversion, files: dict[str, bytes]) -> None:
    """Write everything that is not a shard; the configuration last, as it makes a checkpoint."""
    source, plan = conversion.source, conversion.plan
    card = model_card(
        source.base_model,
        conversion.options.name or conversion.target.name,
        source.checkpoint.config,
        conversion.options,
        plan,
    )
    with explained(folder):
        for name, content in files.items():
            write_file(folder / name, content)
        write_file(folder / "README.md", card.encode())
        write_file(folder / "model.safetensors.index.json", _json(plan.index))
        write_file(folder / "config.json", _json(conversion.config))


def _identity(conversion: Conversion) -> dict[str, str]:
    """What decides the bytes of the output: work on another one must not be continued."""
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
