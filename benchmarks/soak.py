"""Soak test: many clients at once against `magistral-mlx serve`; nothing may be lost or leak.

    python -m benchmarks.soak [--requests 500] [--clients 64] [--serve "--images 0 …"]

Sums of the demo model, greedy and sampled, streamed and not, one in ten after a document, three in
ten of whose clients hang up in the midst. The queue takes half of the clients, so that some are
told to come again. Each answer is held against the one that the same request got alone before. A
first round warms the caches; memory is read before and after the second.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import Record, arguments, console, show
from tests.soaking import Outcome, alone, questions, soak

MIB = 1 << 20


def main() -> None:
    given = arguments(
        __doc__ or "",
        requests={"type": int, "default": 500},
        clients={"type": int, "default": 64},
        distinct={"type": int, "default": 60},
        seed={"type": int, "default": 1},
        serve={"default": "", "help": "more words for serve, as in '--memory-limit 100MB'"},
    )
    record = Record("soak")
    words = ["--max-queue", str(max(1, given.clients // 2)), *shlex.split(given.serve)]
    with server(*words) as (process, port):
        asks = questions(given.requests, given.distinct, given.seed, long=0.1)
        expected = alone(port, asks)
        soak(port, asks, given.clients, expected)
        settle(port)
        before = memory(process, port)
        outcome = soak(port, asks, given.clients, expected)
        settle(port)
        after = memory(process, port)
        process.terminate()
        status = process.wait(60)
    report(outcome, before, after)
    record.save(
        given.out,
        requests=given.requests,
        clients=given.clients,
        serve=given.serve,
        counts=outcome.counts,
        mistakes=outcome.mistakes,
        answered_seconds=outcome.seconds,
        waits=waits(outcome),
        memory_before=before,
        memory_after=after,
        exit_status=status,
    )
    grown = after["process"] - before["process"]
    if outcome.mistakes or status or after["kv_cache"] or grown > 64 * MIB:
        sys.exit(f"{len(outcome.mistakes)} mistakes, status {status}, grown by {grown} bytes")


@contextmanager
def server(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on a free port, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "magistral_mlx.cli.main", "serve", "demo"]
    with subprocess.Popen(
        [*command, "--port", str(port), *words], stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not is_ready(port):
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            yield process, port
        finally:
            process.kill()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as response:
            return json.load(response)["status"] == "ok"
    except OSError:
        return False


def settle(port: int) -> None:
    """Wait until nothing runs or waits."""
    while any(gauges(port)[name] for name in ("magistral_running", "magistral_queue_length")):
        time.sleep(0.05)


def memory(process: subprocess.Popen[bytes], port: int) -> dict[str, int]:
    """Bytes: of the process, and by what the server tells of it."""
    figures = gauges(port)
    kinds = ("weights", "kv_cache", "kept_cache", "buffers")
    return {"process": psutil.Process(process.pid).memory_info().rss} | {
        kind: int(figures[f"magistral_memory_bytes {kind}"]) for kind in kinds
    }


def gauges(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def waits(outcome: Outcome) -> dict[str, float]:
    """Seconds from the question to the end of the answer, of those who stayed."""
    seconds = [got.seconds for got in outcome.got if got.whole]
    return {f"p{p}": float(np.percentile(seconds, p)) for p in (50, 90, 99)}


def report(outcome: Outcome, before: dict[str, int], after: dict[str, int]) -> None:
    counts = outcome.counts
    console.print(
        f"{len(outcome.asked)} requests in {outcome.seconds:.1f} s: {counts['whole']} answered "
        f"whole, {counts['left']} left by their clients, {counts['refused']} times told to come "
        f"again; {len(outcome.mistakes)} mistakes."
    )
    for mistake in outcome.mistakes[:5]:
        console.print(mistake, markup=False)
    console.print("waited " + ", ".join(f"{k} {v:.2f} s" for k, v in waits(outcome).items()))
    rows = [
        (kind, f"{before[kind] / MIB:.1f} MiB", f"{after[kind] / MIB:.1f} MiB") for kind in before
    ]
    show("Memory", ("", "before", "after"), rows)


if __name__ == "__main__":
    main()
