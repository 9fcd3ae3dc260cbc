"""Tokenizers for tests, each built once: the real Tekken vocabulary, whole or cut."""

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from magistral_mlx.chat.tokenizer import Tokenizer
from training.tekken import cut_tekken

FULL_RANKS = 130_072  # with 1,000 control tokens, the 131,072 ids of Magistral
SMALL_RANKS = 1024
THINKING = ("[THINK]", "[/THINK]")


@lru_cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tekken-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def tekken_content(ranks: int = 256, version: str = "v13", thinking: bool = True) -> dict[str, Any]:
    """The content of a `tekken.json`, to be damaged or written; shares nothing with others."""
    content = dict(cut_tekken(ranks))
    content["config"] = dict(content["config"], version=version)
    if not thinking:
        content["special_tokens"] = [
            token if token["token_str"] not in THINKING
            else dict(token, token_str=f"<SPECIAL_{token['rank']}>")
            for token in content["special_tokens"]
        ]  # fmt: skip
    return content


@lru_cache
def tekken_folder(
    ranks: int = SMALL_RANKS, version: str = "v13", thinking: bool = True, images: bool = True
) -> Path:
    """A folder with a `tekken.json` of that many ranks and that version."""
    folder = _root() / f"{version}-{ranks}-{thinking}-{images}"
    folder.mkdir()
    content = tekken_content(ranks, version, thinking)
    if not images:
        del content["image"]
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


@lru_cache
def small_tokenizer() -> Tokenizer:
    """1,024 ranks, v13: most characters outside of English take several tokens."""
    return Tokenizer.load(tekken_folder())


@lru_cache
def full_tokenizer() -> Tokenizer:
    """Magistral's own: 131,072 ids, v13."""
    return Tokenizer.load(tekken_folder(FULL_RANKS))


@lru_cache
def older_tokenizer(version: str = "v11", thinking: bool = False) -> Tokenizer:
    """As of Mistral Small 3.1 (v7) and 3.2 (v11): no thinking tokens."""
    return Tokenizer.load(tekken_folder(version=version, thinking=thinking))
