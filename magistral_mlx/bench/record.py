"""The record of a measurement: machine, versions, limits, and a one-line summary."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.compare import Comparison, Speed
from magistral_mlx.bench.process import OURS, Program, version
from magistral_mlx.bench.rounds import Figure, ratios
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory import estimate
from magistral_mlx.memory.chips import GIB
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.peak import loaded_weights

FIGURES = {"prefill": "prefill", "decode": "decode", "first": "first token"}


@dataclass(frozen=True)
class Limit:
    """The bandwidth limit of decoding on this machine, in bytes per second.

    published: of the chip, by its maker; None if unknown. reached: measured by a plain read.
    """

    published: float | None
    reached: float

    @property
    def bandwidth(self) -> float:
        """The bandwidth that shares refer to."""
        return self.published or self.reached

    @property
    def origin(self) -> str:
        """The bandwidth and its origin in words."""
        kind = "published for this chip" if self.published else "measured here"
        return f"{self.bandwidth / 1e9:.0f} GB/s, {kind}"

    def share(self, speed: Speed, bytes_per_token: int) -> float:
        """Decoding speed relative to what the bandwidth allows."""
        return speed.decode.median * bytes_per_token / self.bandwidth


def limit_of(machine: Machine) -> Limit:
    """Measure the limit of this machine, which takes a second and half a gigabyte."""
    published = machine.chip.bandwidth * 1e9 if machine.chip else None
    return Limit(published, measure_bandwidth())


def bytes_per_token(
    checkpoint: Checkpoint, context: int, scheme: KVScheme, float_bytes: int
) -> int:
    """Bytes that decoding one token reads: the decoder and the caches.

    Args:
        context: tokens in the caches.
        float_bytes: bytes of a value in the compute dtype, in which scales and norms are stored.
    """
    weights = loaded_weights(checkpoint, float_bytes)
    return estimate.bytes_per_token(weights, checkpoint.config.text, context, scheme, float_bytes)


def bytes_read_by(
    label: str,
    checkpoint: Checkpoint,
    context: int,
    count: int,
    scheme: KVScheme,
    float_bytes: int,
) -> int:
    """Bytes that a runtime reads per token, averaged over `count` tokens after a prompt.

    Args:
        label: the runtime. Peers use a full-precision cache, whatever `scheme` ours has.
    """
    cache = scheme if label == OURS else FULL
    return bytes_per_token(checkpoint, context + count // 2, cache, float_bytes)


def versions(programs: list[Program]) -> dict[str, str | None]:
    """Return the versions of all runtimes and of MLX."""
    mlx = importlib.metadata.version("mlx")
    here = {program.label: version(program) for program in programs if not program.remote}
    return {**here, "mlx": mlx}


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Describe the machine in JSON types."""
    system = f"macOS {platform.mac_ver()[0]}" if machine.is_mac else platform.platform()
    return {
        "name": machine.name,
        "memory": machine.memory,
        "gpu_limit": machine.limit,
        "cores": os.cpu_count(),
        "system": system,
        "python": platform.python_version(),
    }


def describe_speeds(
    result: Comparison, limit: Limit, bytes_per_token: Callable[[str, int], int | None]
) -> list[dict[str, Any]]:
    """Describe all speeds in JSON types, with shares of the limit and ratios to ours.

    Args:
        bytes_per_token: maps a runtime's label and a context to the bytes read per token; None
            for a server, of which that is not known.
    """
    ours = {speed.context: speed for speed in result.speeds if speed.label == OURS}
    described = []
    for speed in result.speeds:
        read = bytes_per_token(speed.label, speed.context)
        facts: dict[str, Any] = {
            "label": speed.label,
            "context": speed.context,
            **{name: _describe_figure(getattr(speed, name)) for name in FIGURES},
            "steady": speed.steady,
            "reported": speed.reported,
            "peak": speed.peak,
            "bytes_per_token": read,
            "share_of_limit": None if read is None else limit.share(speed, read),
        }
        if speed.label != OURS:
            facts["ours_over_theirs"] = _ratio(ours[speed.context], speed, result.took_turns)
        described.append(facts)
    return described


