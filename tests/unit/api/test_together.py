"""Several answers at once: each gets what it would get alone, whatever happens to the others."""

import asyncio
import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import (
    CheckpointError,
    DeviceError,
    Event,
    Finished,
    InvalidOption,
    Magistral,
    ModelClosed,
    Notice,
    Prefill,
    Sample,
    Text,
    Thinking,
)
from magistral_mlx.backend import mx
from magistral_mlx.runtime import request, scheduler
from tests.serving import wait_until
from tests.unit.api.conftest import ANSWER
from tests.unit.api.together import PATIENCE, TimedRunner, Together, held, loaded, settled, told

pytestmark = pytest.mark.slow

GREEDY: dict[str, Any] = {"temperature": 0, "seed": 0}
WORDS = (Text, Thinking)


def places(together: Together, name: str, kind: type[Event]) -> list[int]:
    """Where in the log the events of a kind of an answer stand."""
    return [
        n
        for n, (whose, event) in enumerate(together.log)
        if whose == name and isinstance(event, kind)
    ]


@pytest.fixture
def timed(endless_folder: Path) -> Iterator[tuple[Magistral, TimedRunner]]:
    with loaded(endless_folder, TimedRunner) as both:
        yield both


@pytest.fixture(scope="module")
def demo() -> Iterator[Magistral]:
    with Magistral.load("demo", images=1) as magistral:
        yield magistral


def mixed() -> dict[str, dict[str, Any]]:
    """Requests that have little in common."""
    red = PIL.Image.new("RGB", (56, 56), "red")
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    return {
        "greedy": {"prompt": "What is 12 + 30?", **GREEDY},
        "seeded": {"prompt": "What is 7 + 8?", "seed": 3, "temperature": 1.0},
        "three": {"prompt": "What is 41 + 5?", "seed": 9, "n": 3, "max_tokens": 40},
        "stopped": {"prompt": "What is 20 + 22?", "stop": ["2"], **GREEDY},
        "budget": {"prompt": "What is 25 + 38?", "thinking": 4, **GREEDY},
        "schema": {"prompt": "What is 3 + 4?", "json_schema": schema, "seed": 1},
        "logprobs": {"prompt": "What is 9 + 9?", "top_logprobs": 2, "seed": 2},
        "penalties": {"prompt": "Hello", "presence_penalty": 1.0, "dry": True, "seed": 4},
        "one": {"prompt": "What is 1 + 1?", "max_tokens": 1, "seed": 5},
        "silent": {"prompt": "What is 60 + 7?", "thinking": "off", **GREEDY},
        "image": {"prompt": "What is in the picture?", "images": red, **GREEDY},
    }


def ask(together: Together, name: str, options: dict[str, Any]) -> None:
    together.ask(name, **{"max_tokens": 60, **options})


@pytest.fixture(scope="module")
def alone(demo: Magistral) -> dict[str, Any]:
    """What each of the mixed requests gets alone."""
    results = {}
    for name, options in mixed().items():
        results[name] = told(demo.generate(**{"max_tokens": 60, **options}))
        settled(demo)
    return results


# What each gets


def test_requests_that_come_together_get_what_they_get_alone(
    demo: Magistral, alone: dict[str, Any]
):
    together, before = Together(demo), settled(demo)
    with held(demo):
        for name, options in mixed().items():
            ask(together, name, options)
    results = together.results()
    assert {name: told(result) for name, result in results.items()} == alone
    assert together.most_at_once() > 5
    assert settled(demo) <= before


@pytest.mark.parametrize("seed", range(3))
def test_requests_may_join_at_any_token(demo: Magistral, alone: dict[str, Any], seed: int):
    rng = random.Random(seed)
    waiting = list(mixed().items())
    rng.shuffle(waiting)

    def join(name: str, event: Event) -> None:
        if (waiting and rng.random() < 0.3) or (isinstance(event, Finished) and waiting):
            ask(together, *waiting.pop())

    together = Together(demo, join)
    ask(together, *waiting.pop())
    while waiting:
        together.results()
    assert {name: told(result) for name, result in together.results().items()} == alone


