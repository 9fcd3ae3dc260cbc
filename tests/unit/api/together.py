"""Several answers at once, with every event of all of them in the order in which they came."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magistral_mlx import Event, Finished, Magistral, Prefill, Result, TokenLogprob
from magistral_mlx.api.composer import Composer
from magistral_mlx.backend import mx
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory.here import hold_plan
from magistral_mlx.memory.plan import PlanRequest
from magistral_mlx.runtime.model_runner import ModelRunner
from magistral_mlx.runtime.request import Request, RequestEnd
from magistral_mlx.runtime.session import Session

PATIENCE = 300.0  # seconds after which something that should happen has not
Seen = Callable[[str, Event], None]


@dataclass
class Together:
    """Asks under names, and what comes of it.

    log: (name, event) of all answers. seen: called in the worker's thread with each of them.
    tokens: of each that reports logprobs.
    """

    magistral: Magistral
    seen: Seen | None = None
    log: list[tuple[str, Event]] = field(default_factory=list)
    answers: dict[str, Request] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, name: str, prompt: Any, images: Any = (), **options: Any) -> None:
        def observe(item: Event | RequestEnd) -> None:
            if isinstance(item, RequestEnd):
                return
            with self._news:
                self.log.append((name, item))
                self.tokens[name] += isinstance(item, TokenLogprob)
                self._news.notify_all()
            if self.seen:
                self.seen(name, item)

        self.answers[name] = self.magistral.submit(prompt, images, observer=observe, **options)

    def wait_for(self, kind: type[Event], answers: int, each: int = 1) -> None:
        """Until so many answers have had so many events of a kind each."""

        def there() -> bool:
            names = self.names(kind)
            return sum(names.count(name) >= each for name in set(names)) >= answers

        with self._news:
            assert self._news.wait_for(there, PATIENCE)

    def results(self) -> dict[str, Result]:
        """Wait for all. Raises what the first one that failed raises."""
        return {name: self.result(name) for name in list(self.answers)}

    def result(self, name: str) -> Result:
        return self.answers[name].wait(PATIENCE)

    def names(self, kind: type[Event] | tuple[type[Event], ...]) -> list[str]:
        """Whose events of a kind came, in order."""
        return [name for name, event in self.log if isinstance(event, kind)]

    def begun(self) -> list[str]:
        """Whose turn came, in order: those that were cancelled before it are left out."""
        begun = [name for name, event in self.log if not isinstance(event, Finished)]
        return list(dict.fromkeys(begun))

    def most_at_once(self) -> int:
        """Answers that were between their first event and their last at the same moment."""
        running: set[str] = set()
        most = 0
        for name, event in self.log:
            if isinstance(event, Prefill):
                running.add(name)
            most = max(most, len(running))
            if isinstance(event, Finished):
                running.discard(name)
        return most


class TimedRunner(ModelRunner):
    """A model runner for which time goes on in its steps alone: so much in each of them."""

    now = a_part = a_pass = 0.0  # seconds

    def clock(self) -> float:
        return self.now

    def prefill(self, generation: Any, most: int) -> Prefill:
        self.now += self.a_part
        return super().prefill(generation, most)

    def decode(self, generations: Any) -> Any:
        self.now += self.a_pass
        return super().decode(generations)


@contextmanager
def loaded(folder: Path, runner_class: type[TimedRunner], parallel: int = 16):
    """A model whose passes and whose clock are those of a runner of this class -> both."""
    checkpoint = Checkpoint.open(folder)
    plan = hold_plan(checkpoint, str(folder), PlanRequest(None, None, 1, None), None, None)
    runner = runner_class(checkpoint, plan, None)
    session = Session(runner, parallel, runner.clock)
    session.load()(None)
    composer = Composer(
        checkpoint.folder,
        Tokenizer.load(folder),
        plan.context,
        has_vision=checkpoint.config.vision is not None,
    )
    with Magistral(checkpoint, plan, composer, session) as magistral:
        yield magistral, runner


@contextmanager
def held(magistral: Magistral):
    """Let what is asked inside come at once: the worker waits for the end of the block."""
    gate = threading.Event()
    magistral.session.call(lambda: gate.wait(PATIENCE))
    try:
        yield
    finally:
        gate.set()


def settled(magistral: Magistral) -> int:
    """Bytes in use when all that comes back by itself has been freed."""
    magistral.release_memory()
    magistral.session.call(lambda: None).result(PATIENCE)
    return int(mx.get_active_memory())


def told(result: Result) -> Any:
    """What an answer says, without its times."""
    samples = [
        (
            one.thinking,
            one.text,
            one.finish_reason,
            one.tool_calls,
            [entry.id for entry in one.logprobs],
            one.usage,
        )
        for one in result.samples or (result,)
    ]
    return samples, result.seed
