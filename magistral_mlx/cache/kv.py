"""The KV cache of one layer: the protocol of all schemes, and the full-precision cache.

A layer passes new queries, keys and values to `attend` and gets attended values back. How a cache
stores keys and values is its own matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE, attend
from magistral_mlx.cache.buffer import Buffer
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.segments import Segment


class LayerCache(Protocol):
    """The part of a cache that a layer uses, for one sequence or a batch."""

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token: one for all rows, or (B,) one per row."""

    @property
    def in_float16(self) -> bool:
        """Whether a model in bfloat16 is to pass float16, by `as_float16`. Anything else is
        converted, too, in more kernels."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Append keys and values, then attend causally over the whole cache.

        Args:
            q: (B, H, L, head_dim). k, v: (B, H_kv, L, head_dim), rotated by rope already.

        Returns:
            (B, H, L, head_dim), in the dtype of q.
        """


class KVCache(LayerCache, Protocol):
    """The keys and values of one layer of one sequence."""

    length: int  # tokens held

    def append(self, k: mx.array, v: mx.array) -> None:
        """Append keys and values, (B, H_kv, L, head_dim), without attending."""

    @property
    def state(self) -> list[mx.array]:
        """The arrays of the cache, to be evaluated together with a step's output."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Allocate at least `tokens` with the next write, and do not over-allocate beyond `most`
        (0: no bound)."""

    def trim(self, length: int) -> None:
        """Remove all tokens from position `length` on."""

    def trimmable(self, length: int) -> int:
        """Longest prefix, at most `length` tokens, that `trim` restores exactly."""

    @property
    def resumable(self) -> Sequence[int]:
        """Lengths at which decoding can resume only with more state than the rows of tokens."""

    def snapshot(self, most: int) -> None:
        """Keep the present length `trimmable`. At most `most` snapshots, 3 or more, are kept."""

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        """Return the state of the first `length` tokens (default: all) without spare capacity.

        `length` must be `trimmable`. An empty cache of the same scheme can `restore` it.
        """

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        """Restore the state that `save` returned for `length` tokens."""


def make_cache(scheme: KVScheme, workspace: int = WORKSPACE) -> KVCache:
    """Make an empty cache.

    Args:
        workspace: bytes of temporary arrays that attention may take at once.
    """
    if not scheme.quantized:
        return FullKVCache(workspace)
    from magistral_mlx.cache.quantized import QuantizedKVCache

    return QuantizedKVCache(scheme, workspace)


class FullKVCache:
    """Keys and values in the model's own precision, appended in place."""

    def __init__(self, workspace: int = WORKSPACE) -> None:
        self.length = 0
        self._workspace = workspace
        self._keys, self._values = Buffer(), Buffer()

    @property
    def offset(self) -> int:
        return self.length

    @property
    def in_float16(self) -> bool:
        return False

    @property
    def state(self) -> list[mx.array]:
        return [*self._keys.state, *self._values.state]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)

    def reserve(self, tokens: int, most: int = 0) -> None:
        self._keys.reserve(tokens, most)
        self._values.reserve(tokens, most)

    def trim(self, length: int) -> None:
        self.length = min(self.length, length)

    def append(self, k: mx.array, v: mx.array) -> None:
        self._keys.write(self.length, k)
        self._values.write(self.length, v)
        self.length += k.shape[2]

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        self.append(k, v)
        end = self.length
        held = Segment(self._keys.read(0, end), self._values.read(0, end), end)
        return attend(q, [held], scale=scale, workspace=self._workspace)

    def trimmable(self, length: int) -> int:
        return min(length, self.length)

    @property
    def resumable(self) -> Sequence[int]:
        return ()

    def snapshot(self, most: int) -> None:
        pass  # every length is trimmable

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        length = self.length if length is None else length
        return {"keys": self._keys.read(0, length), "values": self._values.read(0, length)}

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        self.length = length
        self._keys.write(0, saved["keys"])
        self._values.write(0, saved["values"])
