"""Memory plans: their parts, and the plan for one KV cache scheme and context on a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.chips import GIB
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.peak import (
    MIB,
    BackendProfile,
    Peak,
    Shape,
    Weights,
    adapter_bytes,
    cache_bytes,
    predict,
    snapshot_bytes,
)

DEFAULT_CONTEXT = 40_960  # tokens; the model card warns of worse answers beyond it
SMALLEST_CONTEXT = 1_024
_CHUNKS = (2048, 1024, 512, 256, 128)
_LEAST_LIMIT = 64 * 10**6
_BUFFER_CACHE = 256 * MIB  # freed buffers that MLX may keep for reuse
_MOST_SNAPSHOTS, _FEWEST_SNAPSHOTS = 6, 3
_MOST_KEPT = 8 * GIB  # of the prefix cache; more is better left to other programs


@dataclass(frozen=True)
class Draft:
    """A draft model loaded beside the main model. decoder: bytes of its weights."""

    text: TextConfig
    decoder: int

    def nbytes(self, scheme: KVScheme, context: int, float_bytes: int) -> int:
        """Bytes of its weights and its one set of caches."""
        return self.decoder + cache_bytes(self.text, scheme, context, float_bytes)


@dataclass(frozen=True)
class PlannedModel:
    """A model to be planned for.

    source: the user's name of the model. adapters: bytes of the adapters loaded with it.
    """

    source: str
    config: ModelConfig
    weights: Weights
    draft: Draft | None = None
    adapters: int = 0

    @property
    def longest_context(self) -> int:
        """Largest context of the model, in tokens."""
        return self.config.text.max_position_embeddings


@dataclass(frozen=True)
class PlanRequest:
    """A user's wishes for a plan; None leaves the choice to the planner.

    images: number of images of the largest size to plan for. memory_limit: bytes to stay within
    instead of the machine's limit. wire: keep the planned bytes in physical memory.
    """

    context: int | None = None
    kv: str | None = None
    images: int = 1
    memory_limit: int | None = None
    wire: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        if self.context is not None and self.context < 1:
            raise InvalidOption(f"context is {self.context}; it must be 1 or more.")
        if self.images < 0:
            raise InvalidOption(f"images is {self.images}; it must be 0 or more.")
        if self.memory_limit is not None and self.memory_limit < _LEAST_LIMIT:
            raise InvalidOption(
                f"the memory limit is {self.memory_limit / 10**6:.0f} MB; it must be "
                f"{_LEAST_LIMIT // 10**6} MB or more."
            )
        if self.kv is not None:
            KVScheme.parse(self.kv)


@dataclass(frozen=True)
class Plan:
    """A memory plan, in bytes.

    limit: bytes that MLX may use. peak: peak memory with a full context. shortened: the context
    was limited by memory, rather than by the user or the default. wire: whether its bytes are wired
    where that is possible.
    """

    machine: Machine
    model: PlannedModel
    scheme: KVScheme
    context: int
    chunk: int
    images: int
    profile: BackendProfile
    peak: Peak
    limit: int
    shortened: bool = False
    wire: bool = True

    @property
    def buffer_cache(self) -> int:
        """Bytes of freed buffers that MLX may keep beside the peak."""
        return min(_BUFFER_CACHE, max(0, self.limit - self.peak.total))

    @property
    def kept(self) -> int:
        """Bytes of the prefix cache beside the peak: up to half of what is left."""
        return min(_MOST_KEPT, max(0, self.headroom - self.buffer_cache) // 2)

    @property
    def caches(self) -> int:
        """Bytes of all KV caches: those in use, and those in the prefix cache."""
        return self.peak.cache + self.kept

    @property
    def snapshots(self) -> int:
        """Number of snapshots of a quantized cache, as far as memory allows.

        A full-precision cache needs none.
        """
        if not self.scheme.quantized:
            return 0
        fitting = self.kept // 4 // self._snapshot_bytes
        return min(_MOST_SNAPSHOTS, fitting) if fitting >= _FEWEST_SNAPSHOTS else 0

    @property
    def trims_to_prompt(self) -> bool:
        """Whether caches can be trimmed back to the end of a prompt, however long the answer."""
        return not self.scheme.quantized or self.snapshots > 0

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of one sequence's caches with capacity for `tokens`, at most the context, and with
        their snapshots."""
        text, float_bytes = self.model.config.text, self.profile.float_bytes
        caches = cache_bytes(text, self.scheme, min(tokens, self.context), float_bytes)
        return caches + self.snapshots * self._snapshot_bytes

    @property
    def _snapshot_bytes(self) -> int:
        return snapshot_bytes(self.model.config.text, self.scheme, self.profile.float_bytes)

    @property
    def total(self) -> int:
        """Peak memory including the prefix cache."""
        return self.peak.total + self.kept

    @property
    def headroom(self) -> int:
        """Bytes of the limit that remain; negative if the plan does not fit."""
        return self.limit - self.peak.total

    @property
    def warning(self) -> str | None:
        """A warning if less memory is free now than a full context needs; else None."""
        free = self.machine.available
        if free is None or free >= self.peak.total:
            return None
        return (
            f"{gib(free)} of memory are free now, and a full context needs {gib(self.peak.total)}: "
            "close other programs, or the system will swap."
        )


