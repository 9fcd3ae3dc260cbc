"""What a plan is made of, and the plan for one KV scheme and context on a machine."""

from __future__ import annotations

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
    cache_bytes,
    predict,
    snapshot_bytes,
)

DEFAULT_CONTEXT = 40_960  # the model's answers may get worse beyond it
SMALLEST_CONTEXT = 1_024
_CHUNKS = (2048, 1024, 512, 256, 128)
_LEAST_LIMIT = 64 * 10**6
_BUFFER_CACHE = 256 * MIB  # freed buffers that MLX may keep for reuse
_MOST_SNAPSHOTS, _FEWEST_SNAPSHOTS = 6, 3
_MOST_KEPT = 8 * GIB  # more is not worth what other programs could do with it


@dataclass(frozen=True)
class Draft:
    """A draft model that is loaded beside another one. decoder: bytes of its weights."""

    text: TextConfig
    decoder: int

    def nbytes(self, scheme: KVScheme, context: int, float_bytes: int) -> int:
        """Its weights, and the one set of caches that it has."""
        return self.decoder + cache_bytes(self.text, scheme, context, float_bytes)


@dataclass(frozen=True)
class PlannedModel:
    """What a plan has to know of a model. `source` is how a user named it."""

    source: str
    config: ModelConfig
    weights: Weights
    draft: Draft | None = None

    @property
    def longest_context(self) -> int:
        """Tokens that the model was made for at most."""
        return self.config.text.max_position_embeddings


@dataclass(frozen=True)
class PlanRequest:
    """What a user asks for; None leaves it to the plan.

    images: how many of the largest size to plan for. memory_limit: bytes to stay within
    instead of what the machine recommends.
    """

    context: int | None = None
    kv: str | None = None
    images: int = 1
    memory_limit: int | None = None

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
    """A run that fits. Bytes throughout.

    limit: what the machine lets MLX use. peak: the largest footprint when the context is full.
    shortened: memory allows no longer context; without it, a user or the default chose it.
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

    @property
    def buffer_cache(self) -> int:
        """Freed buffers that MLX may keep beside the peak."""
        return min(_BUFFER_CACHE, max(0, self.limit - self.peak.total))

    @property
    def kept(self) -> int:
        """What may be kept beside the peak for prompts to come: up to half of what is left."""
        return min(_MOST_KEPT, max(0, self.headroom - self.buffer_cache) // 2)

    @property
    def caches(self) -> int:
        """What caches may take together: those in use, and those kept for prompts to come."""
        return self.peak.cache + self.kept

    @property
    def snapshots(self) -> int:
        """Places that a quantized cache can be trimmed back to, as far as there is room for them.

        A full one needs none.
        """
        if not self.scheme.quantized:
            return 0
        fitting = self.kept // 4 // self._snapshot_bytes
        return min(_MOST_SNAPSHOTS, fitting) if fitting >= _FEWEST_SNAPSHOTS else 0

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of one sequence's caches with room for `tokens`, or for the context if that is
        shorter, and with their snapshots."""
        text, float_bytes = self.model.config.text, self.profile.float_bytes
        caches = cache_bytes(text, self.scheme, min(tokens, self.context), float_bytes)
        return caches + self.snapshots * self._snapshot_bytes

    @property
    def _snapshot_bytes(self) -> int:
        return snapshot_bytes(self.model.config.text, self.scheme, self.profile.float_bytes)

    @property
    def total(self) -> int:
        """The largest footprint, with what is kept for prompts to come."""
        return self.peak.total + self.kept

    @property
    def headroom(self) -> int:
        """Bytes of the limit that are left; below 0 where it does not fit."""
        return self.limit - self.peak.total

    @property
    def warning(self) -> str | None:
        """A sentence for a machine that has less memory free than a full context would need."""
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
    """The plan for one scheme and context, in the largest prefill chunk that fits.

    Where none fits, the plan has the smallest chunk and negative headroom.
    """
    scheme = KVScheme.parse(scheme_name)
    limit = request.memory_limit or machine.limit
    images = request.images if model.config.vision else 0
    for chunk in _CHUNKS:
        if chunk > profile.chunk:
            continue
        # A smaller chunk comes with less room for attention.
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
        plan = Plan(machine, model, scheme, context, chunk, images, smaller, peak, limit)
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
    """The longest context, a multiple of 1,024 up to `most`, that fits; 0 if none does."""
    low, high = 0, most // SMALLEST_CONTEXT
    while low < high:
        middle = (low + high + 1) // 2
        plan = fit(model, machine, profile, request, scheme, middle * SMALLEST_CONTEXT)
        low, high = (middle, high) if plan.headroom >= 0 else (low, middle - 1)
    return low * SMALLEST_CONTEXT


def _fullest(config: ModelConfig, context: int, chunk: int, images: int) -> list[Shape]:
    """Runs that fill the context, by their prompt or by their answer: one of them needs most."""
    sizes: tuple[tuple[int, int], ...] = ()
    if config.vision and images:
        token = config.vision.patch_size * config.spatial_merge_size
        side = config.vision.image_size // token * token
        # Images cannot have more tokens than the context has.
        rows = min(side // token, max(1, int((context / images) ** 0.5)))
        sizes = ((rows * token, rows * token),) * images
    prompt = min(context, chunk)
    return [
        Shape(prompt=context, answer=0, chunk=chunk, images=sizes),
        Shape(prompt=prompt, answer=context - prompt, chunk=chunk, images=sizes),
    ]


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB" if abs(size) >= GIB / 10 else f"{size / MIB:.0f} MiB"
