"""The small files beside the weights: tokenizer, system prompt, generation settings and others.

They are read before the conversion begins, so that a missing tokenizer stops it at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magistral_mlx.checkpoint.folder import Layout
from magistral_mlx.errors import TokenizerError
from magistral_mlx.hub import find_system_prompt, find_tokenizer

# Copied for other runtimes, where the source has them.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_SPECIAL_IDS = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}


def auxiliary_files(folder: Path, tokenizer: str | None, layout: Layout) -> dict[str, bytes]:
    """Return file name -> content of the files beside the weights, without the configuration.

    Args:
        folder: the folder of the source, or its GGUF file.
        tokenizer: a file, folder or repository that gives tekken.json instead of the source.
        layout: of the source. The system prompt of a GGUF model may stand beside the tokenizer.

    Raises:
        TokenizerError: tekken.json is missing or damaged.
        HubError, ModelNotFound: it has to be downloaded, and cannot be.
    """
    tekken = find_tokenizer(folder, tokenizer)
    files = {"tekken.json": tekken.read_bytes()}
    special = _special_tokens(tekken, files["tekken.json"])
    prompt = find_system_prompt(folder)
    if prompt is None and layout == "gguf":
        beside = tekken.with_name("SYSTEM_PROMPT.txt")
        prompt = beside if beside.is_file() else None
    if prompt:
        files["SYSTEM_PROMPT.txt"] = prompt.read_bytes()
    generation = folder / "generation_config.json"
    if generation.is_file():
        files[generation.name] = generation.read_bytes()
    else:
        ids = {key: special[token] for key, token in _SPECIAL_IDS.items() if token in special}
        files[generation.name] = json.dumps(ids, indent=2).encode()
    for name in _COPIED:
        if (folder / name).is_file():
            files[name] = (folder / name).read_bytes()
    return files


def _special_tokens(path: Path, content: bytes) -> dict[str, int]:
    """Return special token -> id of a tekken.json."""
    try:
        raw: dict[str, Any] = json.loads(content)
        if not raw["vocab"]:
            raise ValueError("its vocabulary is empty")
        return {token["token_str"]: int(token["rank"]) for token in raw.get("special_tokens") or []}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not a Tekken tokenizer ({type(error).__name__}: {error}). Fetch it again, "
            "or name another one with --tokenizer."
        ) from None