@pytest.mark.parametrize("seed", range(3))
def test_requests_may_leave_at_any_token(demo: Magistral, alone: dict[str, Any], seed: int):
    rng = random.Random(seed)
    names = list(mixed())
    leaving = set(rng.sample(names, 5))
    before = settled(demo)

    def leave(name: str, event: Event) -> None:
        if name in leaving and rng.random() < 0.2:
            together.answers[name].cancel()

    together = Together(demo)
    with held(demo):
        for name, options in mixed().items():
            ask(together, name, options)
        together.seen = leave
    for name, result in together.results().items():
        if result.finish_reason != "cancelled" and name not in leaving:
            assert told(result) == alone[name]
        elif not result.samples:
            (thinking, text, *_), *_ = alone[name][0]
            assert thinking.startswith(result.thinking) and text.startswith(result.text)
    assert settled(demo) <= before


def test_samples_of_one_request_keep_their_order_among_others(demo: Magistral):
    together = Together(demo)
    with held(demo):
        for name in ("a", "b"):
            together.ask(name, "What is 3 + 9?", n=3, seed=1, max_tokens=20)
        together.ask("c", "What is 3 + 9?", seed=1, max_tokens=20)
    results = together.results()
    assert told(results["a"]) == told(results["b"])
    assert results["a"].samples[0].text == results["c"].text
    for name in ("a", "b"):
        events = [event for whose, event in together.log if whose == name]
        marks = [type(event) for event in events if isinstance(event, Sample | Finished)]
        assert marks == [Sample, Finished] * 3
        assert [event.index for event in events if isinstance(event, Sample)] == [0, 1, 2]


def test_the_same_prompt_many_times_is_read_once(demo: Magistral):
    settled(demo)
    together = Together(demo)
    with held(demo):
        for n in range(6):
            together.ask(str(n), "word " * 300, max_tokens=8, **GREEDY)
    results = list(together.results().values())
    read = [result.stats.prompt_tokens - result.stats.cached_tokens for result in results]
    assert read == [results[0].stats.prompt_tokens] + [1] * 5
    assert len({result.text for result in results}) == 1


def test_a_system_prompt_that_requests_share_is_read_once(demo: Magistral):
    settled(demo)
    system = "You know numbers well. " * 100
    questions = [f"What is {n} + {n + 1}?" for n in range(4)]
    together = Together(demo)
    with held(demo):
        for question in questions:
            together.ask(question, question, system=system, max_tokens=20, **GREEDY)
    results = together.results()
    stats = [result.stats for result in results.values()]
    shared = min(one.cached_tokens for one in stats[1:])
    assert stats[0].cached_tokens == 0
    assert shared > len(demo.tokenizer.encode(system)) - 2
    assert all(one.prompt_tokens - one.cached_tokens < 40 for one in stats[1:])
    settled(demo)
    for question, result in results.items():
        again = demo.generate(question, system=system, max_tokens=20, **GREEDY)
        assert told(again) == told(result)


