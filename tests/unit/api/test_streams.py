"""Reading a stream: with a time limit, by polling, and by one reader at a time."""

import asyncio
import gc
import threading
import traceback
import weakref
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import CheckpointError, Finished, Magistral, Stream, StreamInUse, Text
from magistral_mlx.backend import mx
from tests.unit.api.conftest import ANSWER
from tests.unit.api.together import PATIENCE, held


def test_next_gives_each_event_and_none_after_the_last(talker: Magistral):
    stream, events = talker.stream("What?"), []
    while (event := stream.next(timeout=PATIENCE)) is not None:
        events.append(event)
    assert isinstance(events[-1], Finished)
    assert "".join(event.text for event in events if isinstance(event, Text)) == ANSWER
    assert stream.next() is None and stream.next(timeout=0) is None
    assert list(stream) == []


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01])
def test_a_stream_that_has_no_event_yet_times_out_and_goes_on(talker: Magistral, timeout: float):
    with held(talker):
        stream = talker.stream("What?")
        for _ in range(3):
            with pytest.raises(TimeoutError, match="no event"):
                stream.next(timeout=timeout)
    assert stream.result().text == ANSWER
    assert stream.next(timeout=0) is not None  # they are there now


def read_all(stream: Stream) -> None:
    while stream.next() is not None:
        pass


def test_an_error_comes_by_next_as_well(talker: Magistral, monkeypatch: pytest.MonkeyPatch):
    def damaged(*_: Any) -> None:
        raise CheckpointError("the tower is damaged.")

    monkeypatch.setattr("magistral_mlx.runtime.model_runner.load_vision", damaged)
    talker.release_memory()
    stream = talker.stream("What?", PIL.Image.new("RGB", (28, 28)))
    with pytest.raises(CheckpointError, match="damaged"):
        read_all(stream)
    assert stream.next() is None
    request = weakref.ref(stream.request)
    del stream
    gc.collect()
    assert request() is None  # an error keeps neither its request nor the model


@pytest.mark.parametrize("kind", [CheckpointError, TypeError])
def test_an_error_that_is_kept_keeps_no_weights_of_a_closed_model(
    talker_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    def damaged(*_: Any) -> None:
        raise kind("the tower is damaged.")

    monkeypatch.setattr("magistral_mlx.runtime.model_runner.load_vision", damaged)
    gc.collect()
    before = mx.get_active_memory()
    with Magistral.load(talker_folder) as magistral, pytest.raises(kind) as caught:
        magistral.generate("What?", PIL.Image.new("RGB", (28, 28)))
    assert mx.get_active_memory() <= before
    told = "".join(traceback.format_exception(caught.value))
    assert ("in damaged" in told) is (kind is TypeError)  # where a bug is stays known


def test_a_second_thread_is_refused_while_the_first_waits(talker: Magistral):
    found: list[Any] = []
    with held(talker):
        stream = talker.stream("What?")
        first = threading.Thread(target=lambda: found.append(list(stream)))
        first.start()
        refusal = refused(stream)
    first.join(PATIENCE)
    assert "another thread" in refusal
    (events,) = found
    assert isinstance(events[-1], Finished)


def refused(stream: Any) -> str:
    """What a reader is told, once the other one waits."""
    while True:
        try:
            stream.next(timeout=0)
        except StreamInUse as error:
            return str(error)
        except TimeoutError:
            pass  # the other one has not begun


def test_threads_may_read_one_after_the_other(talker: Magistral):
    stream, kinds = talker.stream("What?"), []

    def read() -> None:
        if (event := stream.next()) is not None:
            kinds.append(type(event))

    while Finished not in kinds:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(PATIENCE)
    assert kinds.count(Finished) == 1


def test_a_second_task_is_refused_while_the_first_waits(talker: Magistral):
    async def read() -> list[Any]:
        stream = talker.astream("What?")
        with held(talker):
            first = asyncio.create_task(stream.result())
            await asyncio.sleep(0)
            with pytest.raises(StreamInUse, match="another task"):
                await anext(stream)
        return [(await first).text]

    assert asyncio.run(read()) == [ANSWER]
