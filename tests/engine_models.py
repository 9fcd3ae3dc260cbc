"""Models for tests of the engine: one that follows a table, and a tiny random one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.events import Prefill
from magistral_mlx.model.adapters import AdapterRows
from tests.checkpoints import tiny_config, write_hf_checkpoint

GREEDY = Sampling(temperature=0)


class TableModel:
    """Each token's logits are a row of a table, so a test can say what the model would write.

    `successors` makes such a table: the token that follows each one, all others being unlikely.
    """

    overlaps_passes = False

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = mx.array(table)  # (vocab_size, vocab_size)
        text = SimpleNamespace(vocab_size=len(table))
        self.config: Any = SimpleNamespace(text=text, vision=None, image_token_id=-1)
        self.adapters = AdapterRows()

    @classmethod
    def successors(cls, following: Mapping[int, int], vocab_size: int = 64) -> TableModel:
        """What is not named is followed by the id above it."""
        table = np.zeros((vocab_size, vocab_size), np.float32)
        for token in range(vocab_size):
            table[token, following.get(token, (token + 1) % vocab_size)] = 10
        return cls(table)

    def make_caches(self, scheme: object, workspace: int = 0) -> SequenceCaches:
        return SequenceCaches([CountingCache()])

    def embed(self, tokens: mx.array) -> mx.array:
        return self.table[tokens]

    def __call__(self, h: mx.array, caches: Sequence[CountingCache]) -> mx.array:
        caches[0].length += h.shape[1]
        return h

    def logits(self, h: mx.array) -> mx.array:
        return h


class CountingCache:
    """The cache of a model that remembers nothing but how far it is."""

    state: tuple[mx.array, ...] = ()

    def __init__(self) -> None:
        self.length = 0

    def reserve(self, tokens: int, most: int = 0) -> None:
        pass

    def trim(self, length: int) -> None:
        self.length = min(self.length, length)

    def trimmable(self, length: int) -> int:
        return min(self.length, length)


@lru_cache
def tiny_folder(layers: int = 2) -> Path:
    """A checkpoint of a small random decoder with its tokenizer of 1,280 ids."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    return write_hf_checkpoint(folder, config=tiny_config(vision=False, layers=layers))


@lru_cache
def tiny_model(layers: int = 2) -> Any:
    return load_model(Checkpoint.open(tiny_folder(layers)), mx.float32)


@lru_cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.load(tiny_folder())


@lru_cache
def tiny_vocabulary() -> Vocabulary:
    return vocabulary_of(tiny_tokenizer())


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    return Vocabulary(pieces, tokenizer.special.eos, tokenizer.encode)


def start(model: Any, prompt: Sequence[int], **options: Any) -> Generation:
    """A generation of greedy tokens, 30 at most, unless `options` say otherwise."""
    given = {"images": (), "sampling": GREEDY, "limit": 30} | options
    prefix = given.pop("prefix", None)
    return Generation(model, SequenceInputs(np.array(prompt, np.int32), **given), prefix)


def tokens_of(generation: Generation) -> list[Token]:
    """All tokens that come, the progress left out."""
    return [step for step in generation if not isinstance(step, Prefill)]


def ids_of(generation: Generation) -> list[int]:
    return [token.id for token in tokens_of(generation)]