def fit(
    model: PlannedModel,
    machine: Machine,
    profile: BackendProfile,
    request: PlanRequest,
    scheme_name: str,
    context: int,
) -> Plan:
    """Plan one scheme and context with the largest prefill chunk that fits.

    If none fits, the plan has the smallest chunk and negative headroom.
    """
    scheme = KVScheme.parse(scheme_name)
    limit = request.memory_limit or machine.limit
    images = request.images if model.config.vision else 0
    for chunk in _CHUNKS:
        if chunk > profile.chunk:
            continue
        # A smaller chunk comes with a smaller workspace for attention.
        share = min(1.0, chunk / 512)
        smaller = replace(profile, workspace=int(profile.workspace * share))
        peak = max(
            (
                predict(model.config, model.weights, scheme, shape, smaller)
                for shape in _fullest(model.config, context, chunk, images)
            ),
            key=lambda peak: peak.total,
        )
        if model.draft:
            beside = model.draft.nbytes(scheme, context, profile.float_bytes)
            peak = replace(peak, weights=peak.weights + beside)
        if model.adapters:
            changes = adapter_bytes(model.config.text, min(chunk, context), profile)
            peak = replace(
                peak,
                weights=peak.weights + model.adapters,
                workspace=peak.workspace + changes,
            )
        plan = Plan(
            machine,
            model,
            scheme,
            context,
            chunk,
            images,
            smaller,
            peak,
            limit,
            wire=request.wire,
        )
        if plan.headroom >= 0:
            break
    return plan


def longest_context(
    model: PlannedModel,
    machine: Machine,
    profile: BackendProfile,
    request: PlanRequest,
    scheme: str,
    most: int,
) -> int:
    """Return the longest context that fits, a multiple of 1,024 up to `most`; 0 if none does."""
    return longest_that(
        lambda context: fit(model, machine, profile, request, scheme, context).headroom >= 0, most
    )


def longest_that(fits: Callable[[int], bool], most: int) -> int:
    """Return the longest context that `fits`, a multiple of 1,024 up to `most`; 0 if none does."""
    low, high = 0, most // SMALLEST_CONTEXT
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * SMALLEST_CONTEXT) else (low, middle - 1)
    return low * SMALLEST_CONTEXT


def _fullest(config: ModelConfig, context: int, chunk: int, images: int) -> list[Shape]:
    """Shapes of runs that fill the context, by prompt or by answer; one of them has the peak."""
    sizes: tuple[tuple[int, int], ...] = ()
    if config.vision and images:
        token = config.vision.patch_size * config.spatial_merge_size
        side = config.vision.image_size // token * token
        # Images cannot have more tokens than the context; of many, as many as fill it are large.
        rows = min(side // token, max(1, int(context**0.5)))
        sizes = ((rows * token, rows * token),) * min(images, -(-context // rows**2))
    prompt = min(context, chunk)
    return [
        Shape(prompt=context, answer=0, chunk=chunk, images=sizes),
        Shape(prompt=prompt, answer=context - prompt, chunk=chunk, images=sizes),
    ]


def gib(size: float) -> str:
    """Format bytes for a person."""
    return f"{size / GIB:.1f} GiB" if abs(size) >= GIB / 10 else f"{size / MIB:.0f} MiB"
