"""The quantized KV cache of one layer.

    tokens   0 … first | first … first + packed          | … length
    stored   plain     | quantized                        | plain (the window)

Tokens leave the window in blocks and are quantized then. Which tokens are quantized depends on the
length alone (`KVScheme.packed`), so what a token attends to depends on its position alone: prompt,
output and draft tokens may come in any pieces with the same result up to rounding. The window keeps
`slack` more tokens than it needs, so trimming by up to that many tokens and writing again changes
nothing; neither does trimming back to a snapshot, which holds the window of its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE, attend
from magistral_mlx.cache.buffer import Buffer
from magistral_mlx.cache.scheme import SLACK, KVScheme
from magistral_mlx.cache.segments import Packed, Segment
from magistral_mlx.cache.snapshots import Snapshot, Snapshots

PIECE = 64  # new tokens that enter the window at once, at most
PARTS = ("weight", "scales", "biases")


class PackedBuffer:
    """Quantized tokens in growing buffers, one for each part that `mx.quantize` returns."""

    def __init__(self, bits: int, group_size: int) -> None:
        self._bits, self._group_size = bits, group_size
        self._parts = (Buffer(), Buffer(), Buffer())

    @property
    def state(self) -> list[mx.array]:
        return [array for part in self._parts for array in part.state]

    def reserve(self, tokens: int, most: int = 0) -> None:
        for part in self._parts:
            part.reserve(tokens, most)

    def write(self, start: int, x: mx.array) -> None:
        """Quantize x, (B, H_kv, L, D), and write it to the tokens from `start` on."""
        quantized = mx.quantize(x, group_size=self._group_size, bits=self._bits)
        self.write_parts(start, quantized)

    def write_parts(self, start: int, parts: tuple[mx.array, ...]) -> None:
        for buffer, part in zip(self._parts, parts, strict=True):
            buffer.write(start, part)

    def read(self, end: int) -> Packed:
        weight, scales, biases = (part.read(0, end) for part in self._parts)
        return Packed(weight, scales, biases, self._bits, self._group_size)


class QuantizedKVCache:
    """A cache with quantized keys and values, except for the first and the newest tokens."""

    def __init__(self, scheme: KVScheme, workspace: int = WORKSPACE) -> None:
        assert scheme.key_bits and scheme.value_bits
        self.scheme = scheme
        self.length = 0
        self._workspace = workspace
        self._packed = 0  # tokens, after the first ones, that attention takes quantized
        self._start = scheme.first  # the token at the front of the window's buffers
        self._first = (Buffer(), Buffer())  # keys, values
        self._quantized = (
            PackedBuffer(scheme.key_bits, scheme.group_size),
            PackedBuffer(scheme.value_bits, scheme.group_size),
        )
        self._window = (Buffer(), Buffer())
        self._snapshots = Snapshots(scheme)
        for buffer in self._window:
            buffer.reserve(window_capacity(scheme))

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        buffers = (*self._first, *self._quantized, *self._window)
        return [array for buffer in buffers for array in buffer.state] + self._snapshots.state

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)

    def reserve(self, tokens: int, most: int = 0) -> None:
        for buffer in self._quantized:
            buffer.reserve(self.scheme.packed(tokens), self.scheme.packed(most))

    def trim(self, length: int) -> None:
        """Remove all tokens from position `length` on.

        At a `trimmable` length, and always within the scheme's slack, the result equals a cache
        that never grew further. Otherwise tokens that are already quantized stay quantized.
        """
        if length >= self.length:
            return
        snapshot = None if self._in_window(length) else self._snapshots.covering(length)
        if snapshot:
            for window, array in zip(self._window, (snapshot.keys, snapshot.values), strict=True):
                window.write(0, array[:, :, : length - snapshot.start])
            self._start = snapshot.start
        only_packed = min(self._start, length) - self.scheme.first
        self._packed = max(0, min(self._packed, max(self.scheme.packed(length), only_packed)))
        self._start = max(self.scheme.first, min(self._start, length))
        self.length = length
        self._snapshots.trim(length)

    def trimmable(self, length: int) -> int:
        length = min(length, self.length)
        return length if self._in_window(length) else self._snapshots.longest(length)

    @property
    def resumable(self) -> Sequence[int]:
        return [*self._snapshots.lengths, self.length]

    def snapshot(self, most: int) -> None:
        start = max(self._start, self.scheme.first + self.scheme.packed(self.length - SLACK))
        if start < self.length:
            keys, values = (
                mx.contiguous(window.read(start - self._start, self.length - self._start))
                for window in self._window
            )
            self._snapshots.add(Snapshot(self.length, start, keys, values), most)

    def _in_window(self, length: int) -> bool:
        """Whether the window holds all full-precision tokens of a cache of `length` tokens."""
        return self.scheme.first + self._packed_at(length) >= self._start

    def _packed_at(self, length: int) -> int:
        """Tokens that are quantized after an exact trim to `length`."""
        return self._packed if length == self.length else self.scheme.packed(length)

    def append(self, k: mx.array, v: mx.array) -> None:
        if self.scheme.rotate:
            k, v = (mx.hadamard_transform(x) for x in (k, v))
        for part in self._pieces(k.shape[2]):
            self._write(k[:, :, part], v[:, :, part])
            self._age()

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Write new tokens to the window piece by piece, attend, and quantize what leaves it."""
        if self.scheme.rotate:
            q, k, v = (mx.hadamard_transform(x) for x in (q, k, v))
        parts = []
        for part in self._pieces(k.shape[2]):
            self._write(k[:, :, part], v[:, :, part])
            segments = list(self._segments().values())
            y = attend(q[:, :, part], segments, scale=scale, workspace=self._workspace)
            parts.append(y)
            self._age()
        y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        return mx.hadamard_transform(y) if self.scheme.rotate else y

    def _pieces(self, count: int) -> Iterator[slice]:
        """Split `count` new tokens into pieces that end where a block leaves the window."""
        start = 0
        while start < count:
            end = min(count, start + self._tokens_to_next_block())
            yield slice(start, end)
            start = end

    def _tokens_to_next_block(self) -> int:
        """Number of new tokens until the next block leaves the window.

        All of them attend to the same quantized tokens, so results do not depend on how a
        sequence is cut into chunks.
        """
        if not self.scheme.window:
            return PIECE
        aged = self.length - self.scheme.first - self.scheme.window
        return self.scheme.block - aged % self.scheme.block

    def _write(self, k: mx.array, v: mx.array) -> None:
        """Write new tokens to the window, and the first tokens of the sequence to their buffer."""
        self._append_first(k, v)
        skip = max(0, min(k.shape[2], self.scheme.first - self.length))
        if skip < k.shape[2]:
            place = self.length + skip - self._start
            for buffer, new in zip(self._window, (k, v), strict=True):
                buffer.write(place, new[:, :, skip:])
        self.length += k.shape[2]

    def _segments(self) -> dict[str, Segment]:
        """The segments of the cache by name, the newest tokens last."""
        first = min(self.length, self.scheme.first)
        packed = self._packed
        start, end = self.scheme.first + packed - self._start, self.length - self._start
        segments = {}
        if first:
            keys, values = (buffer.read(0, first) for buffer in self._first)
            segments["first"] = Segment(keys, values, first)
        if packed:
            packed_keys, packed_values = (buffer.read(packed) for buffer in self._quantized)
            segments["packed"] = Segment(packed_keys, packed_values, packed)
        if end > start:
            keys, values = (buffer.read(start, end) for buffer in self._window)
            segments["window"] = Segment(keys, values, end - start)
        return segments

    def _append_first(self, k: mx.array, v: mx.array) -> None:
        missing = self.scheme.first - self.length
        if missing > 0:
            for buffer, new in zip(self._first, (k, v), strict=True):
                buffer.write(self.length, new[:, :, :missing])

    def _age(self) -> None:
        """Quantize blocks that have left the window, and drop tokens no trim needs any more."""
        first = self.scheme.first
        target = self.scheme.packed(self.length)
        if target > self._packed:
            start, end = first + self._packed - self._start, first + target - self._start
            for packed, window in zip(self._quantized, self._window, strict=True):
                packed.write(self._packed, window.read(start, end))
            self._packed = target
        kept_from = first + self.scheme.packed(self.length - self.scheme.slack)
        spent = min(kept_from, first + self._packed) - self._start
        if spent >= max(self.scheme.block, self.scheme.slack):
            for window in self._window:
                window.drop(spent, self.length - self._start - spent)
            self._start += spent

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        length = self.length if length is None else length
        snapshot = None if self._in_window(length) else self._snapshots.covering(length)
        saved = self._snapshots.save(length)
        for index, kind in enumerate(("keys", "values")):
            if first := min(length, self.scheme.first):
                saved[f"first_{kind}"] = self._first[index].read(0, first)
            if packed := self._packed_at(length):
                parts = self._quantized[index].read(packed).parts
                saved |= {f"packed_{kind}_{n}": x for n, x in zip(PARTS, parts, strict=True)}
            if snapshot:
                saved[f"window_{kind}"] = (snapshot.keys, snapshot.values)[index][
                    :, :, : length - snapshot.start
                ]
            elif length > self._start:
                saved[f"window_{kind}"] = self._window[index].read(0, length - self._start)
        return saved

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        self.length = length
        self._snapshots.restore(saved)
        for index, kind in enumerate(("keys", "values")):
            if f"first_{kind}" in saved:
                self._first[index].write(0, saved[f"first_{kind}"])
            if f"packed_{kind}_weight" in saved:
                parts = tuple(saved[f"packed_{kind}_{part}"] for part in PARTS)
                self._quantized[index].write_parts(0, parts)
                self._packed = parts[0].shape[2]
            if f"window_{kind}" in saved:
                self._window[index].write(0, saved[f"window_{kind}"])
                self._start = length - saved[f"window_{kind}"].shape[2]
            else:
                self._start = max(length, self.scheme.first)


def window_capacity(scheme: KVScheme) -> int:
    """Capacity of the window's buffers: the window, the slack for trims, tokens waiting to be
    quantized or dropped, and one piece of new tokens."""
    waiting = 2 * scheme.block + max(scheme.block, scheme.slack)
    return scheme.window + scheme.slack + waiting + PIECE
