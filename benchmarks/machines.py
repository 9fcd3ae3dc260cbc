"""One model over two processes of this machine, and computed for two Macs.

    python -m benchmarks.machines [--full]

Measured: the mid-size model at 4 bits in float32 over two ranks of MLX's ring, tensor and pipeline
parallel, beside one process: the same greedy tokens, bytes that rank 0 sends and receives and
collective operations for a token and a prompt, and each rank's peak against its plan.

Computed, not measured: what decoding and prefill of Magistral Small at 4 bits can reach on two Macs
over four kinds of links. Times are the bytes that a token reads over the chip's published memory
bandwidth, arithmetic over its published compute, and for the link what LINKS says.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Record, arguments, console, show
from benchmarks.midsize import midsize

PROMPT, SHORT, LONG = 480, 4, 28  # tokens
CONTEXT = 512
_ACKED = struct.Struct("<QQ")  # bytes acknowledged and received, in Linux's tcp_info
_ACKED_AT = 120


@dataclass(frozen=True)
class LinkKind:
    """A link as others measured it. latency: seconds there and back. bandwidth: bytes a second."""

    name: str
    latency: float
    bandwidth: float
    source: str

    def fits(self, chip: str) -> bool:
        """Whether Macs with the chip have it: Thunderbolt 5 came with the M4 Pro."""
        return "RDMA" not in self.name or "Pro" in chip or "Max" in chip


LINKS = (
    LinkKind(
        "Thunderbolt 4, TCP",
        0.4e-3,
        2.5e9,
        "0.38 to 0.95 ms over the bridge (exo issue 2295); half of 40 Gbit/s reaches TCP "
        "(targetBridge pull request 17)",
    ),
    LinkKind(
        "Thunderbolt 5, RDMA",
        10e-6,
        4.7e9,
        "4.15 us one way and 4.7 GB/s between two Macs (thunderbolt-ibverbs pull request 28)",
    ),
    LinkKind("10 GbE", 0.2e-3, 1.1e9, "assumed: 0.2 ms, nine tenths of the wire's rate"),
    LinkKind(
        "Wi-Fi",
        7.5e-3,
        0.1e9,
        "7.5 ms, the lower average under load (exo issue 2295); 0.8 Gbit/s assumed",
    ),
)
CHIPS = ("M4 16GB", "M4 32GB", "M4 Pro 48GB", "M4 Max 64GB")


# Measured


def measure(split: str | None, folder: Path) -> list[dict[str, Any]]:
    """Run the model in one process, or in two by a split -> what each rank told, rank 0 first."""
    if split is None:
        return [_finished(_start(folder, None))]
    hosts = folder.parent / f"hosts-{os.getpid()}.json"
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ring = [[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]
    hosts.write_text(json.dumps(ring))
    try:
        ranks = [
            _start(folder, split, {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)})
            for rank in range(2)
        ]
        return [_finished(rank) for rank in ranks]
    finally:
        hosts.unlink()


def _start(
    folder: Path, split: str | None, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.machines", "--rank", str(folder), split or "auto"]
    return subprocess.Popen(
        words, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True
    )


def _finished(rank: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = rank.communicate()
    if rank.returncode:
        raise SystemExit(f"a rank ended with status {rank.returncode}")
    told: dict[str, Any] = json.loads(printed)
    return told


def run_rank(folder: str, split: str) -> None:
    """What one process does: answer, or follow; it prints what it has measured."""
    from magistral_mlx.backend import mx
    from magistral_mlx.distributed.place import place

    here = place()
    if here is not None and not here.leads:
        told = _follow(here)
    else:
        told = _lead(folder, split, counted=here is not None)
    print(json.dumps(told | {"peak": mx.get_peak_memory()}))


def _follow(here: Any) -> dict[str, Any]:
    from magistral_mlx.distributed.follower import Follower

    follower = Follower(here)
    plans = []
    close = follower._work["close"]

    def keep(model: int) -> None:
        plans.append(follower._opened[model][-1].peak.total)
        close(model)

    follower._work["close"] = keep
    follower.run()
    return {"planned": plans[0]}


def _lead(folder: str, split: Any, *, counted: bool) -> dict[str, Any]:
    from magistral_mlx import Magistral, RawPrompt
    from magistral_mlx.distributed.ranks import join_ranks

    group = leader.group if counted and (leader := join_ranks()) else None
    with Magistral.load(folder, split=split, context=CONTEXT, images=0, kv="full") as model:
        tokens, runs = [], []
        for n, count in enumerate((SHORT, LONG)):
            # Two prompts that share no beginning, so that both are read whole.
            prompt = tuple(1000 + (7 * i + 101 * n) % 30_000 for i in range(PROMPT))
            before = _counts(group)
            result = model.generate(
                RawPrompt((1, *prompt)), temperature=0, max_tokens=count, min_tokens=count
            )
            runs.append({key: value - before[key] for key, value in _counts(group).items()})
            tokens.append([result.thinking, result.text])
        planned = model.plan.peak.total
    return {"planned": planned, "tokens": tokens, "runs": runs}


def _counts(group: Any) -> dict[str, int]:
    """Operations and bytes so far: of arrays, and of this process's connections."""
    if group is None:
        return {}
    sent, received = _traffic()
    return {"calls": group.calls, "arrays": group.nbytes, "sent": sent, "received": received}


