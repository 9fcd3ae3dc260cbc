"""KV cache schemes: how keys and values are stored, and which tokens stay in full precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from magistral_mlx.errors import InvalidOption

BITS = (8, 6, 5, 4, 3, 2)  # of keys and of values: those that `mx.quantize` has
# The schemes that a plan chooses from, largest first. Mean divergence of next-token distributions,
# in nats on SmolLM2's documents, at memory against 16 bits (`benchmarks/kv_quality_trained.py`):
# 8/8 0.0002 at 53 %; 6/6 0.0027 at 41 %, 8/4 0.0066; 6/4 0.0092 at 34 %, 5/5 0.0163;
# 5/4 0.0196 at 31 %, 6/3 0.0374; 4/4 0.0586 at 28 %.
SCHEMES = ("full", "8/8", "6/6", "6/4", "5/4", "4/4")
_PAIRS = {f"{keys}/{values}": (keys, values) for keys, values in product(BITS, repeat=2)}
NAMES = "full, or bits of keys and values of 2, 3, 4, 5, 6 or 8 each, as in 6/4"
SLACK = 64  # tokens that can be trimmed and written again exactly
PIECE = 64  # new tokens that are written to a window at once, at most; more pass through
RESERVED = 1024  # tokens allocated beyond a prompt, so that a short output never grows the cache
# Tokens that leave the window together. Prefill reads the quantized tokens once per block: larger
# blocks mean fewer reads, and more tokens in full precision.
_BLOCK = 64


@dataclass(frozen=True)
class KVScheme:
    """Bits of keys and values (None: full precision), and the tokens that are not quantized.

    window: number of newest tokens, at least, kept in full precision.
    first: number of first tokens kept in full precision; many heads attend to them throughout
        (attention sinks, arXiv 2309.17453).
    rotate: multiply queries, keys and values by a Hadamard matrix first. It leaves attention
        unchanged and spreads outlier channels, which few bits cannot represent, over all channels
        (QuaRot, arXiv 2404.00456).
    center: subtract from all keys their mean over the first block that is quantized. It changes
        all scores of a query by the same amount, so leaves attention unchanged, and takes away
        what the keys of a head have in common, which few bits need not represent.

    Largest error, held by tests with everything quantized (`without_window`): an attended value
    differs from that of a full-precision cache by 2 % of the largest value with 8/8, 6 % with
    6/6, 17 % with 6/4, 20 % with 5/4, 35 % with 4/4. With 8/8 the demo model's logits differ by
    2 % of the largest one, and no answer changes.
    """

    key_bits: int | None = None
    value_bits: int | None = None
    group_size: int = 64
    window: int = 128
    first: int = 4
    rotate: bool = True
    center: bool = True

    @classmethod
    def parse(cls, name: str) -> KVScheme:
        """Parse "full", or bits of keys / bits of values, as in "6/4".

        Raises:
            InvalidOption: any other name.
        """
        if name == "full":
            return cls()
        if name not in _PAIRS:
            raise InvalidOption(f"the KV cache scheme is {name!r}; it must be {NAMES}.")
        return cls(*_PAIRS[name])

    @property
    def name(self) -> str:
        return f"{self.key_bits}/{self.value_bits}" if self.quantized else "full"

    @property
    def quantized(self) -> bool:
        return self.key_bits is not None

    @property
    def bits(self) -> int:
        """Bits of a key and a value together without scales, to compare sizes; 32 if full."""
        return self.key_bits + self.value_bits if self.key_bits and self.value_bits else 32

    @property
    def block(self) -> int:
        """Number of tokens that are quantized together; 1 without a window."""
        return max(1, min(_BLOCK, self.window))

    @property
    def slack(self) -> int:
        """Number of newest tokens that can always be trimmed exactly."""
        return SLACK if self.window else 0

    @property
    def plain_capacity(self) -> int:
        """Rows that the buffers of plain tokens hold: the center, the first tokens, the window, the
        slack for trims, tokens waiting to be quantized or dropped, and one piece of new ones."""
        waiting = 2 * self.block + max(self.block, self.slack)
        return 1 + self.first + self.window + self.slack + waiting + PIECE

    def without_window(self) -> KVScheme:
        """The same bits with no tokens kept in full precision."""
        return replace(self, window=0, first=0)

    def packed(self, length: int) -> int:
        """Number of quantized tokens, after the first ones, in a cache of `length` tokens.

        It depends on the length alone, so a cache that grew and was trimmed equals one that never
        grew.
        """
        aged = length - self.first - self.window
        return max(0, aged // self.block * self.block)


FULL = KVScheme()


def smaller_schemes(name: str) -> tuple[str, ...]:
    """The schemes of `SCHEMES` that take less memory than the scheme `name`, largest first."""
    bits = KVScheme.parse(name).bits
    return tuple(other for other in SCHEMES if KVScheme.parse(other).bits < bits)


def schemes_with(name: str | None) -> tuple[str, ...]:
    """`SCHEMES`, largest first, with the scheme `name` at its place."""
    if name is None or name in SCHEMES:
        return SCHEMES
    smaller = smaller_schemes(name)
    return (*SCHEMES[: len(SCHEMES) - len(smaller)], name, *smaller)
