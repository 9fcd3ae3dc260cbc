"""The quantized KV cache of one layer.

    tokens   0 … first | first … first + packed          | … length
    stored   plain     | quantized                        | plain (the window)

Tokens age out of the window in blocks and are quantized then. Which tokens are quantized is a
function of the length (`KVScheme.packed`), and the window keeps `slack` more tokens than it needs,
so trimming back by up to that much and writing again leaves no trace.
"""

from __future__ import annotations

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE, Packed, Segment, attend
from magistral_mlx.cache.buffer import Buffer
from magistral_mlx.cache.scheme import KVScheme

FEW_TOKENS = 64  # new tokens that go through the window; more are attended to before they are kept
PARTS = ("weight", "scales", "biases")


class PackedBuffer:
    """Quantized tokens that grow along their axis: the three parts of `mx.quantize`."""

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
        """Quantize x, (B, H_kv, L, D), into the tokens from `start` on."""
        quantized = mx.quantize(x, group_size=self._group_size, bits=self._bits)
        self.write_parts(start, quantized)

    def write_parts(self, start: int, parts: tuple[mx.array, ...]) -> None:
        for buffer, part in zip(self._parts, parts, strict=True):
            buffer.write(start, part)

    def read(self, end: int) -> Packed:
        weight, scales, biases = (part.read(0, end) for part in self._parts)
        return Packed(weight, scales, biases, self._bits, self._group_size)


class QuantizedKVCache:
    """Keys and values at their own bits, with the first and the newest tokens kept plain."""

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
        for buffer in self._window:
            buffer.reserve(window_capacity(scheme))

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        buffers = (*self._first, *self._quantized, *self._window)
        return [array for buffer in buffers for array in buffer.state]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)

    def reserve(self, tokens: int, most: int = 0) -> None:
        for buffer in self._quantized:
            buffer.reserve(self.scheme.packed(tokens), self.scheme.packed(most))

    def trim(self, length: int) -> None:
        """Forget all tokens from position `length` on.

        Within the scheme's slack the cache is then the one that never went further. A deeper trim
        finds its newest tokens quantized already, and they stay so.
        """
        if length >= self.length:
            return
        only_packed = min(self._start, length) - self.scheme.first
        self._packed = max(0, min(self._packed, max(self.scheme.packed(length), only_packed)))
        self._start = max(self.scheme.first, min(self._start, length))
        self.length = length

    def trimmable(self, length: int) -> int:
        length = min(length, self.length)
        # The window must still hold in full precision what a cache of that length does.
        return length if self.scheme.first + self._packed_at(length) >= self._start else 0

    def _packed_at(self, length: int) -> int:
        """Tokens that would be quantized after a trim that leaves no trace."""
        return self._packed if length == self.length else self.scheme.packed(length)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        if self.scheme.rotate:
            q, k, v = (mx.hadamard_transform(x) for x in (q, k, v))
        few = k.shape[2] <= FEW_TOKENS
        y = (self._attend_through_window if few else self._attend_in_bulk)(q, k, v, scale)
        return mx.hadamard_transform(y) if self.scheme.rotate else y

    def _attend_through_window(
        self, q: mx.array, k: mx.array, v: mx.array, scale: float
    ) -> mx.array:
        """A few new tokens: they are written to the window first, and attended to there."""
        self._append_first(k, v)
        skip = max(0, min(k.shape[2], self.scheme.first - self.length))
        if skip < k.shape[2]:
            place = self.length + skip - self._start
            for buffer, new in zip(self._window, (k, v), strict=True):
                buffer.write(place, new[:, :, skip:])
        self.length += k.shape[2]
        segments = list(self._segments().values())
        y = attend(q, segments, scale=scale, workspace=self._workspace)
        self._age()
        return y

    def _attend_in_bulk(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """More new tokens than go through the window: attended to as they are, then stored."""
        segments = [*self._segments().values(), Segment(k, v, k.shape[2])]
        y = attend(q, segments, scale=scale, workspace=self._workspace)
        self._append_first(k, v)
        end = self.length + k.shape[2]
        packed = max(self._packed, self.scheme.packed(end))
        self._pack(k, v, packed)
        # The window keeps what a trim within the slack may bring back.
        kept_from = self.scheme.first + self.scheme.packed(end - self.scheme.slack)
        self._rebuild_window(k, v, max(self._start, kept_from))
        self.length, self._packed = end, packed
        return y

    def _segments(self, length: int | None = None) -> dict[str, Segment]:
        """What is held, by name, the newest tokens last."""
        length = self.length if length is None else length
        first = min(length, self.scheme.first)
        packed = self._packed_at(length)
        start, end = self.scheme.first + packed - self._start, length - self._start
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
        room = self.scheme.first - self.length
        if room > 0:
            for buffer, new in zip(self._first, (k, v), strict=True):
                buffer.write(self.length, new[:, :, :room])

    def _age(self) -> None:
        """Quantize the block that has left the window, if one has, and drop what is spent."""
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

    def _pack(self, k: mx.array, v: mx.array, packed: int) -> None:
        """Quantize until `packed` tokens are, from the window first and then from the new ones."""
        first, length = self.scheme.first, self.length
        start, end = first + self._packed, first + packed
        middle = max(start, min(end, length))
        for buffer, window, new in zip(self._quantized, self._window, (k, v), strict=True):
            if start < middle:
                aged = window.read(start - self._start, middle - self._start)
                buffer.write(start - first, aged)
            if middle < end:
                buffer.write(middle - first, new[:, :, middle - length : end - length])

    def _rebuild_window(self, k: mx.array, v: mx.array, start: int) -> None:
        """Let the window hold the tokens from `start` on, the new ones included."""
        held = max(0, self.length - start)
        for window, new in zip(self._window, (k, v), strict=True):
            if held:
                window.drop(start - self._start, held)
            if start < self.length + k.shape[2]:
                window.write(held, new[:, :, max(0, start - self.length) :])
        self._start = start

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        length = self.length if length is None else length
        saved = {}
        for name, segment in self._segments(length).items():
            for kind, x in (("keys", segment.keys), ("values", segment.values)):
                if isinstance(x, Packed):
                    for part, array in zip(PARTS, x.parts, strict=True):
                        saved[f"{name}_{kind}_{part}"] = array
                elif name == "first":
                    saved[f"{name}_{kind}"] = x
        for kind, window in zip(("keys", "values"), self._window, strict=True):
            if length > self._start:
                saved[f"window_{kind}"] = window.read(0, length - self._start)
        return saved

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        self.length = length
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
    """Tokens that the window may hold: what it must, what a trim may bring back, what waits."""
    waiting = 2 * scheme.block + max(scheme.block, scheme.slack)
    return scheme.window + scheme.slack + waiting + FEW_TOKENS
