"""The device's half of a loaded model. Everything in here runs on the worker thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Event as Flag

import numpy as np

from magistral_mlx.api.answer import Answer
from magistral_mlx.api.composer import Job
from magistral_mlx.api.progress import PrefillClock
from magistral_mlx.api.reading import Reader
from magistral_mlx.backend import DTYPES, mx
from magistral_mlx.cache.scheme import RESERVED
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.generate import Generation, Request, generate
from magistral_mlx.engine.prefill import picture_keys
from magistral_mlx.engine.prefixes import Prefixes
from magistral_mlx.errors import DeviceError, MagistralError, ModelClosed, OutOfMemory
from magistral_mlx.events import Event, Finished, FinishReason, Notice, Prefill, Sample, Stats
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.peak import Shape, predict
from magistral_mlx.memory.plan import Plan, gib
from magistral_mlx.model.magistral import MagistralModel

_GOOD_CONTEXT = 40_000  # tokens, by the model's card
_LONG = f"Past {_GOOD_CONTEXT:,} tokens of context Magistral's answers may get worse."


class LoadAborted(MagistralError):
    """Nobody waits for the model any more."""


class Runtime:
    """A model in memory, and what is generated with it."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, dtype: str | None) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._dtype = dtype
        self._model: MagistralModel | None = None
        self._prefixes: Prefixes | None = None
        self.pressure = Flag()  # set from any thread: free what can be freed, as soon as possible

    def load(self, on_progress: Callable[[int, int], None], aborted: Flag) -> None:
        """Read the decoder. The vision tower stays on disk until a picture comes.

        Raises:
            CheckpointError: a file cannot be read to its end.
            LoadAborted: `aborted` was set.
        """

        def report(done: int, total: int) -> None:
            if aborted.is_set():
                raise LoadAborted("loading was stopped.")
            on_progress(done, total)

        dtype = None if self._dtype is None else DTYPES[self._dtype]
        self._model = model = load_model(self._checkpoint, dtype, report)
        plan = self._plan
        self._prefixes = Prefixes(
            plan.caches,
            lambda: model.make_caches(plan.scheme, plan.traits.workspace),
            model.config.image_token_id,
        )

    def close(self) -> None:
        """Give the memory back, with nothing left in flight when the thread ends."""
        self._model = self._prefixes = None
        mx.synchronize()
        mx.clear_cache()
        mx.clear_streams()
        PROCESS.release(self._plan)

    def release(self) -> None:
        """Drop what comes back by itself: what is kept of earlier prompts, and the tower."""
        self.pressure.clear()
        if self._prefixes is not None:
            self._prefixes.release()
        if self._model is not None and self._model.sees:
            self._model.drop_vision()
        mx.clear_cache()

    def run(self, job: Job, answer: Answer, tokenizer: Tokenizer) -> None:
        """Run a job to its end, or until `answer` is cancelled. Errors go to the answer."""
        if not answer.begin():
            return
        failure: BaseException | None = None
        keep: Callable[[], None] | None = None
        try:
            keep = self._run(job, answer, tokenizer)
        except MagistralError as error:
            failure = error
        except RuntimeError as error:
            # Its traceback would keep the caches alive in whoever holds the error.
            failure = DeviceError(
                f"MLX failed while it generated: {' '.join(str(error).split())}. The model can be "
                "asked again; a shorter prompt or a smaller context needs less memory."
            )
        except BaseException as error:
            failure = error
        answer.end(failure)
        if keep:
            keep()  # it may take as long as a token, and nobody waits for it

    def _run(self, job: Job, answer: Answer, tokenizer: Tokenizer) -> Callable[[], None]:
        """Returns what keeps the caches for prompts to come."""
        model, prefixes = self._model, self._prefixes
        if model is None or prefixes is None:
            raise ModelClosed("this model has been closed. Load it again to ask it.")
        if job.dropped:
            answer.put(job.dropped)
        self._check_pictures(job)
        if job.prompt.pictures and not model.sees:
            self._load_vision(model)
        tokens, pictures = job.prompt.tokens, picture_keys(model.config, job.prompt.pictures)
        room = self._cache_bytes(len(tokens) + min(job.limit, RESERVED))
        prefilled = prefixes.take(tokens, pictures, room)
        for index in range(job.options.n):
            if answer.cancelled and index:
                break
            if job.options.n > 1:
                answer.put(Sample(index))
            request = replace(
                _request(job, index, self._plan), picture_keys=pictures, seen=prefixes
            )
            generation = generate(model, request, start=prefilled)
            reader = Reader(job, tokenizer, request.sampling.seed)
            try:
                produced = self._one(generation, reader, job, answer)
            finally:
                generation.close()
            prefilled = generation.prefilled
        tokens = np.concatenate([tokens, np.array(produced, np.int32)])
        return partial(prefixes.put, tokens, pictures, generation.caches, prefilled)

    def _cache_bytes(self, tokens: int) -> int:
        """Bytes of one sequence's caches with room for `tokens`."""
        return self._plan.cache_bytes(tokens)

    def _short_of_memory(self) -> bool:
        """Whether there is too little memory even without what is kept of earlier prompts."""
        if mx.get_active_memory() <= PROCESS.allowed(self._plan):
            return False
        if self._prefixes is not None:
            self._prefixes.release()
        return mx.get_active_memory() > PROCESS.allowed(self._plan)

    def _check_pictures(self, job: Job) -> None:
        """Refuse pictures that would not fit beside the rest of the plan.

        Raises:
            OutOfMemory: saying how many were planned for.
        """
        plan, pictures = self._plan, job.prompt.pictures
        sizes = tuple((pixels.shape[1], pixels.shape[2]) for pixels in pictures)
        if not sizes or len(sizes) <= plan.pictures:
            return
        shape = Shape(len(job.prompt), 1, plan.chunk, sizes)
        model = plan.model
        peak = predict(model.config, model.weights, plan.scheme, shape, plan.traits)
        if peak.total > plan.limit:
            raise OutOfMemory(
                f"{len(sizes)} pictures need {gib(peak.total)} with this prompt, and "
                f"{gib(plan.limit)} are there: memory was planned for {plan.pictures}. Send fewer "
                f"or smaller pictures, or load the model with pictures={len(sizes)} to plan for "
                "them."
            )

    def _load_vision(self, model: MagistralModel) -> None:
        try:
            load_vision(model, self._checkpoint)
        except BaseException:
            model.drop_vision()  # half a tower must not pass for one
            raise

    def _one(self, generation: Generation, reader: Reader, job: Job, answer: Answer) -> list[int]:
        """One sample: steps into events, until it ends by itself or is stopped -> its tokens."""
        produced: list[int] = []
        clock = PrefillClock(self._checkpoint.config.text)
        mx.reset_peak_memory()
        start = time.perf_counter()
        first: float | None = None
        cached: int | None = None  # tokens of the prompt
        reason: FinishReason | None = None
        length, noted = len(job.prompt), False
        for step in generation:
            length = len(job.prompt) + len(produced)
            if length > _GOOD_CONTEXT and not noted:
                answer.put(Notice(_LONG))
                noted = True
            if isinstance(step, Prefill):
                cached = step.done if cached is None else cached
                answer.put(clock(step))
            else:
                first = first or time.perf_counter()
                produced.append(step.id)
                if self._prefixes and len(produced) % RESERVED == RESERVED // 2:
                    self._prefixes.make_room(self._cache_bytes(length + length // 8 + RESERVED))
                _put_all(reader.feed(step), answer)
            if reader.stopped:
                reason = "stop"
            elif answer.cancelled:
                reason = "cancelled"
            elif self._short_of_memory():
                reason = "memory"
            if reason:
                break
            if self.pressure.is_set():
                self.pressure.clear()
                if self._prefixes:
                    self._prefixes.release()
                mx.clear_cache()
        _put_all(reader.finish(), answer)
        end = time.perf_counter()
        first = first or end
        stats = Stats(
            prompt_tokens=len(job.prompt),
            thinking_tokens=reader.thinking_tokens,
            answer_tokens=reader.answer_tokens,
            prefill_seconds=first - start,
            decode_seconds=end - first,
            first_token_seconds=first - start,
            peak_memory=mx.get_peak_memory(),
            thinking_end=generation.thinking_end,
            mask_seconds=generation.mask_seconds,
            cached_tokens=cached or 0,
        )
        reason = reason or self._end_of(generation, stats)
        answer.put(Finished(reason, stats, reader.stopped_by))
        return produced

    def _end_of(self, generation: Generation, stats: Stats) -> FinishReason:
        """Why a generation ended by itself: "memory" where a larger machine would go on."""
        tokens = stats.prompt_tokens + stats.completion_tokens
        if generation.finish != "stop" and self._plan.shortened and tokens >= self._plan.context:
            return "memory"
        return generation.finish or "length"


def _request(job: Job, index: int, plan: Plan) -> Request:
    options = job.options
    return Request(
        tokens=job.prompt.tokens,
        pictures=job.prompt.pictures,
        sampling=replace(options.sampling(index), dry=job.dry),
        limit=job.limit,
        scheme=plan.scheme,
        chunk=plan.chunk,
        marks=plan.marks,
        workspace=plan.traits.workspace,
        stop_tokens=job.stop_tokens,
        thinking=job.thinking,
        grammar=job.grammar,
        logprobs=options.reported_logprobs,
        vocabulary=job.vocabulary,
    )


def _put_all(events: list[Event], answer: Answer) -> None:
    for event in events:
        answer.put(event)