def test_answers_of_several_tasks_and_threads(demo: Magistral, alone: dict[str, Any]):
    requests = mixed()

    async def ask_all() -> dict[str, Any]:
        results = await asyncio.gather(
            *(demo.agenerate(**{"max_tokens": 60, **options}) for options in requests.values())
        )
        return dict(zip(requests, map(told, results), strict=True))

    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(ask_all()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [alone, alone]


# Turns
@pytest.mark.parametrize(("a_part", "passes"), [(10.0, 10), (0.5, 1), (0.0, 1)])
def test_a_long_prompt_and_the_tokens_of_others_have_half_of_the_time_each(
    timed: tuple[Magistral, TimedRunner], a_part: float, passes: int
):
    endless, runner = timed
    runner.a_part, runner.a_pass = a_part, 1.0
    together = Together(endless)
    together.ask("talking", "Hi", max_tokens=2000, speculation="off")  # one token a pass
    together.wait_for(Text, answers=1)
    together.ask("long", "word " * 5000, max_tokens=1)
    together.result("long")
    together.answers["talking"].cancel()
    together.result("talking")
    parts = places(together, "long", Prefill)
    assert len(parts) > 5
    for before, after in pairwise(parts[2:]):  # after its first step, which has two parts
        between = together.log[before:after]
        assert [name for name, event in between if isinstance(event, Text)] == ["talking"] * passes


def test_a_short_answer_that_joins_while_a_document_is_read_ends_long_before_it(
    timed: tuple[Magistral, TimedRunner],
):
    def join(name: str, event: Event) -> None:
        if places(together, "long", Prefill)[2:] and "short" not in together.answers:
            together.ask("short", "Hi", max_tokens=20, speculation="off")

    endless, runner = timed
    runner.a_part, runner.a_pass = 10.0, 1.0
    together = Together(endless, join)
    together.ask("long", "word " * 5000, max_tokens=1)
    together.result("long")
    assert together.result("short").stats.completion_tokens == 20
    assert together.names(Finished) == ["short", "long"]
    (end,) = places(together, "short", Finished)
    parts = places(together, "long", Prefill)
    # Two before it came, one before its own, and one for each ten of its tokens.
    assert sum(part < end for part in parts) <= 6 < len(parts) - 4


def test_prompts_that_have_only_one_part_do_not_wait_for_those_who_decode(
    timed: tuple[Magistral, TimedRunner],
):
    endless, runner = timed
    runner.a_part, runner.a_pass = 1000.0, 1.0
    together = Together(endless)
    with held(endless):
        for name in ("a", "b", "c", "d"):
            together.ask(name, f"{name} is what?", max_tokens=9, speculation="off")
    together.results()
    assert together.most_at_once() == 4


@pytest.mark.parametrize(("limit", "tokens"), [(5.0, 5), (1.0, 1), (30.5, 31)])
def test_an_answer_ends_when_its_time_is_over(
    timed: tuple[Magistral, TimedRunner], limit: float, tokens: int
):
    endless, runner = timed
    runner.a_pass = 1.0
    stream = endless.stream("Hi", time_limit=limit, n=3, speculation="off")
    result = stream.result()
    assert (result.finish_reason, result.samples) == ("time", ())
    assert result.stats.completion_tokens == tokens
    assert result.message.prefix  # it can be gone on with
    assert endless.generate("Hi", time_limit=1000, max_tokens=4).finish_reason == "length"


def test_the_time_limit_counts_from_the_turn_and_holds_for_a_long_prompt(
    timed: tuple[Magistral, TimedRunner],
):
    endless, runner = timed
    runner.a_part = 10.0
    result = endless.generate("word " * 5000, time_limit=25)
    assert (result.finish_reason, result.stats.completion_tokens) == ("time", 0)
    with held(endless):
        waiting = endless.stream("Hi", time_limit=25, max_tokens=3)
        runner.now += 1000
    assert waiting.result().finish_reason == "length"


def test_a_short_prompt_does_not_wait_for_a_long_one(endless: Magistral):
    settled(endless)
    together = Together(endless)
    with held(endless):
        together.ask("long", "word " * 5000, max_tokens=1)
        together.ask("short", "Hi", max_tokens=3)
    together.results()
    assert together.names(Finished) == ["short", "long"]
    first_parts = together.names(Prefill)
    assert first_parts.index("short") <= 2  # the long one had two events: its beginning, a part


def test_two_long_prompts_are_read_in_turn(endless: Magistral):
    settled(endless)
    together = Together(endless)
    with held(endless):
        together.ask("a", "word " * 3000, max_tokens=1)
        together.ask("b", "other words " * 1500, max_tokens=1)
    together.results()
    parts = together.names(Prefill)
    assert parts[2:8] in (["b", "b", "a", "b", "a", "b"], ["a", "b", "a", "b", "a", "b"])


def test_a_prompt_is_read_in_smaller_parts_as_long_as_others_are_there(
    timed: tuple[Magistral, TimedRunner], monkeypatch: pytest.MonkeyPatch
):
    def join(name: str, event: Event) -> None:
        if places(together, "long", Prefill)[2:] and "short" not in together.answers:
            together.ask("short", "Hi", max_tokens=5, speculation="off")

    monkeypatch.setattr(scheduler, "_SHARED_CHUNK", 100)
    endless, runner = timed
    runner.a_part, runner.a_pass = 1.0, 1.0
    together = Together(endless, join)
    together.ask("long", "word " * 2000, max_tokens=1)
    together.result("long")
    read = [
        event.done for name, event in together.log if name == "long" and isinstance(event, Prefill)
    ]
    sizes = [after - before for before, after in pairwise(read)][:-1]  # the last one is a rest
    whole = endless.plan.chunk
    assert set(sizes) == {whole, 100}
    few = sizes.count(100)
    assert sizes[:2] == [whole] * 2 and 5 <= few <= 8
    assert sizes[2 : 2 + few] == [100] * few


def test_one_after_the_other_if_the_load_says_so(talker_folder: Path):
    with Magistral.load(talker_folder, parallel=1) as magistral:
        together = Together(magistral)
        with held(magistral):
            for name in ("a", "b", "c"):
                together.ask(name, "What?")
        assert {result.text for result in together.results().values()} == {ANSWER}
        assert together.most_at_once() == 1
        assert together.names(Finished) == ["a", "b", "c"]


def test_no_more_at_once_than_the_load_says(talker_folder: Path):
    with Magistral.load(talker_folder, parallel=2) as magistral:
        together = Together(magistral)
        with held(magistral):
            for n in range(5):
                together.ask(str(n), "What?")
        assert {result.text for result in together.results().values()} == {ANSWER}
        assert together.most_at_once() == 2
        assert together.begun() == list("01234")


@pytest.mark.parametrize("parallel", [0, -1, 1.5, "2"])
def test_a_bound_that_is_none_is_refused(talker_folder: Path, parallel: Any):
    with pytest.raises(InvalidOption, match="parallel"):
        Magistral.load(talker_folder, parallel=parallel)


# What goes wrong


def test_what_goes_wrong_with_one_reaches_that_one_alone(
    talker: Magistral, monkeypatch: pytest.MonkeyPatch
):
    def damaged(*_: Any) -> None:
        raise CheckpointError("the tower is damaged.")

    monkeypatch.setattr("magistral_mlx.runtime.model_runner.load_vision", damaged)
    settled(talker)
    together = Together(talker)
    with held(talker):
        together.ask("a", "What?")
        together.ask("seeing", "What?", PIL.Image.new("RGB", (28, 28)))
        together.ask("b", "What?")
    with pytest.raises(CheckpointError, match="damaged"):
        together.result("seeing")
    assert together.result("a").text == together.result("b").text == ANSWER


def test_an_error_in_one_row_reaches_that_one_alone(
    demo: Magistral, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise InvalidOption("the grammar is broken.")

    monkeypatch.setattr("magistral_mlx.engine.constraint.GrammarMask.accept", broken, raising=True)
    together = Together(demo)
    with held(demo):
        for name in ("greedy", "schema", "three"):
            ask(together, name, mixed()[name])
    with pytest.raises(InvalidOption, match="broken"):
        together.result("schema")
    for name in ("greedy", "three"):
        assert told(together.result(name)) == alone[name]


class FailingRunner(TimedRunner):
    """The device fails in the third pass."""

    passes = 0

    def decode(self, generations: Any) -> Any:
        self.passes += 1
        if self.passes == 3:
            raise RuntimeError("no\nmemory")
        return super().decode(generations)


def test_a_failure_of_the_device_ends_all_that_run_and_none_that_waits(talker_folder: Path):
    with loaded(talker_folder, FailingRunner, parallel=2) as (magistral, _):
        before = settled(magistral)
        together = Together(magistral)
        with held(magistral):
            for name in "abcd":
                together.ask(name, "What?")
        for name in "ab":
            with pytest.raises(DeviceError, match="no memory"):
                together.result(name)
        assert [together.result(name).text for name in "cd"] == [ANSWER] * 2
        assert settled(magistral) <= before


def test_closing_ends_all(endless_folder: Path):
    magistral = Magistral.load(endless_folder, parallel=3)
    together = Together(magistral)
    for n in range(5):
        together.ask(str(n), "Hi" if n != 2 else "word " * 5000)
    together.wait_for(Text, answers=2)
    magistral.close()
    assert {result.finish_reason for result in together.results().values()} == {"cancelled"}
    with pytest.raises(ModelClosed):
        magistral.stream("Hi")
    assert magistral.activity.running == magistral.activity.waiting == 0


def test_memory_is_released_while_several_answer(demo: Magistral, alone: dict[str, Any]):
    def release(name: str, event: Event) -> None:
        if isinstance(event, WORDS) and len(together.log) % 10 == 0:
            demo.release_memory()

    together = Together(demo, release)
    with held(demo):
        for name, options in mixed().items():
            ask(together, name, options)
    assert {name: told(result) for name, result in together.results().items()} == alone


# What is told


def test_what_the_model_is_at_is_told(endless_folder: Path):
    with Magistral.load(endless_folder, parallel=2) as magistral:
        rest = magistral.activity
        assert (rest.running, rest.waiting, rest.prompts) == (0, 0, 0)
        assert rest.memory.weights == magistral.plan.model.weights.decoder
        assert rest.memory.limit == magistral.plan.limit
        assert rest.memory.caches == rest.memory.kept == 0
        together = Together(magistral)
        for n in range(4):
            together.ask(str(n), "Hi")
        together.wait_for(Text, answers=2)
        busy = magistral.activity
        assert (busy.running, busy.waiting, busy.prompts) == (2, 2, 2)
        assert busy.memory.caches > 0
        together.answers["3"].cancel()
        assert magistral.activity.waiting == 1
        for answer in together.answers.values():
            answer.cancel()
        together.results()
        assert magistral.generate("Hi", max_tokens=1).stats.cached_tokens > 0
        done = magistral.activity
        assert (done.running, done.waiting) == (0, 0)
        assert done.hits >= 1 and done.reused_tokens > 0
        wait_until(lambda: magistral.activity.memory.kept > 0)
    assert mx.get_active_memory() >= 0
    assert magistral.activity.memory.weights == 0


def test_each_answer_has_figures_of_its_own(endless: Magistral):
    together = Together(endless)
    with held(endless):
        together.ask("short", "Hi", max_tokens=3)
        together.ask("long", "Hi " * 400, max_tokens=30)
    short, long = (together.result(name).stats for name in ("short", "long"))
    assert (short.completion_tokens, long.completion_tokens) == (3, 30)
    assert long.prompt_tokens > 400 > short.prompt_tokens
    for stats in (short, long):
        assert 0 < stats.prefill_seconds <= stats.first_token_seconds + 1e-6
        assert stats.decode_seconds > 0
        assert 0 < stats.peak_memory <= endless.plan.total


def test_that_a_context_is_long_is_noted_once_a_request(
    endless: Magistral, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(request, "GOOD_CONTEXT", 100)
    together = Together(endless)
    for name, words, tokens in (("short", 1, 10), ("grows", 1, 150), ("long", 300, 5)):
        together.ask(name, "word " * words, n=3, max_tokens=tokens)
    results = together.results()
    assert all(len(result.samples) == 3 for result in results.values())
    assert sorted(together.names(Notice)) == ["grows", "long"]
    notes = {event.text for _, event in together.log if isinstance(event, Notice)}
    assert all("get worse" in note for note in notes)
