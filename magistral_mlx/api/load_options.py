"""How a model is loaded: the options of `Magistral.load`, the command line and the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from magistral_mlx.api.option_kinds import CacheScheme
from magistral_mlx.errors import InvalidOption
from magistral_mlx.option_spec import Choice, Flag, Integer, Name, Size, option, validate_options

SplitChoice = Literal["auto", "tensor", "pipeline"]
DTypeName = Literal["float32", "float16", "bfloat16"]
_DEFAULT_CACHE_SIZE = 10**10  # bytes: 60,000 tokens of Magistral in full precision


class LoadFields(TypedDict, total=False):
    """The fields of `LoadOptions`, for type checkers: what may be passed by keyword."""

    context: int | None
    kv: str | None
    images: int
    dtype: DTypeName | None
    memory_limit: int | None
    wire: bool
    parallel: int
    tokenizer: str | Path | None
    draft: str | Path | None
    adapter: str | Path | None
    adapters: Mapping[str, str | Path] | None
    cache_dir: str | Path | None
    cache_size: int | None
    split: SplitChoice


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    adapters: more adapters by name, for requests that ask for them. split: over several machines,
    whether each has a part of every layer (tensor) or some of the layers (pipeline); auto decides
    by model, memory and link.
    """

    context: int | None = option(
        None,
        Integer(1),
        "Tokens that prompt and answer may have together.",
        unset="up to 40,960, as far as memory allows",
    )
    kv: str | None = option(
        None,
        CacheScheme(),
        "Bits of keys and values in the KV cache, 2 to 8 each.",
        unset="the most that memory allows",
    )
    images: int = option(1, Integer(0), "Images of the largest size to keep memory for.")
    dtype: DTypeName | None = option(
        None,
        Choice(*get_args(DTypeName)),
        "Type of numbers to compute in.",
        unset="float16 on M1 and M2 if the model allows it, bfloat16 on other GPUs",
    )
    memory_limit: int | None = option(
        None,
        Size(64 * 10**6),
        "Memory to stay within, as in 20GB.",
        unset="what the machine recommends",
    )
    wire: bool = option(
        True,
        Flag(),
        "Wire the planned memory on a Mac (macOS 15), so that it is not paged out; serve does not.",
    )
    parallel: int = option(
        16, Integer(1), "Answers at once at most, as far as memory allows; each slows the others."
    )
    tokenizer: str | Path | None = option(
        None,
        Name("NAME_OR_FILE"),
        "A tekken.json, or a folder or hub name that has one.",
        unset="the model's own",
    )
    draft: str | Path | None = option(
        None,
        Name("NAME_OR_DIR"),
        "A smaller model with the same tokenizer that guesses tokens for this one.",
    )
    adapter: str | Path | None = option(
        None,
        Name("DIR_OR_NAME"),
        "A LoRA adapter of PEFT or mlx-lm that changes every answer.",
    )
    adapters: Mapping[str, str | Path] | None = None
    cache_dir: str | Path | None = option(
        None,
        Name("DIR"),
        "Folder that keeps the beginnings of prompts, images included, for later runs.",
    )
    cache_size: int | None = option(
        None, Size(10**7), "Size of the files in that folder at most.", unset="10GB"
    )
    split: SplitChoice = "auto"

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        validate_options(self)
        if self.adapters is not None:
            _check_adapters(self.adapters)
        if self.split not in get_args(SplitChoice):
            raise InvalidOption(f"split is {self.split!r}; it must be auto, tensor or pipeline.")
        if self.cache_size is not None and self.cache_dir is None:
            raise InvalidOption("cache_size needs a cache_dir, where prompts are kept.")

    @property
    def cache_bytes(self) -> int:
        """Bytes that the files in `cache_dir` may take."""
        return _DEFAULT_CACHE_SIZE if self.cache_size is None else self.cache_size


def _check_adapters(adapters: Any) -> None:
    if not isinstance(adapters, Mapping):
        raise InvalidOption(
            f"adapters is {adapters!r}; it must be a mapping of names to folders or hub names."
        )
    for name, source in adapters.items():
        Name("DIR_OR_NAME").validate(f"adapters[{name!r}]", source)
