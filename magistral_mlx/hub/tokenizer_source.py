"""Lookup of the tokenizer of a checkpoint, also of one that comes without.

Conversions by others often leave tekken.json out. It is then taken from their base model, which is
named in the card (`base_model`), in the configuration, or by the folder's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from magistral_mlx.errors import (
    HubError,
    MagistralError,
    ModelNotFound,
    TokenizerError,
)
from magistral_mlx.files import user_path
from magistral_mlx.hub.base_models import bases_in_card, local_base_models, small_files_folder
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.hub.repository import RepoRef, parse_repo
from magistral_mlx.hub.snapshot import fetch_file
from magistral_mlx.hub.transfer import DownloadProgress

TEKKEN = "tekken.json"
SYSTEM_PROMPT = "SYSTEM_PROMPT.txt"
_DEPTH = 3  # a conversion of a conversion of the model


def find_tokenizer(
    folder: Path, override: str | None = None, *, on_progress: DownloadProgress | None = None
) -> Path:
    """Find the tekken.json of the checkpoint in `folder`, or of a GGUF file.

    `override` (a file, a folder or a repository) decides where it is given; then the folder's own
    file; then that of the model it was made from, from the hub's cache or the hub.
    Raises `TokenizerError` where none of them has it.
    """
    if override is not None:
        return _from_override(override, on_progress)
    own = small_files_folder(folder) / TEKKEN
    if own.is_file():
        return own
    failures: list[MagistralError] = []
    for ref in _base_models(folder, failures):
        path = _try(ref, TEKKEN, failures, on_progress)
        if path is not None:
            return path
    reasons = dict.fromkeys(str(failure).rstrip(".") for failure in failures)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise TokenizerError(
        f"{folder} has no {TEKKEN}, and no model that it was made from could give one{why}. "
        "Name one with --tokenizer, such as --tokenizer mistralai/Magistral-Small-2509."
    )


def find_system_prompt(folder: Path) -> Path | None:
    """Find the SYSTEM_PROMPT.txt of the checkpoint in `folder`, or return None.

    A conversion by others, one without tekken.json, takes it from where its tokenizer is taken.
    """
    own = small_files_folder(folder) / SYSTEM_PROMPT
    if own.is_file() or (small_files_folder(folder) / TEKKEN).is_file():
        return own if own.is_file() else None
    failures: list[MagistralError] = []
    for ref in _base_models(folder, failures):
        path = _try(ref, SYSTEM_PROMPT, failures)
        if path is not None:
            return path
        if _try(ref, TEKKEN, failures) is not None:
            return None  # this is the model itself, and it has no prompt
    return None


def _base_models(folder: Path, failures: list[MagistralError]) -> Iterator[RepoRef]:
    """Yield the repositories that may hold the tokenizer, nearest first, each once.

    The card of one that could not be downloaded is not asked for.
    """
    own_repo = repo_of_snapshot(folder)
    queue = [(name, 0) for name in ([own_repo] if own_repo else []) + local_base_models(folder)]
    seen: set[str] = set()
    while queue:
        name, depth = queue.pop(0)
        ref = parse_repo(name)
        if ref is None or name.lower() in seen:
            continue
        seen.add(name.lower())
        yield ref
        refused = bool(failures) and isinstance(failures[-1], HubError)
        if depth < _DEPTH and not refused:
            card = _try(ref, "README.md", failures)
            queue += [(base, depth + 1) for base in bases_in_card(card)] if card else []


def _try(
    ref: RepoRef,
    name: str,
    failures: list[MagistralError],
    on_progress: DownloadProgress | None = None,
) -> Path | None:
    """Fetch a file of `ref`; on failure return None and add the reason to `failures`."""
    try:
        path = fetch_file(ref, name, on_progress=on_progress)
    except (ModelNotFound, HubError) as error:
        failures.append(error)
        return None
    if path is None and name == TEKKEN:
        failures.append(TokenizerError(f"{ref} has no {TEKKEN}"))
    return path


def _from_override(override: str, on_progress: DownloadProgress | None) -> Path:
    path = user_path(override)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / TEKKEN).is_file():
            return path / TEKKEN
        raise TokenizerError(f"the folder {override} given with --tokenizer has no {TEKKEN}.")
    ref = parse_repo(override)
    if ref is None:
        raise TokenizerError(
            f"--tokenizer {override} is neither a file, nor a folder, nor the name of a repository "
            "on the hub (owner/name)."
        )
    found = fetch_file(ref, TEKKEN, on_progress=on_progress)
    if found is None:
        raise TokenizerError(f"{ref}, given with --tokenizer, has no {TEKKEN}.")
    return found
