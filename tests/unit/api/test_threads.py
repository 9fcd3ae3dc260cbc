"""Threads, event loops, cancelling and closing."""

import asyncio
import gc
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import (
    Assistant,
    Finished,
    Magistral,
    ModelClosed,
    Prefill,
    PromptError,
    Stream,
    Text,
    TokenizerError,
    User,
)
from magistral_mlx.backend import mx
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.unit.api.conftest import ANSWER

pytestmark = pytest.mark.slow

PATIENCE = 30.0  # seconds after which something that should happen has not


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run all at once -> what they return, in order; raises what the first one raises."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(n: int) -> None:
        try:
            results[n] = functions[n]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


def texts_until(stream: Stream, count: int) -> None:
    """Read until `count` pieces of text have come."""
    while count:
        count -= isinstance(next(stream), Text)


# Several threads


def test_calls_from_several_threads_are_all_answered(talker: Magistral):
    results = in_threads(*[lambda: talker.generate("What?").text] * 6)
    assert results == [ANSWER] * 6


def test_a_model_may_be_loaded_in_one_thread_used_in_another_and_closed_in_a_third(
    talker_folder: Path,
):
    (magistral,) = in_threads(lambda: Magistral.load(talker_folder))
    assert in_threads(lambda: magistral.generate("What?").text) == [ANSWER]
    in_threads(magistral.close)
    assert magistral.closed


def test_mlx_of_the_caller_is_left_alone(talker: Magistral):
    mine = mx.ones((3,)) + 1  # not evaluated: it belongs to this thread
    stream = talker.stream("What?")
    assert mine.tolist() == [2.0, 2.0, 2.0]
    assert stream.result().text == ANSWER


def test_an_error_of_one_call_leaves_the_others_alone(talker: Magistral):
    def fail() -> Any:
        with pytest.raises(PromptError):
            talker.generate([])
        return "failed"

    ask = lambda: talker.generate("What?").text  # noqa: E731
    assert in_threads(ask, fail, ask) == [ANSWER, "failed", ANSWER]