def _traffic() -> tuple[int, int]:
    """Bytes that this process's TCP connections have sent and received, by Linux's counters."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError, struct.error):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acked, got = _ACKED.unpack_from(info, _ACKED_AT)
            sent, received = sent + acked, received + got
    return sent, received


def per_token(told: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a decoded token and the prompt took, of the two runs of rank 0.

    The prompt's pass gives the first token.
    """
    short, long = told["runs"]
    token = {key: (long[key] - short[key]) / (LONG - SHORT) for key in short}
    return {"token": token, "prompt": {key: short[key] - (SHORT - 1) * token[key] for key in short}}


# Computed


def compute(name: str, link: LinkKind) -> dict[str, float | None]:
    """Tokens a second that two Macs can reach: decoding with an empty cache, and prefill."""
    from magistral_mlx.memory.estimate import bandwidth_of, chunk_flops, flops_of, layer_weights
    from magistral_mlx.memory.known import MAGISTRAL_SMALL, magistral_small
    from magistral_mlx.memory.machine import named_machine

    machine, model = named_machine(name), magistral_small()
    text, chunk = MAGISTRAL_SMALL.text, 2048
    bandwidth, flops = bandwidth_of(machine), flops_of(machine)
    assert bandwidth and flops
    head = model.weights.embedding  # as large as the head, which rank 0 reads alone
    layers = model.weights.read - head
    alone = (layers + head) / bandwidth
    row = text.hidden_size * 2  # bytes of a token between layers, in bfloat16
    sums = 2 * text.num_hidden_layers + 1  # the first one gives out the embeddings

    def crossing(tokens: int) -> float:
        return link.latency / 2 + tokens * row / link.bandwidth

    def summing(tokens: int) -> float:
        """A sum over two ranks: half of it there and back, then the other half."""
        return link.latency + tokens * row / link.bandwidth

    work = chunk_flops(layer_weights(MAGISTRAL_SMALL), text, 0, chunk) / flops
    return {
        "alone": 1 / alone if machine.limit > model.weights.decoder else None,
        "tensor": 1 / ((layers / 2 + head) / bandwidth + sums * summing(1)),
        "pipeline": 1 / (alone + 2 * crossing(1)),
        "alone_prefill": chunk / work if machine.limit > model.weights.decoder else None,
        "tensor_prefill": chunk / (work / 2 + sums * summing(chunk)),
        # Of a long prompt the ranks read one chunk each at a time.
        "pipeline_prefill": chunk / max(work / 2, crossing(chunk)),
    }


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        run_rank(*sys.argv[2:4])
        return
    given = arguments(__doc__ or "")
    record = Record("machines")
    folder = midsize()
    console.print("one process", style="dim")
    alone = measure(None, folder)[0]
    measured: dict[str, Any] = {"alone": alone}
    rows, peaks = [], [["one process", "", *_peak(alone)]]
    for split in ("tensor", "pipeline"):
        console.print(f"two processes, {split} parallel", style="dim")
        ranks = measure(split, folder)
        traffic = per_token(ranks[0])
        measured[split] = {
            "ranks": ranks,
            "traffic": traffic,
            "equal_tokens": ranks[0]["tokens"] == alone["tokens"],
        }
        for what, figures in traffic.items():
            rows.append(
                [
                    split,
                    what if what == "token" else f"prompt of {PROMPT + 1}",
                    f"{figures['arrays']:,.0f}",
                    f"{figures['sent']:,.0f}",
                    f"{figures['received']:,.0f}",
                    f"{figures['calls']:.1f}",
                    "yes" if measured[split]["equal_tokens"] else "NO",
                ]
            )
        peaks += [[split, str(rank), *_peak(told)] for rank, told in enumerate(ranks)]
    show(
        "Measured: rank 0",
        ["split", "of", "bytes of arrays", "bytes sent", "received", "operations", "equal tokens"],
        rows,
    )
    show("Peaks", ["split", "rank", "planned", "measured", "over"], peaks)
    computed = {
        chip: {link.name: compute(chip, link) for link in LINKS if link.fits(chip)}
        for chip in CHIPS
    }
    show(
        "Computed, not measured",
        [
            "Macs",
            "link",
            "decode alone",
            "tensor",
            "pipeline",
            "prefill alone",
            "tensor",
            "pipeline",
        ],
        [
            [f"2 x {chip}", link, *(_speed(value) for value in figures.values())]
            for chip, by_link in computed.items()
            for link, figures in by_link.items()
        ],
    )
    links = {link.name: replace(link).__dict__ for link in LINKS}
    record.save(given.out, measured=measured, computed=computed, links=links)


def _peak(told: dict[str, Any]) -> list[str]:
    planned, peak = told["planned"], told["peak"]
    return [f"{planned / 1e6:.1f} MB", f"{peak / 1e6:.1f} MB", f"{planned / peak - 1:+.1%}"]


def _speed(value: float | None) -> str:
    return "does not fit" if value is None else f"{value:.1f}/s"


if __name__ == "__main__":
    main()
