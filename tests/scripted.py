"""Checkpoints that say what a test wants them to: each token has one that follows it, always.

A real model in every respect, with weights that make it a table: embeddings are unit vectors, the
blocks add nothing, and the head has a one where token j follows token i. A script is a list of
sequences; what follows a token that is in none of them ends the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from magistral_mlx.chat.tokenizer import Tokenizer
from tests.checkpoints import Weights, random_weights, tiny_config, write_hf_checkpoint
from training.tekken import write_tekken

RANKS = 1048  # enough for common words to be tokens; with the control tokens a multiple of 128
VOCAB = 1000 + RANKS


def write_scripted_checkpoint(
    folder: Path, *scripts: Sequence[str | int], context: int = 4096, vision: bool = False
) -> Path:
    """Write a model that follows the scripts.

    Args:
        scripts: of texts and control tokens, such as ["[/INST]", "[THINK]", "hm", "[/THINK]",
            "Red", "</s>"]. A name in brackets is the control token; everything else is text.
    """
    config = tiny_config(
        layers=1,
        hidden_size=VOCAB,
        intermediate_size=128,
        vocab_size=VOCAB,
        max_position_embeddings=context,
        vision=vision,
    )
    folder.mkdir(parents=True)
    write_tekken(folder / "tekken.json", RANKS)
    tokenizer = Tokenizer.load(folder)
    follows = successors([ids_of(script, tokenizer) for script in scripts])
    write_hf_checkpoint(folder, config=config, weights=_table(config, follows, tokenizer), shards=1)
    write_tekken(folder / "tekken.json", RANKS)
    return folder


def ids_of(script: Sequence[str | int], tokenizer: Tokenizer) -> list[int]:
    names = {tokenizer.control_name(id): id for id in range(1000)}
    ids: list[int] = []
    for piece in script:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            ids += [names[piece]] if piece in names else tokenizer.encode(piece)
    return ids


def successors(sequences: Sequence[Sequence[int]]) -> dict[int, int]:
    """Token -> the one that follows it; a token may stand in several places if all agree."""
    follows: dict[int, int] = {}
    for sequence in sequences:
        for token, following in pairwise(sequence):
            if follows.setdefault(token, following) != following:
                raise ValueError(f"token {token} is followed by two different ones")
    return follows


def _table(
    config: Mapping[str, object], follows: Mapping[int, int], tokenizer: Tokenizer
) -> Weights:
    weights = random_weights(config, 0)
    for name, values in weights.items():
        if name.startswith("language_model.model.layers") and values.ndim == 2:
            weights[name] = np.zeros_like(values)
        elif name.startswith("language_model.") and values.ndim == 1:
            weights[name] = np.ones_like(values)
    eye = np.eye(VOCAB, dtype=np.float32)
    weights["language_model.model.embed_tokens.weight"] = eye
    head = np.zeros_like(eye)
    for token in range(VOCAB):
        head[follows.get(token, tokenizer.special.eos), token] = 1
    weights["language_model.lm_head.weight"] = head
    return weights


def separable_tokens(tekken: Path) -> list[int]:
    """Tokens of text whose order survives encoding anew, wherever the text is cut."""
    tokenizer = Tokenizer.load(tekken)
    left = [id for id in range(1300, VOCAB) if tokenizer.encode(tokenizer.decode([id])) == [id]]
    found: list[int] = []
    while left:
        before = found[-2:]
        for id in left:
            if tokenizer.encode(tokenizer.decode([*before, id])) == [*before, id]:
                found.append(id)
                left.remove(id)
                break
        else:
            break
    return found
