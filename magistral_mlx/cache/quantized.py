"""The quantized KV cache of one layer.

    tokens   0 … first | first … first + packed          | … length
    stored   plain     | quantized                        | plain (the window)

Tokens leave the window in blocks and are quantized then. Which tokens are quantized depends on the
length alone (`KVScheme.packed`), so what a token attends to depends on its position alone: prompt,
output and draft tokens may come in any pieces with the same result up to rounding. The window keeps
`slack` more tokens than it needs, so trimming by up to that many tokens and writing again changes
nothing; neither does trimming back to a snapshot, which holds the window of its length. A model in
bfloat16 has its quantized caches in float16, as small and eight times as exact (`as_float16`).

Plain tokens stand in one buffer for keys and one for values, so that a decoded token takes one
product with all of them (`attend_packed`):

    row         0      | 1 … 1 + first | 1 + first …
    token       center | the first     | the window's, from `_start` on

The file is longer than others because growing, trimming, saving and restoring keep one set of
buffers consistent.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.attention import WORKSPACE, attend
from magistral_mlx.cache.buffer import Buffer, PackedBuffer
from magistral_mlx.cache.chunk import ChunkKeys, Piece, attend_chunk, split_chunk
from magistral_mlx.cache.packed import FEW_QUERIES, attend_packed, visible_rows
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
        self._start = scheme.first  # the token at the front of the window
        self._center: mx.array | None = None  # of keys, (B, H_kv, 1, D), from the first block on
        self._plain = (Buffer(), Buffer())  # keys, values
        self._quantized = (
            # Attention takes scores of plain tokens in the place of those of spare rows.
            PackedBuffer(scheme.key_bits, scheme.group_size, spare=scheme.plain_capacity),
            PackedBuffer(scheme.value_bits, scheme.group_size),
        )
        self._snapshots = Snapshots(scheme)
        for buffer in self._plain:
            buffer.reserve(scheme.plain_capacity)

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        buffers = (*self._plain, *self._quantized)
        arrays = [array for buffer in buffers for array in buffer.state]
        center = [] if self._center is None else [self._center]
        return arrays + center + self._snapshots.state

    @property
    def in_float16(self) -> bool:
        return True

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
            for buffer, array in zip(self._plain, (snapshot.keys, snapshot.values), strict=True):
                buffer.write(1 + self.scheme.first, array[:, :, : length - snapshot.start])
            self._start = snapshot.start
        only_packed = min(self._start, length) - self.scheme.first
        self._packed = max(0, min(self._packed, max(self.scheme.packed(length), only_packed)))
        if not self._packed:
            self._center = None
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
            keys, values = map(mx.contiguous, self._read(start, self.length))
            self._snapshots.add(Snapshot(self.length, start, keys, values), most)

    def _in_window(self, length: int) -> bool:
        """Whether the window holds all full-precision tokens of a cache of `length` tokens."""
        return self.scheme.first + self._packed_at(length) >= self._start

    def _packed_at(self, length: int) -> int:
        """Tokens that are quantized after an exact trim to `length`."""
        return self._packed if length == self.length else self.scheme.packed(length)

    def append(self, k: mx.array, v: mx.array) -> None:
        self._write(self._rotated(k), self._rotated(v))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Write new tokens, quantize what leaves the window, and attend.

        What is quantized is written first: an array is written in place only if nothing else
        refers to it, and on Metal a command buffer that is not done does (`gpu::eval` in
        mlx/backend/metal/eval.cpp, line 48 of commit 846d176). Attention reads the packed arrays,
        so writing after it would copy them.
        """
        dtype = q.dtype
        q, k, v = self._rotated(q, scale), self._rotated(k), self._rotated(v)
        position, before, count = self.length, self._packed, k.shape[2]
        pieces = split_chunk(self.scheme, position, count, before)
        plain = self._write(k, v)
        y = None
        few = backend().packed_attention and count <= FEW_QUERIES
        if backend().fused_attention and not few:
            if pieces[0].packed == pieces[-1].packed:
                pieces = [Piece(position, self.length, before)]
            else:
                y = self._attend_chunk(q, plain, pieces, before)
        if y is None:
            parts = []
            for piece in pieces:
                some = q[:, :, piece.start - position : piece.end - position]
                part = self._attend_few(some, piece) if few else None
                if part is None:
                    segments = self._segments(piece, plain, before)
                    part = attend(some, segments, scale=1.0, workspace=self._workspace)
                parts.append(part)
            y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        if count > PIECE:
            # The window is written before the next layer begins: nothing reads it in this chunk,
            # and until it is written, all of the chunk's keys and values are kept for it.
            (y,) = mx.depends([y], [array for buffer in self._plain for array in buffer.state])
        return self._rotated(y).astype(dtype)

    def _rotated(self, x: mx.array, scale: float = 1.0) -> mx.array:
        """(B, heads, L, head_dim) times a scale, in the dtype of the cache."""
        x = as_float16(x) if x.dtype == mx.bfloat16 else x
        if self.scheme.rotate:
            return mx.hadamard_transform(x, scale * x.shape[3] ** -0.5)
        return x if scale == 1 else x * scale

    def _write(self, k: mx.array, v: mx.array) -> Segment | None:
        """Write new tokens, and quantize what leaves the window.

        Returns:
            The tokens that were not quantized before, but for the first of the sequence.
        """
        self._drop_spent()
        first, position = self.scheme.first, self.length
        place, before = first + self._packed, self._packed
        self.length += k.shape[2]
        few = k.shape[2] <= PIECE
        for buffer, new in zip(self._plain, (k, v), strict=True):
            if few:
                buffer.write(self._row(position), new)
            elif position < first:
                buffer.write(self._row(position), new[:, :, : first - position])
        if self.length <= first:
            return None
        keys, values = (x[:, :, max(0, first - position) :] for x in (k, v))
        if few:
            keys, values = self._read(place, self.length)
        elif position > place:
            pairs = zip(self._read(place, position), (keys, values), strict=True)
            keys, values = (mx.concatenate([*pair], axis=2) for pair in pairs)
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
            kept = first + self.scheme.packed(self.length - self.scheme.slack)
            self._start = max(place, min(kept, first + self._packed))
            if self._start < self.length:
                for buffer, plain in zip(self._plain, (keys, values), strict=True):
                    buffer.write(1 + first, plain[:, :, self._start - place :])
        return Segment(keys, values, self.length - place)

    def _row(self, token: int) -> int:
        """Row of a plain token in its buffers."""
        first = self.scheme.first
        return 1 + token if token < first else 1 + first + token - self._start

    def _read(self, start: int, end: int) -> tuple[mx.array, mx.array]:
        """Plain keys and values of the tokens from `start` to `end`, of which all or none are
        first ones."""
        row = self._row(start)
        keys, values = (buffer.read(row, row + end - start) for buffer in self._plain)
        return keys, values

    def _attend_few(self, q: mx.array, piece: Piece) -> mx.array | None:
        """Attend with the few queries of a piece; None if the workspace is too small."""
        end = self._row(piece.end - 1) + 1
        if not piece.packed:
            keys, values = (buffer.read(1, end) for buffer in self._plain)
            tokens = [Segment(keys, values, end - 1)]
            return attend(q, tokens, scale=1.0, workspace=self._workspace)
        keys, values = (buffer.read(0, end) for buffer in self._plain)
        first, length = self.scheme.first, piece.end - piece.start
        hidden = first + piece.packed - self._start  # of the window, as they are quantized
        return attend_packed(
            q,
            self._packed_tokens(piece.packed, spare=end - 1),
            Segment(keys, values, end),
            visible_rows(end - 1, first, hidden, length),
            workspace=self._workspace,
        )

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

    def _center_on(self, center: mx.array) -> None:
        """Attend to keys less `center`, (B, H_kv, 1, D), from now on."""
        self._center = center
        self._plain[0].write(0, center)

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
    ) -> mx.array | None:
        assert plain, "tokens leave the window only after the first ones"
        first, packed = self._first_tokens(self.length), self._packed_tokens(pieces[-1].packed)
        keys = ChunkKeys(self._centered(plain), first, packed, before)
        return attend_chunk(q, keys, pieces, scale=1.0, workspace=self._workspace)

    def _first_tokens(self, length: int) -> Segment | None:
        first = min(length, self.scheme.first)
        if not first:
            return None
        return self._centered(Segment(*self._read(0, first), first))

    def _packed_tokens(self, count: int, spare: int = 0) -> Segment:
        """The first `count` quantized tokens, their keys with `spare` rows more."""
        keys, values = self._quantized
        return Segment(keys.read(count + spare), values.read(count), count)

    def _drop_spent(self) -> None:
        """Drop tokens of the window that no trim needs any more, once they are many."""
        first = self.scheme.first
        kept_from = first + self.scheme.packed(self.length - self.scheme.slack)
        spent = min(kept_from, first + self._packed) - self._start
        if spent >= max(self.scheme.block, self.scheme.slack):
            kept = self.length - self._start - spent
            for buffer in self._plain:
                buffer.drop(1 + first, 1 + first + spent, kept)
            self._start += spent

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        length = self.length if length is None else length
        snapshot = None if self._in_window(length) else self._snapshots.covering(length)
        saved = self._snapshots.save(length)
        first = self.scheme.first
        for index, kind in enumerate(("keys", "values")):
            if length and first:
                saved[f"first_{kind}"] = self._read(0, min(length, first))[index]
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
                saved[f"window_{kind}"] = self._read(self._start, length)[index]
        return saved

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        self.length = length
        self._snapshots.restore(saved)
        for index, kind in enumerate(("keys", "values")):
            if f"first_{kind}" in saved:
                self._plain[index].write(1, saved[f"first_{kind}"])
            if f"packed_{kind}_weight" in saved:
                parts = tuple(saved[f"packed_{kind}_{part}"] for part in PARTS)
                self._quantized[index].write_parts(0, parts)
                self._packed = parts[0].shape[2]
            if f"window_{kind}" in saved:
                self._plain[index].write(1 + self.scheme.first, saved[f"window_{kind}"])
                self._start = length - saved[f"window_{kind}"].shape[2]
            else:
                self._start = max(length, self.scheme.first)
        self._center = None
        if "center" in saved:
            self._center_on(saved["center"])
