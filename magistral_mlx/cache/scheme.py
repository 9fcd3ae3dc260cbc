"""How a KV cache stores keys and values: the scheme, its bytes, and its rules. No arrays here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from magistral_mlx.errors import InvalidOption

SCHEMES = ("full", "8/8", "8/4", "4/4")
SLACK = 64  # tokens that may be trimmed and written again without a trace
RESERVED = 1024  # tokens of cache made ready beyond a prompt, so that short answers never grow it
# Tokens that leave the window together. A prompt reads what is quantized once for each such block:
# larger blocks read it less often, and keep more in full precision.
_BLOCK = 64


@dataclass(frozen=True)
class KVScheme:
    """Bits of keys and values, None for full precision, and which tokens stay in it.

    window: the newest tokens, at least, that are kept in full precision as well.
    first: the first tokens, which many heads attend to all along, likewise.
    rotate: turn queries, keys and values by a Hadamard matrix first. It leaves attention as it
        is and spreads outlier channels, which few bits cannot hold, over all channels
        (QuaRot, arXiv 2404.00456).

    What it costs at most, with nothing kept in full precision (`without_window`), is held to by
    tests. An attended value differs from that of a full cache by 2 % of the largest one with 8/8,
    15 % with 8/4, 35 % with 4/4. With 8/8 the demo model's logits differ by 2 % of the largest
    one, and no answer changes.
    """

    key_bits: int | None = None
    value_bits: int | None = None
    group_size: int = 64
    window: int = 128
    first: int = 4
    rotate: bool = True

    @classmethod
    def parse(cls, name: str) -> KVScheme:
        """The scheme that "full", "8/8", "8/4" or "4/4" (bits of keys / values) stands for.

        Raises:
            InvalidOption: another name.
        """
        if name == "full":
            return cls()
        if name not in SCHEMES:
            raise InvalidOption(
                f"the KV cache scheme is {name!r}; it must be one of {', '.join(SCHEMES)} "
                "(bits of keys / bits of values)."
            )
        keys, values = name.split("/")
        return cls(int(keys), int(values))

    @property
    def name(self) -> str:
        return f"{self.key_bits}/{self.value_bits}" if self.quantized else "full"

    @property
    def quantized(self) -> bool:
        return self.key_bits is not None

    @property
    def block(self) -> int:
        """Tokens that are quantized together; one by one where there is no window."""
        return max(1, min(_BLOCK, self.window))

    @property
    def slack(self) -> int:
        """Tokens that a trim may take back with nothing changed afterwards."""
        return SLACK if self.window else 0

    def without_window(self) -> KVScheme:
        """The same bits with nothing kept in full precision."""
        return replace(self, window=0, first=0)

    def packed(self, length: int) -> int:
        """Tokens, after the first ones, that are quantized in a cache of `length` tokens.

        A function of the length alone, so a cache that has grown and was trimmed back is the
        same as one that never grew.
        """
        aged = length - self.first - self.window
        return max(0, aged // self.block * self.block)


FULL = KVScheme()
