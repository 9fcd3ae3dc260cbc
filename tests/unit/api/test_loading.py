"""Loading: it can be stopped, and leaves nothing behind."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from magistral_mlx import LoadProgress, Magistral
from magistral_mlx.backend import mx
from magistral_mlx.engine.prefix_cache import PrefixCache
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.limits import PROCESS
from tests.serving import wait_until
from tests.unit.api.conftest import ANSWER


class Enough(Exception):
    pass


def refuse(progress: LoadProgress) -> None:
    raise Enough


def refuse_the_last(progress: LoadProgress) -> None:
    if progress.fraction == 1:
        raise Enough


@pytest.mark.parametrize("on_progress", [refuse, refuse_the_last])
def test_an_exception_of_the_callback_stops_a_load(talker_folder: Path, on_progress: Any):
    before, planned = mx.get_active_memory(), PROCESS.planned
    with pytest.raises(Enough):
        Magistral.load(talker_folder, on_progress=on_progress)
    assert PROCESS.planned == planned and mx.get_active_memory() <= before


@pytest.mark.parametrize("on_progress", [refuse, refuse_the_last])
def test_an_exception_of_the_callback_stops_a_load_of_asyncio(
    talker_folder: Path, on_progress: Any
):
    before, planned = mx.get_active_memory(), PROCESS.planned
    with pytest.raises(Enough):
        asyncio.run(Magistral.aload(talker_folder, on_progress=on_progress))
    wait_until(lambda: PROCESS.planned == planned and mx.get_active_memory() <= before)


@pytest.mark.parametrize("cache_dir", ["~nobody-of-this-name/kept", "ke\0pt"])
def test_a_cache_folder_that_cannot_be_leaves_nothing_planned(talker_folder: Path, cache_dir: str):
    planned = PROCESS.planned
    with pytest.raises(InvalidOption, match=r"home folder of a user|NUL"):
        Magistral.load(talker_folder, cache_dir=cache_dir)
    assert PROCESS.planned == planned


def test_an_error_while_closing_keeps_no_memory(
    talker_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_: PrefixCache) -> None:
        raise OSError(5, "Input/output error")

    before, planned = mx.get_active_memory(), PROCESS.planned
    model = Magistral.load(talker_folder)
    monkeypatch.setattr(PrefixCache, "close", fail)
    model.close()
    gc.collect()  # the error holds on to what it came from
    assert PROCESS.planned == planned and mx.get_active_memory() <= before


def test_cancelling_a_task_stops_its_load(talker_folder: Path):
    reports: list[LoadProgress] = []
    go_on = threading.Event()

    def wait(plan: object) -> None:
        """Called in the helper thread, before weights are read."""
        planned.set()
        go_on.wait(60)

    async def load() -> None:
        task = asyncio.create_task(
            Magistral.aload(talker_folder, on_plan=wait, on_progress=reports.append)
        )
        await asyncio.to_thread(planned.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    planned = threading.Event()
    before, memory = PROCESS.planned, mx.get_active_memory()
    asyncio.run(load())
    wait_until(lambda: PROCESS.planned == before and mx.get_active_memory() <= memory)
    assert reports == []


def test_a_load_of_asyncio_reports_its_progress_in_the_thread_of_the_loop(talker_folder: Path):
    threads: list[threading.Thread] = []

    async def load() -> None:
        async with await Magistral.aload(
            talker_folder, on_progress=lambda _: threads.append(threading.current_thread())
        ):
            pass

    asyncio.run(load())
    assert set(threads) == {threading.current_thread()}


def test_loading_and_closing_again_and_again_keeps_no_threads(talker_folder: Path):
    process = psutil.Process()

    def ask_once() -> int:
        with Magistral.load(talker_folder) as magistral:
            assert magistral.generate("What?").text == ANSWER
        return process.num_threads()

    counts = [ask_once() for _ in range(12)]
    assert max(counts[6:]) <= max(counts[:6])
