"""A loaded model between the callers' threads and the worker: what it is given, in which order.

It knows nothing of `Magistral`, so that a `Magistral` that nobody holds any more can be collected
and have its session closed.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from magistral_mlx.api.activity import Activity
from magistral_mlx.api.answer import Answer
from magistral_mlx.api.progress import LoadProgress, OnProgress
from magistral_mlx.api.scheduler import Scheduler
from magistral_mlx.api.worker import Worker
from magistral_mlx.errors import ModelClosed

if TYPE_CHECKING:
    from magistral_mlx.api.composer import Job
    from magistral_mlx.api.runtime import Runtime
    from magistral_mlx.chat.tokenizer import Tokenizer


class Session:
    """The worker thread of one model, and the answers that it gives."""

    def __init__(self, runtime: Runtime, parallel: int) -> None:
        """`parallel`: answers that are generated at once at most."""
        self._runtime = runtime
        self._scheduler = Scheduler(runtime, parallel)
        self._lock = threading.RLock()
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._closed = False
        self._abort = threading.Event()
        self._worker = Worker("magistral-mlx", self._scheduler.step, weakref.WeakMethod(self.close))
        runtime.when_idle = self._worker.wake

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    @property
    def activity(self) -> Activity:
        """What goes on; all is zero once it has been closed."""
        if self._closed:
            return Activity()
        runtime, scheduler = self._runtime, self._scheduler
        counts = runtime.counts
        return Activity(
            running=scheduler.running,
            waiting=scheduler.waiting,
            prompts=counts.prompts,
            hits=counts.hits,
            prompt_tokens=counts.tokens,
            reused_tokens=counts.reused,
            images=counts.images,
            seen_images=counts.seen,
            memory=replace(runtime.memory, caches=scheduler.caches),
        )

    def load(self) -> Callable[[OnProgress | None], None]:
        """Begin to load. What is returned waits for the end and reports progress meanwhile.

        It calls the callback in the thread that waits, and raises what went wrong.
        """
        items: SimpleQueue[LoadProgress | None] = SimpleQueue()
        start = time.perf_counter()

        def report(done: int, total: int) -> None:
            items.put(LoadProgress("weights", done, total, time.perf_counter() - start))

        runtime, abort = self._runtime, self._abort
        future = self._worker.call(lambda: runtime.load(report, abort))
        future.add_done_callback(lambda _: items.put(None))

        def wait(on_progress: OnProgress | None) -> None:
            while (item := items.get()) is not None:
                if on_progress:
                    on_progress(item)
            future.result()

        return wait

    def submit(self, job: Job, answer: Answer, tokenizer: Tokenizer) -> None:
        """Queue a job.

        Raises:
            ModelClosed: the model has been closed.
        """
        with self._lock:
            self.check_open()
            self._answers.add(answer)
            self._scheduler.submit(job, answer, tokenizer)
            self._worker.wake()

    def check_open(self) -> None:
        """Raises ModelClosed if the model has been closed."""
        if self._closed:
            raise ModelClosed("this model has been closed. Load it again to ask it.")

    def release(self) -> None:
        """Free what comes back by itself, within a token if one is being generated."""
        with self._lock:
            self.check_open()
            self._worker.call(self._runtime.release)

    def interrupt(self) -> None:
        """Stop loading, and every answer that runs or queues."""
        self._abort.set()
        with self._lock:
            answers = list(self._answers)
        for answer in answers:
            answer.cancel()

    def close(self) -> None:
        """Stop everything and give the memory back, soon. The second time nothing happens."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.interrupt()
            self._worker.call(self._scheduler.close)
            self._worker.call(self._runtime.close)
            self._worker.stop()

    def wait_closed(self) -> None:
        """Wait until the memory has been given back, after `close`."""
        self._worker.join()
