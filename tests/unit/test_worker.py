"""The thread on which a model lives, and what becomes of calls when it takes no more."""

import threading
import traceback
import weakref

import pytest

from magistral_mlx.errors import ModelClosed, RankLost
from magistral_mlx.runtime.worker import Worker


class Model:
    """Something with a worker, whose steps can be held up."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.inside = threading.Event()
        self.worker = Worker("test", lambda: False, weakref.WeakMethod(self.close))

    def close(self) -> None:
        self.free.set()
        self.worker.stop()

    def stuck(self) -> None:
        self.inside.set()
        self.free.wait()


def test_calls_of_an_abandoned_worker_fail_with_the_reason() -> None:
    model = Model()
    model.worker.call(model.stuck)
    model.inside.wait()
    queued = model.worker.call(lambda: 1)
    model.worker.abandon(RankLost("mac2 was lost."))
    later = model.worker.call(lambda: 2)
    for future in (queued, later):
        with pytest.raises(RankLost, match="mac2 was lost"):
            future.result(60)
    assert not model.worker.responds(0)
    model.worker.join()  # it does not wait for what does not come back
    model.close()


def test_calls_after_the_end_fail() -> None:
    model = Model()
    assert model.worker.call(lambda: 1).result(60) == 1
    model.close()
    model.worker.join()
    with pytest.raises(ModelClosed):
        model.worker.call(lambda: 2).result(60)


def test_the_error_of_a_call_keeps_nothing_that_the_call_had_and_tells_where_it_was() -> None:
    class Weights:
        pass

    held: list[weakref.ref[Weights]] = []

    def load(weights: Weights) -> None:
        held.append(weakref.ref(weights))
        try:
            raise OSError("no such file")
        except OSError as error:
            raise TypeError("a bug") from error

    model = Model()
    error = model.worker.call(lambda: load(Weights())).exception(60)
    assert error is not None and held[0]() is None
    assert "in load" in "".join(traceback.format_exception(error))  # for a log
    model.close()
    model.worker.join()