def test_everything_at_once_from_several_threads(talker: Magistral):
    def act(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(15):
            match rng.choice(["ask", "leave", "cancel", "drop", "chat", "release"]):
                case "ask":
                    assert talker.generate("What?").text == ANSWER
                case "leave":
                    for _event in talker.stream("What?"):
                        if rng.random() < 0.3:
                            break
                case "cancel":
                    stream = talker.stream("What?")
                    stream.cancel()
                    assert stream.result().finish_reason in ("stop", "cancelled")
                case "drop":
                    next(talker.stream("What?"))
                case "chat":
                    chat = talker.chat("One?")
                    chat.stream().cancel()
                    chat.send("Two?")
                    assert isinstance(chat.undo()[-1], Assistant)
                case "release":
                    talker.release_memory()

    talker.generate("What?")
    before, threads = memory_once_released(talker), threading.active_count()
    in_threads(*(lambda seed=seed: act(seed) for seed in range(4)))
    assert talker.generate("What?").text == ANSWER
    assert memory_once_released(talker) <= before
    assert threading.active_count() == threads


def memory_once_released(magistral: Magistral) -> int:
    """Bytes in use when all that comes back by itself has been freed."""
    magistral.release_memory()
    magistral.session.call(lambda: None).result()
    return int(mx.get_active_memory())


# Cancelling


def test_cancelling_from_another_thread_stops_within_a_token(endless: Magistral):
    stream = endless.stream("Hi")
    texts_until(stream, 5)
    in_threads(stream.cancel)
    rest = list(stream)
    finished = rest[-1]
    assert isinstance(finished, Finished) and finished.reason == "cancelled"
    result = stream.result()
    assert result.finish_reason == "cancelled"
    assert ("1a2b3c" * len(result.text)).startswith(result.text)
    assert result.usage.answer_tokens == len(result.text)
    assert endless.generate("Hi", max_tokens=4).text == "1a2b"


def test_cancelling_stops_a_long_prompt_after_its_current_part(endless: Magistral):
    memory_once_released(endless)  # of this prompt's beginning, too
    stream = endless.stream("word " * 5000, max_tokens=1)
    assert next(stream) == Prefill(0, stream_total(endless), None)
    stream.cancel()
    events = list(stream)
    assert isinstance(events[-1], Finished) and events[-1].reason == "cancelled"
    assert stream.result().usage.completion_tokens == 0
    done = [event.done for event in events if isinstance(event, Prefill)]
    assert not done or max(done) < stream_total(endless)


def stream_total(magistral: Magistral) -> int:
    return len(magistral.prompt("word " * 5000))


def test_an_answer_that_queues_is_cancelled_at_once(endless: Magistral):
    running = endless.stream("Hi")
    texts_until(running, 1)
    queued = endless.stream("Hi")
    queued.cancel()
    result = queued.result()  # does not wait for the one that runs
    assert result.finish_reason == "cancelled" and result.usage.prompt_tokens == 0
    assert [type(event) for event in queued] == [Finished]
    texts_until(running, 2)
    running.cancel()


def test_cancelling_after_the_end_changes_nothing(talker: Magistral):
    stream = talker.stream("What?")
    assert stream.result().finish_reason == "stop"
    stream.cancel()
    assert stream.result().finish_reason == "stop"


@pytest.mark.parametrize("way", ["break", "del", "with", "close"])
def test_a_stream_that_nobody_reads_to_the_end_frees_the_model(endless: Magistral, way: str):
    stream = endless.stream("Hi")
    answer = stream.request
    match way:
        case "break":
            for event in stream:
                if isinstance(event, Text):
                    break
        case "del":
            texts_until(stream, 1)
            del stream
            gc.collect()
        case "with":
            with stream:
                texts_until(stream, 1)
        case "close":
            texts_until(stream, 1)
            stream.close()
    assert answer.wait().finish_reason == "cancelled"
    assert endless.generate("Hi", max_tokens=2).text == "1a"


def test_leaving_a_loop_keeps_what_there_is(endless: Magistral):
    stream = endless.stream("Hi")
    for event in stream:
        if isinstance(event, Text):
            break
    result = stream.result()
    assert result.finish_reason == "cancelled" and result.text.startswith("1")


def test_an_error_in_the_loop_stops_the_answer(endless: Magistral):
    stream = endless.stream("Hi")

    def read() -> None:
        for event in stream:
            if isinstance(event, Text):
                raise KeyError

    with pytest.raises(KeyError):
        read()
    assert stream.result().finish_reason == "cancelled"


# asyncio


def test_an_answer_for_asyncio(talker: Magistral):
    async def ask() -> tuple[list[Any], str]:
        events = [event async for event in talker.astream("What?")]
        return events, (await talker.agenerate("What?")).text

    events, text = asyncio.run(ask())
    assert text == ANSWER
    assert "".join(event.text for event in events if isinstance(event, Text)) == ANSWER
    assert isinstance(events[-1], Finished)


def test_the_event_loop_goes_on_while_the_model_works(endless: Magistral):
    async def ask() -> tuple[float, float]:
        longest, last = 0.0, time.perf_counter()
        task = asyncio.create_task(endless.agenerate("word " * 3000, max_tokens=200))
        while not task.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return longest, task.result().stats.prefill_seconds

    memory_once_released(endless)
    longest, worked = asyncio.run(ask())
    assert longest < worked


def test_answers_of_several_tasks(talker: Magistral):
    async def ask() -> list[str]:
        results = await asyncio.gather(*(talker.agenerate("What?") for _ in range(4)))
        return [result.text for result in results]

    assert asyncio.run(ask()) == [ANSWER] * 4


def test_cancelling_a_task_stops_its_answer(endless: Magistral):
    async def ask() -> None:
        stream = endless.astream("Hi")
        started = asyncio.Event()

        async def read() -> None:
            async for event in stream:
                if isinstance(event, Text):
                    started.set()

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = stream.request
        assert answer is not None and answer.wait().finish_reason == "cancelled"

    asyncio.run(ask())
    assert endless.generate("Hi", max_tokens=2).text == "1a"


def test_a_timeout_stops_an_answer(endless: Magistral):
    async def ask() -> None:
        async with asyncio.timeout(0.05):
            await endless.agenerate("Hi")

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert endless.generate("Hi", max_tokens=2).text == "1a"


def test_what_is_wrong_with_a_prompt_is_raised_by_the_task(talker: Magistral):
    async def ask() -> None:
        await talker.agenerate([])

    with pytest.raises(PromptError):
        asyncio.run(ask())


def test_loading_and_closing_for_asyncio(talker_folder: Path):
    async def run() -> str:
        seen: list[Any] = []
        magistral = await Magistral.aload(talker_folder, on_progress=seen.append)
        async with magistral:
            text = (await magistral.agenerate("What?")).text
        assert magistral.closed and seen[-1].fraction == 1
        return text

    assert asyncio.run(run()) == ANSWER


# Memory


@pytest.fixture(scope="module")
def heavy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 160 MB in memory, in float32, and a tower of 14 MB."""
    config = tiny_config(layers=6, hidden_size=1024, intermediate_size=2048, num_attention_heads=8)
    return write_hf_checkpoint(tmp_path_factory.mktemp("heavy") / "model", config=config)


MB = 1_000_000


def test_closing_gives_the_memory_back(heavy_folder: Path):
    gc.collect()
    before = mx.get_active_memory()
    with Magistral.load(heavy_folder) as magistral:
        loaded = mx.get_active_memory() - before
        assert loaded > 150 * MB
        magistral.generate("Hi " * 300, PIL.Image.new("RGB", (300, 300)), max_tokens=20)
        conversation = magistral.chat()
        conversation.append("Hello")
        conversation.stream(max_tokens=5).result()
        stream = magistral.stream("Hi", logit_bias={2: -100})  # no end of the turn
        texts = [next(stream) for _ in range(3)]
    assert texts
    assert mx.get_active_memory() - before < 1 * MB
    assert mx.get_cache_memory() < 1 * MB
    assert conversation.messages[0] == User("Hello")
    assert stream.result().finish_reason == "cancelled"


def test_a_model_that_nobody_holds_gives_the_memory_back(heavy_folder: Path):
    before = mx.get_active_memory()
    magistral = Magistral.load(heavy_folder)
    session = magistral.session
    del magistral
    gc.collect()
    session.wait_closed()
    assert mx.get_active_memory() - before < 1 * MB


def test_a_stream_keeps_its_model(talker_folder: Path):
    stream = Magistral.load(talker_folder).stream("What?")
    gc.collect()
    assert stream.result().text == ANSWER


def test_memory_is_released_on_request_and_comes_back(heavy_folder: Path):
    image = PIL.Image.new("RGB", (300, 300))
    with Magistral.load(heavy_folder) as magistral:
        text_only = mx.get_active_memory()
        first = magistral.generate("Hi", image, max_tokens=8, temperature=0)
        assert mx.get_active_memory() - text_only > 2 * MB
        assert memory_once_released(magistral) - text_only < 1 * MB
        again = magistral.generate("Hi", image, max_tokens=8, temperature=0)
    assert again.text == first.text


def test_memory_is_released_in_the_midst_of_an_answer(endless: Magistral):
    stream = endless.stream("Hi")
    texts_until(stream, 3)
    endless.release_memory()
    endless.session.call(lambda: None).result(PATIENCE)  # it is done by then
    assert not stream.request.finished
    stream.cancel()
    text = stream.result().text
    assert len(text) >= 3 and ("1a2b3c" * len(text)).startswith(text)


# Closing and leaving


def test_closing_stops_what_runs_and_what_queues(endless_folder: Path):
    magistral = Magistral.load(endless_folder)
    running, queued = magistral.stream("Hi"), magistral.stream("Hi")
    texts_until(running, 2)
    magistral.close()
    assert running.result().finish_reason == "cancelled"
    assert queued.result().finish_reason == "cancelled"
    with pytest.raises(ModelClosed):
        magistral.stream("Hi")


def test_what_comes_while_a_model_closes_is_refused_and_never_left_waiting(talker_folder: Path):
    magistral = Magistral.load(talker_folder)
    session, gate = magistral.session, threading.Event()
    session.call(gate.wait)
    session.close()
    behind = session.call(int)
    gate.set()
    magistral.close()
    for future in (behind, session.call(int)):
        with pytest.raises(ModelClosed, match="has been closed"):
            future.result(PATIENCE)


def test_an_adapter_that_is_dropped_as_the_model_closes_is_refused(
    talker_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    magistral = Magistral.load(talker_folder)
    check = magistral.session.check_open

    def close_after_check() -> None:
        monkeypatch.setattr(magistral.session, "check_open", check)
        magistral.close()

    monkeypatch.setattr(magistral.session, "check_open", close_after_check)
    with pytest.raises(ModelClosed, match="has been closed"):
        in_threads(lambda: magistral.session.drop_adapter("one"))


def test_errors_while_loading_leave_no_threads_behind(tmp_path: Path):
    folder = write_hf_checkpoint(tmp_path / "model")
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError):
        Magistral.load(folder)
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(TokenizerError):
            Magistral.load(folder)
    assert threading.active_count() == before


_LEAVING = """
import sys
from magistral_mlx import Magistral
magistral = Magistral.load(sys.argv[1])
{body}
"""
_BODIES = {
    "nothing asked": "",
    "an answer that was read": "magistral.generate('Hi', max_tokens=3)",
    "a stream that is being read": "stream = magistral.stream('Hi'); next(stream)",
    "a stream that queues": "streams = [magistral.stream('Hi') for _ in range(3)]",
    "closed": "magistral.generate('Hi', max_tokens=3); magistral.close()",
    "forgotten": "magistral.generate('Hi', max_tokens=3); del magistral",
    "an error": "stream = magistral.stream('Hi'); next(stream); raise SystemExit(0)",
    "in a reference cycle": "magistral.me = magistral; s = magistral.stream('Hi'); s.me = s",
    "an event loop that is cut off": (
        "import asyncio\n"
        "async def ask():\n"
        "    stream = magistral.astream('Hi')\n"
        "    await anext(stream)\n"
        "asyncio.run(ask())"
    ),
}


@pytest.mark.parametrize("what", _BODIES)
def test_python_leaves_at_once_whatever_is_going_on(endless_folder: Path, what: str):
    program = _LEAVING.format(body=_BODIES[what])
    done = subprocess.run(
        [sys.executable, "-c", program, str(endless_folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_reaches_who_waits_for_an_answer(endless_folder: Path):
    program = """
import os, signal, sys, threading
from magistral_mlx import Magistral
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run may ignore it
magistral = Magistral.load(sys.argv[1])
stream = magistral.stream("Hi")
next(stream)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    stream.result()
except KeyboardInterrupt:
    print(stream.result().finish_reason, magistral.generate("Hi", max_tokens=2).text)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(endless_folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("cancelled 1a\n", "")


def test_a_forked_child_is_told_that_the_model_stayed_with_its_parent(talker: Magistral):
    """Asked there, it would wait for ever: the worker thread is not copied."""
    ends = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        told = []
        for ask in (talker.generate, talker.stream, talker.chat().stream, talker.prompt):
            try:
                ask("What?")
                told.append("answered")
            except ModelClosed as error:
                told.append(str(error).partition(",")[0])
        talker.close()  # neither hangs nor takes the model from the parent
        ends[1].send(told)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert ends[0].poll(60)
    fork = "this process is a fork of the one that loaded the model"
    assert ends[0].recv() == [fork, fork, fork, "answered"]  # a prompt needs no worker
    process.join(60)
    assert talker.generate("What?").text == ANSWER
