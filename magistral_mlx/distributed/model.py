"""The model of a rank. Rank 0's tells the others each pass, and each change of its caches.

A pass starts from rank 0's embeddings, so the others need neither tokens nor images. It is
dispatched when it is built, on every rank: collective operations meet in the order in which they
are dispatched, and rank 0 may build graphs that it never evaluates.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.cache.batch import BatchCaches
from magistral_mlx.cache.kv import KVCache, LayerCache
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.config import ModelConfig
from magistral_mlx.distributed.group import Group
from magistral_mlx.distributed.leader import Leader
from magistral_mlx.model.linear import Linear
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.split import Split

Shape = tuple[int, ...]


class SummedLinear(Linear):
    """Some columns of a matrix: the products of all ranks' are summed."""

    sum: Callable[[mx.array], mx.array]

    def __call__(self, x: mx.array) -> mx.array:
        return self.sum(super().__call__(x))


class RankModel(MagistralModel):
    """One rank's part of a model, between the embedding and the final norm."""

    def __init__(self, config: ModelConfig, dtype: mx.Dtype, split: Split, group: Group) -> None:
        super().__init__(config, dtype)
        self.split, self.group = split, group
        if split.kind == "tensor":
            for block in self.language_model.model.layers:
                block.self_attn.o_proj = self._summed(block.self_attn.o_proj)
                block.mlp.down_proj = self._summed(block.mlp.down_proj)

    def _summed(self, matrix: Linear) -> SummedLinear:
        rows, columns = matrix.weight.shape
        summed = SummedLinear(columns, rows)
        summed.sum = self.group.sum
        return summed

    def wait_unless_deep(self, *before: mx.array) -> None:
        """Wait for the pass before, where the next one would copy the caches otherwise."""
        if not self.overlaps_passes:
            mx.eval(*before)


class LeadingModel(RankModel):
    """Rank 0's part, which the engine uses as if it were the whole model."""

    def __init__(
        self, config: ModelConfig, dtype: mx.Dtype, split: Split, leader: Leader, number: int
    ) -> None:
        """`number`: what the other ranks know the model by."""
        super().__init__(config, dtype, split, leader.group)
        self.leader, self.number = leader, number

    def make_caches(self, scheme: KVScheme = FULL, workspace: int = WORKSPACE) -> SequenceCaches:
        """Make an empty cache per layer, on every rank."""
        return ToldCaches(super().make_caches(scheme, workspace), self, scheme, workspace)

    def __call__(self, h: mx.array, caches: Sequence[LayerCache]) -> mx.array:
        """Run embeddings (B, L, D) through all ranks -> (B, L, D), on its way."""
        with self._told("pass", h.shape, caches):
            self.wait_unless_deep(h)
            decoder = self.language_model.model
            if self.split.kind == "tensor":
                y = decoder.through(decoder.layers, self.group.from_leader(h), caches)
            else:
                mx.async_eval(self.group.send(decoder.through(decoder.layers, h, caches)))
                y = self.group.receive(h.shape, h.dtype)
            y = decoder.norm(y)
            mx.async_eval(y)
        return y

    def prefill(self, h: mx.array, caches: Sequence[KVCache]) -> None:
        """Append to the caches of all ranks what a call would, without computing outputs."""
        with self._told("prefill", h.shape, caches):
            decoder = self.language_model.model
            if self.split.kind == "tensor":
                decoder.prefill(self.group.from_leader(h), caches)
                mx.async_eval(caches[-1].state)
            else:
                mx.async_eval(self.group.send(decoder.through(decoder.layers, h, caches)))

    @contextmanager
    def _told(self, kind: str, shape: Shape, caches: Sequence[LayerCache]) -> Iterator[None]:
        """Have the others do a pass; what goes wrong here leaves them waiting, so it ends all."""
        rows = caches.rows if isinstance(caches, BatchCaches) else [caches]
        numbers = [row.number for row in rows if isinstance(row, ToldCaches)]
        assert len(numbers) == len(rows), "a split model's own caches"
        self.leader.tell(kind, self.number, numbers, shape)
        try:
            yield
        except BaseException as error:
            self.leader.fail_pass(error)
            self.leader.check()
            raise


class ToldCaches(SequenceCaches):
    """Rank 0's part of a sequence's caches; the other ranks do the same to theirs."""

    def __init__(
        self, layers: SequenceCaches, model: LeadingModel, scheme: KVScheme, workspace: int
    ) -> None:
        super().__init__(layers)
        leader = self._leader = model.leader
        number = self.number = leader.number()
        leader.tell("caches", number, model.number, asdict(scheme), workspace)
        weakref.finalize(self, leader.dropped.append, number).atexit = False

    def reserve(self, tokens: int, most: int = 0) -> None:
        self._leader.tell("reserve", self.number, tokens, most)
        super().reserve(tokens, most)

    def trim(self, length: int) -> None:
        self._leader.tell("trim", self.number, length)
        super().trim(length)

    def snapshot(self, most: int) -> None:
        self._leader.tell("snapshot", self.number, most)
        super().snapshot(most)

    def evaluate(self, *beside: mx.array) -> None:
        self._leader.tell("evaluate", self.number)
        super().evaluate(*beside)

    def copy_from(self, other: SequenceCaches, length: int) -> None:
        assert isinstance(other, ToldCaches), "caches of the same model"
        self._leader.tell("copy", self.number, other.number, length)
        super().copy_from(other, length)


class FollowingModel(RankModel):
    """Another rank's part, without embedding, final norm and head."""

    def __init__(self, config: ModelConfig, dtype: mx.Dtype, split: Split, group: Group) -> None:
        super().__init__(config, dtype, split, group)
        del self.language_model.model.embed_tokens, self.language_model.model.norm
        if not config.text.tie_word_embeddings:
            del self.language_model.lm_head
        self._before: mx.array | None = None  # the output of the pass before

    def follow(self, shape: Shape, caches: Sequence[LayerCache]) -> None:
        """Do this rank's part of a pass over embeddings of a shape, (B, L, D)."""
        if self._before is not None:
            self.wait_unless_deep(self._before)
        decoder = self.language_model.model
        y = decoder.through(decoder.layers, self._receive(shape), caches)
        self._before = y if self.split.kind == "tensor" else self.group.send(y)
        mx.async_eval(self._before)

    def follow_prefill(self, shape: Shape, caches: SequenceCaches) -> None:
        """Do this rank's part of a pass that only appends to the caches."""
        if self.split.kind == "pipeline" and self.split.rank < self.split.size - 1:
            self.follow(shape, caches)
            return
        self.language_model.model.prefill(self._receive(shape), caches)
        mx.async_eval(caches[-1].state)

    def _receive(self, shape: Shape) -> mx.array:
        if self.split.kind == "tensor":
            return self.group.from_leader((shape, self.dtype))
        return self.group.receive(shape, self.dtype)
