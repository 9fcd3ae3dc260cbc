"""Ranks of one model as processes of this machine, and what they are asked.

python -m tests.ranks FOLDER '{"split": "tensor"}'      answers, as JSON, on rank 0's stdout
python -m tests.ranks FOLDER '{…}' PID                  kills that process in the midst of them
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from magistral_mlx import LoadOptions, Magistral
from magistral_mlx.server.settings import Settings
from tests.serving import live_server

_TEXT = "Copy this. " + "one two three four five six " * 24
_SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


def answers(model: Magistral) -> dict[str, Any]:
    """Everything that one machine does, a few tokens of each."""

    def ask(prompt: str, **options: Any) -> list[str | None]:
        result = model.generate(prompt, **{"max_tokens": 12, "temperature": 0, **options})
        return [result.thinking, result.text, result.finish_reason]

    def ask_at_once(count: int) -> list[Any]:
        found: list[Any] = [None] * count

        def work(n: int) -> None:
            found[n] = ask(f"What is {n} + 4?", temperature=0.9, seed=n, max_tokens=16 + n)

        _together(count, work)
        return found

    def cancelled() -> None:
        with contextlib.closing(model.stream("Count.", min_tokens=200, max_tokens=300)) as stream:
            steps = iter(stream)
            for _ in range(6):
                next(steps)

    image = PILImage.new("RGB", (84, 56), (200, 30, 30))
    found = {
        "greedy": ask("What is 2 + 3?"),
        "seeded": ask("What is 2 + 3?", temperature=1.2, seed=5),
        "samples": [r.text for r in model.generate("Hello", n=2, seed=3, max_tokens=8).samples],
        "long": ask(_TEXT),
        "shared prefix": ask(_TEXT + "seven"),
        "speculation": ask(_TEXT, speculation="ngram", min_tokens=12),
        "structured": ask("2 + 3", json_schema=_SCHEMA, thinking=False, max_tokens=24),
        "image": ask("Which colour?", images=[image]),
        "the image again": ask("Which colour is it?", images=[image]),
        "at once": ask_at_once(3),
    }
    cancelled()
    found["after a cancelled one"] = ask("What is 2 + 3?")
    found["reused"] = model.activity.hits > 0 and model.activity.reused_images > 0
    return found


def all_answers(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The answers, and one of the model when it is loaded again and finds the prompt on disk."""
    with Magistral.load(name, dtype="float32", **options) as model:
        found = answers(model)
    with Magistral.load(name, dtype="float32", **options) as model:
        found["again"] = model.generate(_TEXT + "eight", max_tokens=12, temperature=0).text
        found["from disk"] = model.activity.reused_tokens
    return found


def _together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def started(
    folder: Path,
    command: Sequence[str],
    size: int = 2,
    others: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks of a command, rank 0 first; what still runs at the end is killed.

    Args:
        others: the command of the other ranks, if it is not the same. environment: more of theirs.
    """
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in reversed(range(size)):
            variables = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            if rank and environment:
                variables |= environment
            args = command if rank == 0 or others is None else others
            # The process that rank 0 is to kill is known when rank 0 is started.
            args = [
                str(ranks[0].pid) if arg == "PID" else arg
                for arg in args
                if rank == 0 or arg != "PID"
            ]
            pipe = subprocess.PIPE
            ranks.append(subprocess.Popen(args, env=variables, stdout=pipe, stderr=pipe, text=True))
        yield ranks[::-1]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def run(model: str | Path, options: Mapping[str, Any], *more: str) -> list[str]:
    """The command of a rank."""
    return [sys.executable, "-m", "tests.ranks", str(model), json.dumps(options), *more]


def _kill_while_serving(name: str, options: Mapping[str, Any], pid: int) -> dict[str, Any]:
    """What clients of a server are told when a rank is killed, two of them in mid-answer."""
    settings = Settings(models=(name,), load=LoadOptions(dtype="float32", **options))
    ended: list[Any] = [None, None]

    def work(n: int) -> None:
        with server.streaming("Count.", min_tokens=2000, max_tokens=2500) as chunks:
            for step, ended[n] in enumerate(chunks):
                if step == 8 and n == 0:
                    os.kill(pid, signal.SIGKILL)

    with live_server(settings) as server:
        before = server.get("/health")
        _together(2, work)
        return {
            "before": before,
            "ended": ended,
            "next": server.ask("Hello"),
            "health": server.get("/health"),
            "ready": server.get("/ready"),
        }


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    if killed := sys.argv[3:]:
        found = _kill_while_serving(name, options, int(killed[0]))
    else:
        found = all_answers(name, options)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
