"""The quantized KV cache of one layer.

    tokens   0 … first | first … first + packed          | … length
    stored   plain     | quantized                        | plain (the window)

Tokens leave the window in blocks and are quantized then. Which tokens are quantized depends on the
length alone (`KVScheme.packed`), so what a token attends to depends on its position alone: prompt,
output and draft tokens may come in any pieces with the same result up to rounding. The window keeps
`slack` more tokens than it needs, so trimming by up to that many tokens and writing again changes
nothing; neither does trimming back to a snapshot, which holds the window of its length. A model in
bfloat16 has its quantized caches in float16, as small and eight times as exact (`as_float16`).

The file is longer than others because growing, trimming, saving and restoring keep one set of
buffers consistent.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.attention import FEW_QUERIES, WORKSPACE, attend
from magistral_mlx.cache.buffer import Buffer, PackedBuffer
from magistral_mlx.cache.chunk import ChunkKeys, Piece, attend_chunk, split_chunk
from magistral_mlx.cache.scheme import PIECE, SLACK, KVScheme
from magistral_mlx.cache.segments import Packed, Segment, as_float16
from magistral_mlx.cache.snapshots import Snapshot, Snapshots

PARTS = ("weight", "scales", "biases")


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
        self._center_on(None)
        self._snapshots = Snapshots(scheme)
        for buffer in self._window:
            buffer.reserve(scheme.window_capacity)

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        buffers = (*self._first, *self._quantized, *self._window)
        arrays = [array for buffer in buffers for array in buffer.state]
        centered = [x for x in (self._center, self._centered_first) if x is not None]
        return arrays + centered + self._snapshots.state

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
        if not self._packed:
            self._center_on(None)
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
        self._write(*self._prepared(k, v))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Write new tokens, quantize what leaves the window, and attend.

        What is quantized is written first: an array is written in place only if nothing else
        refers to it, and on Metal a command buffer that is not done does (`gpu::eval` in
        mlx/backend/metal/eval.cpp, line 48 of commit 846d176). Attention reads the packed arrays,
        so writing after it would copy them.
        """
        dtype = q.dtype
        q, k, v = self._prepared(q, k, v)
        position, before = self.length, self._packed
        pieces = split_chunk(self.scheme, position, k.shape[2], before)
        plain = self._write(k, v)
        y = None
        if backend().fused_attention and q.shape[2] > FEW_QUERIES:
            if pieces[0].packed == pieces[-1].packed:
                pieces = [Piece(position, self.length, before)]
            else:
                y = self._attend_chunk(q, plain, pieces, before, scale)
        if y is None:
            parts = [
                attend(
                    q[:, :, piece.start - position : piece.end - position],
                    self._segments(piece, plain, before),
                    scale=scale,
                    workspace=self._workspace,
                )
                for piece in pieces
            ]
            y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        if q.shape[2] > PIECE:
            # The window is written before the next layer begins: nothing reads it in this chunk,
            # and until it is written, all of the chunk's keys and values are kept for it.
            (y,) = mx.depends([y], [array for window in self._window for array in window.state])
        return (mx.hadamard_transform(y) if self.scheme.rotate else y).astype(dtype)

    def _prepared(self, *arrays: mx.array) -> list[mx.array]:
        """Arrays of (B, heads, L, head_dim) in the dtype of the cache, and rotated."""
        found = [as_float16(x) if x.dtype == mx.bfloat16 else x for x in arrays]
        return [mx.hadamard_transform(x) for x in found] if self.scheme.rotate else found

    def _write(self, k: mx.array, v: mx.array) -> Segment | None:
        """Write new tokens, and quantize what leaves the window.

        Returns:
            The tokens that were not quantized before, but for the first of the sequence.
        """
        self._drop_spent()
        self._append_first(k, v)
        place, before = self.scheme.first + self._packed, self._packed
        skip = max(0, min(k.shape[2], self.scheme.first - self.length))
        held, self.length = max(self.length, self.scheme.first), self.length + k.shape[2]
        if skip == k.shape[2]:
            return None
        few = k.shape[2] <= PIECE
        keys, values = (
            self._enter(window, new[:, :, skip:], held, place, few)
            for window, new in zip(self._window, (k, v), strict=True)
        )
        target = self.scheme.packed(self.length)
        if target > before:
            aged = keys[:, :, : target - before]
            if self.scheme.center and not before:
                count = self.scheme.block if self.scheme.window else PIECE
                self._center_on(aged[:, :, :count].mean(axis=2, keepdims=True))
            if self._center is not None:
                aged = aged - self._center
            self._quantized[0].write(before, aged)
            self._quantized[1].write(before, values[:, :, : target - before])
            self._packed = target
        if not few:
            kept = self.scheme.first + self.scheme.packed(self.length - self.scheme.slack)
            self._start = max(place, min(kept, self.scheme.first + self._packed))
            if self._start < self.length:
                for window, plain in zip(self._window, (keys, values), strict=True):
                    window.write(0, plain[:, :, self._start - place :])
        return Segment(keys, values, self.length - place)

    def _enter(self, window: Buffer, new: mx.array, held: int, place: int, few: bool) -> mx.array:
        """Write new tokens from position `held` on, if they are few.

        Returns:
            The plain tokens from position `place` on.
        """
        start = self._start
        if few:
            window.write(held - start, new)
            return window.read(place - start, held - start + new.shape[2])
        if held == place:
            return new
        return mx.concatenate([window.read(place - start, held - start), new], axis=2)

    def _segments(self, piece: Piece, plain: Segment | None, before: int) -> list[Segment]:
        """The tokens that a piece sees, its own last; `before` were quantized before it came."""
        segments = []
        if first := self._first_tokens(piece.end):
            segments.append(first)
        if piece.packed:
            segments.append(self._packed_tokens(piece.packed))
        end = piece.end - self.scheme.first - before
        if plain and end > piece.packed - before:
            segments.append(self._centered(plain.tokens(piece.packed - before, end)))
        return segments

    def _center_on(self, center: mx.array | None) -> None:
        """Attend to keys less `center`, (B, H_kv, 1, D), from now on.

        The first tokens never change, so theirs are computed once.
        """
        self._center = center
        self._centered_first: mx.array | None = None
        if center is not None and self.scheme.first:
            self._centered_first = self._first[0].read(0, self.scheme.first) - center

    def _centered(self, plain: Segment) -> Segment:
        """Plain tokens as the quantized ones are: keys less the center, if there is one yet."""
        if self._center is None or isinstance(plain.keys, Packed):
            return plain
        return plain._replace(keys=plain.keys - self._center)

    def _attend_chunk(
        self,
        q: mx.array,
        plain: Segment | None,
        pieces: Sequence[Piece],
        before: int,
        scale: float,
    ) -> mx.array | None:
        assert plain, "tokens leave the window only after the first ones"
        first, packed = self._first_tokens(self.length), self._packed_tokens(pieces[-1].packed)
        keys = ChunkKeys(self._centered(plain), first, packed, before)
        return attend_chunk(q, keys, pieces, scale=scale, workspace=self._workspace)

    def _first_tokens(self, length: int) -> Segment | None:
        first = min(length, self.scheme.first)
        if not first:
            return None
        keys, values = (buffer.read(0, first) for buffer in self._first)
        if self._centered_first is not None:
            keys = self._centered_first[:, :, :first]
        return Segment(keys, values, first)

    def _packed_tokens(self, count: int) -> Segment:
        keys, values = (buffer.read(count) for buffer in self._quantized)
        return Segment(keys, values, count)

    def _append_first(self, k: mx.array, v: mx.array) -> None:
        missing = self.scheme.first - self.length
        if missing > 0:
            for buffer, new in zip(self._first, (k, v), strict=True):
                buffer.write(self.length, new[:, :, :missing])

    def _drop_spent(self) -> None:
        """Drop tokens of the window that no trim needs any more, once they are many."""
        first = self.scheme.first
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
                if self._center is not None:
                    saved["center"] = self._center
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
        self._center_on(saved.get("center"))
