"""Models before any of them is loaded: listing, downloading and planning."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from magistral_mlx.api.adapters import open_adapters
from magistral_mlx.api.load_options import LoadFields, LoadOptions
from magistral_mlx.library import FoundModel, default_model, find_models, locate
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.option_spec import with_changes
from magistral_mlx.runtime.progress import LoadProgress, OnProgress


def list_models() -> list[FoundModel]:
    """The models on this machine: conversions, the hub's cache, LM Studio's.

    Reads configurations and the headers of weight files, never the weights.
    """
    return find_models()


def download_model(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """Download a model, unless it is here -> its folder.

    What has come is kept when it is interrupted, and the next call goes on from there.

    Args:
        name: a name on the hub, as in "lmstudio-community/Magistral-Small-2509-MLX-4bit".
        on_progress: called in this thread while files come. What it raises stops the download.

    Raises:
        ModelNotFound: there is no such model, here or on the hub.
        HubError: the hub could not be reached, or refused.
        StorageError: the disk is full.
    """
    return locate(name, on_progress=download_progress(on_progress))


def plan_model(
    name_or_dir: str | Path | None = None,
    *,
    machine: str | None = None,
    options: LoadOptions | None = None,
    **changes: Unpack[LoadFields],
) -> Plan:
    """Plan the memory of a model before it is loaded, or downloaded.

    Of a model on the hub the headers of its files are fetched, never the weights.

    Args:
        name_or_dir: as in `Magistral.load`.
        machine: another Mac, as in "32GB" or "M3 Max 64GB"; None is this machine, beside the models
            that are loaded.
        options: see `LoadOptions`; `changes` override single ones by name.

    Raises:
        OutOfMemory: it does not fit, or not as it is asked for.
        ModelNotFound: there is no such model, here or on the hub.
    """
    from magistral_convert.source import read_headers
    from magistral_mlx.memory.choose import make_plan
    from magistral_mlx.memory.here import describe, plan_here
    from magistral_mlx.memory.machine import named_machine
    from magistral_mlx.memory.peak import GPU

    asked = with_changes(LoadOptions, options, changes)
    request = PlanRequest(asked.context, asked.kv, asked.images, asked.memory_limit)
    name = str(default_model() if name_or_dir is None else name_or_dir)
    headers = read_headers(name)
    draft = None if asked.draft is None else read_headers(str(asked.draft))
    adapters = open_adapters(asked, headers.config).values()
    if machine is None:
        return plan_here(headers, name, request, asked.dtype, draft, adapters)
    model = describe(headers, name, GPU.float_bytes, draft, adapters)
    return make_plan(model, named_machine(machine), GPU, request)


def download_progress(on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    """Return a callback that reports bytes of a download as `LoadProgress`."""
    if on_progress is None:
        return None
    start = time.perf_counter()
    return lambda done, total: on_progress(
        LoadProgress("download", done, total, time.perf_counter() - start)
    )
