"""The demo's 300 problems by `magistral-mlx eval`, killed on the way and gone on with.

    python benchmarks/evaluation.py

The run is killed with SIGKILL after a third of the answers, started again, stopped with Ctrl-C
after two thirds, and started again. Bars: 98 % right of each kind, and no answer is asked for twice
that had come before the run was killed. What came in the moment of that may not be kept yet: as
many answers as are asked for at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

COUNT = 300
BAR = 0.98
PARALLEL = 16  # answers at once, as the command has it


def recorded(file: Path) -> Callable[..., Awaitable[Any]]:
    """Return the provider's `generate` that notes the question of each finished answer."""
    from magistral_mlx.evaluation.provider import MagistralProvider

    generate = MagistralProvider.generate

    async def recording(*arguments: Any, **named: Any) -> Any:
        from inspect_ai.log._samples import sample_active

        output = await generate(*arguments, **named)
        active = sample_active()
        assert active is not None
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"{active.sample.id}\n")
        return output

    return recording


def child(record: str, words: list[str]) -> None:
    """Run the command, and note each answer that the model finished."""
    from magistral_mlx.cli.main import main
    from magistral_mlx.evaluation.provider import MagistralProvider

    MagistralProvider.generate = recorded(Path(record))  # type: ignore[assignment, method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    sys.argv = ["magistral-mlx", *words]
    main()


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the run in `folder`, or go on with it."""
    words = ["eval", "demo", "-m", "demo", "--logs", str(folder / "runs"), "--json"]
    with open(folder / "out.json", "wb") as out:
        return subprocess.Popen(
            [sys.executable, __file__, "--child", str(folder / "asked"), *words], stdout=out
        )


def asked(folder: Path) -> list[str]:
    """Questions whose answers were finished, in order, of all runs."""
    file = folder / "asked"
    return file.read_text().split() if file.exists() else []


def stop_after(run: subprocess.Popen[bytes], folder: Path, count: int, number: int) -> int:
    """Send a signal once `count` answers are there -> the exit status."""
    while run.poll() is None and len(asked(folder)) < count:
        time.sleep(0.05)
    os.kill(run.pid, number)
    return run.wait()


def asked_twice(asked: list[str], stopped: int, parallel: int) -> set[str]:
    """Questions asked again though they were answered well before a run stopped.

    Args:
        asked: questions in the order in which they were answered. stopped: how many of them were
            answered when the run stopped. parallel: answers at once.
    """
    return set(asked[: max(0, stopped - parallel)]) & set(asked[stopped:])


def main() -> int:
    """Run, print what was found -> 0 if the bars are met."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.monotonic()
        statuses: list[int] = []
        stops: list[int] = []
        for share, number in ((1, signal.SIGKILL), (2, signal.SIGINT)):
            statuses.append(stop_after(start(folder), folder, share * COUNT // 3, number))
            stops.append(len(asked(folder)))
        statuses.append(start(folder).wait())
        seconds = time.monotonic() - begun
        facts = json.loads((folder / "out.json").read_text())
        questions = asked(folder)
        rates = rates_by_kind(Path(facts["run"]))
    twice = sum(len(asked_twice(questions, stop, PARALLEL)) for stop in stops)
    print(f"exit statuses: {statuses}; {seconds:.0f} s in all")
    print(f"answers: {len(questions)} to {len(set(questions))} questions, asked for twice: {twice}")
    for kind, rate in rates.items():
        print(f"{kind}: {rate:.1%} right")
    task = facts["tasks"][0]
    print(f"pass@1 {task['pass_at_1']:.1%} ({task['low']:.1%} to {task['high']:.1%})")
    met = min(rates.values()) >= BAR and not twice and len(set(questions)) == COUNT
    print("bars met" if met else "bars missed")
    return 0 if met else 1


def rates_by_kind(run: Path) -> dict[str, float]:
    """Share of right answers of each kind of question."""
    from magistral_mlx.evaluation.answers import read_answers
    from magistral_mlx.evaluation.run import logs_of

    scores: defaultdict[str, list[float]] = defaultdict(list)
    for logs in logs_of(run):
        for answer in read_answers(logs):
            scores[answer.question.rpartition("-")[0]].append(answer.score or 0)
    return {kind: sum(found) / len(found) for kind, found in scores.items()}


if __name__ == "__main__":
    sys.exit(main())
