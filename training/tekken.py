"""A small v13 tokenizer file, cut from the real Tekken vocabulary that mistral-common ships.

The first ranks of a byte-pair vocabulary are a vocabulary of their own: the 256 bytes and the
earliest merges. So a small `tekken.json` splits text as the real one would with fewer merges.
Needs nothing heavier than json.
"""

import json
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SOURCE = "data/tekken_240911.json"
SPECIAL_TOKENS = 1000
# The control tokens of tokenizer version 13; every other rank below 1000 is <SPECIAL_n>.
NAMED_SPECIALS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[THINK]",
    35: "[/THINK]",
}


@lru_cache(maxsize=1)
def _full_vocabulary() -> dict[str, Any]:
    spec = find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mistral_common is not installed; pip install mistral-common")
    path = Path(spec.submodule_search_locations[0]) / SOURCE
    return json.loads(path.read_text(encoding="utf-8"))


def cut_tekken(ranks: int) -> dict[str, Any]:
    """The content of a v13 `tekken.json` with the first `ranks` tokens of Tekken.

    Ids 0 to 999 are the control tokens, 1000 + r is the token of rank r. `ranks` is at least 256
    (every byte must have a token) and at most what mistral-common ships; ValueError otherwise.
    """
    full = _full_vocabulary()
    most = len(full["vocab"])
    if not 256 <= ranks <= most:
        raise ValueError(f"ranks is {ranks}; it must be from 256 to {most}")
    config = dict(full["config"])
    config.update(
        num_vocab_tokens=ranks,
        default_vocab_size=SPECIAL_TOKENS + ranks,
        default_num_special_tokens=SPECIAL_TOKENS,
        version="v13",
    )
    special = [
        {
            "rank": rank,
            "token_str": NAMED_SPECIALS.get(rank, f"<SPECIAL_{rank}>"),
            "is_control": True,
        }
        for rank in range(SPECIAL_TOKENS)
    ]
    return {
        "config": config,
        "vocab": full["vocab"][:ranks],
        "special_tokens": special,
        "image": {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2},
    }


def write_tekken(path: str | Path, ranks: int) -> None:
    """Write `cut_tekken(ranks)` to `path`, whose name must contain "tekken" for mistral-common."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(cut_tekken(ranks), ensure_ascii=False, separators=(",", ":"))
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