def _describe_figure(figure: Figure) -> dict[str, Any]:
    return {**asdict(figure), "steady": figure.steady}


def _ratio(ours: Speed, theirs: Speed, took_turns: bool) -> dict[str, float | None]:
    """Ratio of decoding speeds, ours over theirs; by round, with a spread, if they took turns."""
    if not took_turns:
        return {"median": ours.decode.median / theirs.decode.median, "spread": None}
    figure = ratios(ours.decode.values, theirs.decode.values)
    return {"median": figure.median, "spread": figure.spread if len(figure.values) > 1 else None}


def unsteady(speeds: list[dict[str, Any]]) -> list[str]:
    """List the runtimes and contexts whose figures did not become steady, with their spread."""
    found = []
    for speed in speeds:
        rounds = len(speed["decode"]["values"])
        names = [
            f"{name} {speed[key]['spread']:.0%}" if rounds > 1 else name
            for key, name in FIGURES.items()
            if not speed[key]["steady"]
        ]
        if names:
            after = f"{rounds} round{'s' if rounds > 1 else ''}"
            found.append(
                f"{speed['label']} at {speed['context']} ({', '.join(names)}, after {after})"
            )
    return found


def line_to_paste(facts: dict[str, Any]) -> str:
    """Format the output of `magistral-mlx bench --json` as one line for an issue."""
    machine, limit = facts["machine"], facts["limit"]
    bandwidth = (limit["published"] or limit["reached"]) / 1e9
    peers = any(speed["label"] != OURS for speed in facts["speeds"])
    theirs = " (of peers: full)" if peers and facts["kv"] != "full" else ""
    parts = [
        ", ".join(_versions(facts)),
        f"{machine['name']} {machine['memory'] / GIB:.0f} GB, {machine['system']}",
        f"{facts['model']} in {facts['dtype']}, KV cache {facts['kv']}{theirs}",
    ]
    for speed in facts["speeds"]:
        share, peak = speed["share_of_limit"], speed["peak"]
        parts.append(
            f"{speed['label']} at {speed['context']}: "
            f"prefill {speed['prefill']['median']:.1f}{_spread(speed['prefill'])}, "
            f"decode {speed['decode']['median']:.2f}{_spread(speed['decode'])} tokens/s"
            + (f" ({share:.0%} of {bandwidth:.0f} GB/s)" if share is not None else "")
            + f", first token {speed['first']['median']:.2f} s{_spread(speed['first'])}"
            + (f", peak {peak / GIB:.2f} GiB" if peak is not None else "")
        )
    parts += [
        f"{speed['label']} with {speed['requests']} at once at {speed['context']}: "
        f"{speed['rate']['median']:.1f} tokens/s in all, "
        f"first token {speed['first']['median']:.2f} s"
        for speed in facts["parallel"]
    ]
    if restless := unsteady(facts["speeds"]):
        parts.append(f"not steady: {'; '.join(restless)}")
    if facts["disturbances"]:
        parts.append(f"disturbed by {', '.join(facts['disturbances'])}")
    return " | ".join(parts)


def _versions(facts: dict[str, Any]) -> list[str]:
    """Versions of all runtimes and MLX, with a runtime's own MLX if it differs."""
    found, here = [], facts["versions"]["mlx"]
    for name, of in facts["versions"].items():
        mlx = facts["mlx_versions"].get(name, here)
        found.append(f"{name} {of}" + (f" with mlx {mlx}" if mlx != here else ""))
    return found


def _spread(figure: dict[str, Any]) -> str:
    """The spread in brackets; empty for a single value."""
    return f" (spread {figure['spread']:.0%})" if len(figure["values"]) > 1 else ""
