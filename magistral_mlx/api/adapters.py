"""Adapters of a model by name: where they lie, and which one a request gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import user_path
from magistral_mlx.hub.adapters import BASE, adapter_name, locate_adapter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.config import ModelConfig
    from magistral_mlx.hub import DownloadProgress
    from magistral_mlx.model.adapters import Adapter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_adapter_name(name: object) -> str:
    """Check a name for an adapter.

    Raises:
        InvalidOption: a name that none can have.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BASE:
        raise InvalidOption(
            f"{str(name)[:100]!r} cannot be the name of an adapter: give letters, digits, dots, "
            f"dashes and underscores, and not {BASE!r}, which is the model without one."
        )
    return name


def adapters_by_name(texts: Iterable[str]) -> dict[str, str | Path]:
    """Name -> folder or hub name of each adapter, of texts as in "NAME=DIR" or "DIR".

    Raises:
        InvalidOption: two of one name.
    """
    found: dict[str, str | Path] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or user_path(text).exists():
            name, source = adapter_name(text), text
        if name in found:
            raise InvalidOption(
                f"two of the adapters are called {name}: give them as NAME=DIR, each with a name "
                "of its own."
            )
        found[name] = source
    return found


def named_adapters(options: LoadOptions) -> dict[str, str | Path]:
    """The adapters that a model is loaded with, by name; the one for all requests first.

    Raises:
        InvalidOption: a name that none can have, or two of one name.
    """
    named: dict[str, str | Path] = {}
    if options.adapter is not None:
        named[adapter_name(options.adapter)] = options.adapter
    for name, source in (options.adapters or {}).items():
        if check_adapter_name(name) in named:
            raise InvalidOption(
                f"two adapters are called {name}: give names of their own, as in NAME=DIR."
            )
        named[name] = source
    return named


def open_adapters(
    options: LoadOptions, config: ModelConfig, on_progress: DownloadProgress | None = None
) -> dict[str, StoredAdapter]:
    """Find the adapters of `options`, and check them against a model.

    Raises:
        MagistralError: one that is missing, damaged, or another model's.
    """
    return {
        name: StoredAdapter.open(locate_adapter(str(source), on_progress=on_progress), config)
        for name, source in named_adapters(options).items()
    }


def chosen_adapter(
    loaded: Mapping[str, Adapter], asked: str | None, default: str | None
) -> Adapter | None:
    """The adapter of a request that asks for one by name, or leaves it at the default.

    Raises:
        InvalidOption: none of that name is loaded.
    """
    name = default if asked is None else asked
    if name is None or name == BASE:
        return None
    found = loaded.get(name)
    if found is None:
        known = ", ".join([BASE, *loaded])
        raise InvalidOption(f"there is no adapter {name[:100]!r} here. Known: {known}.")
    return found
