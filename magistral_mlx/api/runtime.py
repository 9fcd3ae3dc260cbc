"""The device's half of a loaded model. Everything in here runs on the worker thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.api.activity import MemoryUse
from magistral_mlx.api.composer import Job
from magistral_mlx.api.disk_cache import DiskCacheConfig
from magistral_mlx.api.speculation import Guessing, load_drafter
from magistral_mlx.backend import DTYPES, free_memory, mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.generate import Generation, Request, generate
from magistral_mlx.engine.images import ImageKey, token_keys
from magistral_mlx.engine.prefill import ComputedPrefix, image_keys
from magistral_mlx.engine.prefix_cache import PrefixCache, PrefixCacheStats
from magistral_mlx.errors import MagistralError, OutOfMemory
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.peak import Shape, predict
from magistral_mlx.memory.plan import Plan, gib
from magistral_mlx.model.magistral import MagistralModel


class LoadAborted(MagistralError):
    """Nobody waits for the model any more."""


class Runtime:
    """A model in memory, and what is generated with it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        dtype: str | None,
        disk_cache: DiskCacheConfig | None = None,
        draft: Checkpoint | None = None,
    ) -> None:
        """`disk_cache`: where prompts are kept for later runs. `draft`: a model that guesses."""
        self._checkpoint = checkpoint
        self.plan = plan
        self._dtype = dtype
        self._disk_cache = disk_cache
        self._draft = draft
        self.when_idle: Callable[[], None] | None = None  # any thread: `keep_some` has work
        self._model: MagistralModel | None = None
        self._prefixes: PrefixCache | None = None
        self._guessing: Guessing | None = None

    def load(self, on_progress: Callable[[int, int], None], aborted: Flag) -> None:
        """Read the decoder. The vision tower stays on disk until an image comes.

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
        plan = self.plan
        drafter = load_drafter(self._draft, model, plan, report) if self._draft else None
        self._guessing = Guessing(plan, drafter)
        disk = None
        if self._disk_cache is not None:
            disk = self._disk_cache.open(self._checkpoint, plan, str(model.dtype))
            if self.when_idle is not None:
                disk.notify_capacity(self.when_idle)
        self._prefixes = PrefixCache(
            plan.caches,
            lambda: model.make_caches(plan.scheme, plan.profile.workspace),
            model.config.image_token_id,
            disk,
            self._see,
        )

    def close(self) -> None:
        """Give the memory back, with nothing left in flight when the thread ends."""
        if self._prefixes is not None:
            self._prefixes.close()
        self._model = self._prefixes = self._guessing = None
        mx.synchronize()
        free_memory()
        mx.clear_streams()
        PROCESS.release(self.plan)

    def release(self) -> None:
        """Drop what comes back by itself: what is kept of earlier prompts, and the tower."""
        if self._prefixes is not None:
            self._prefixes.release()
        if self._model is not None and self._model.vision_loaded:
            self._model.drop_vision()
        free_memory()

    def keep_some(self) -> bool:
        """Hand something to the disk, if there is one -> whether to go on with that."""
        return self._prefixes is not None and self._prefixes.write_some()

    @property
    def model(self) -> MagistralModel:
        """The loaded model."""
        assert self._model is not None, "it is loaded first"
        return self._model

    @property
    def prefixes(self) -> PrefixCache:
        """What is kept of earlier prompts."""
        assert self._prefixes is not None, "it is loaded first"
        return self._prefixes

    @property
    def memory(self) -> MemoryUse:
        """What it holds, the caches of what runs apart; any thread may ask."""
        model, prefixes = self._model, self._prefixes
        if model is None or prefixes is None:
            return MemoryUse()
        weights, draft = self.plan.model.weights, self.plan.model.draft
        return MemoryUse(
            weights=weights.decoder
            + (weights.vision if model.vision_loaded else 0)
            + (draft.decoder if draft else 0),
            kept=prefixes.nbytes,
            buffers=mx.get_cache_memory(),
            limit=self.plan.limit,
        )

    @property
    def counts(self) -> PrefixCacheStats:
        """What became of the prompts so far; any thread may ask."""
        prefixes = self._prefixes
        return PrefixCacheStats() if prefixes is None else prefixes.counts

    def generate(
        self,
        job: Job,
        index: int,
        start: ComputedPrefix | None,
        *,
        images: Sequence[ImageKey],
    ) -> Generation:
        """Begin sample `index` of a job.

        Args:
            start: what is in caches of its prompt already.
            images: what tells its images from others.

        Raises:
            InvalidOption: an option that this model's vocabulary does not allow.
        """
        assert self._guessing is not None, "it is loaded first"
        options, plan = job.options, self.plan
        request = Request(
            tokens=job.prompt.tokens,
            images=job.prompt.images,
            sampling=replace(options.sampling(index), dry=job.dry),
            limit=job.limit,
            scheme=plan.scheme,
            chunk=plan.chunk,
            snapshots=plan.snapshots,
            workspace=plan.profile.workspace,
            stop_tokens=job.stop_tokens,
            thinking=job.thinking,
            grammar=job.grammar,
            logprobs=options.reported_logprobs,
            vocabulary=job.vocabulary,
            image_keys=images,
            seen=self.prefixes,
            speculation=self._guessing.speculation(options.speculation),
        )
        return generate(self.model, request, start)

    def keys(self, job: Job) -> tuple[tuple[ImageKey, ...], NDArray[np.int64]]:
        """What tells a job's images, and its prompt's tokens, (L,), from those of others."""
        config, prompt = self.model.config, job.prompt
        images = image_keys(config, prompt.images)
        return images, token_keys(prompt.tokens, images, config.image_token_id)

    def short_of_memory(self) -> bool:
        """Whether there is too little memory even without what is kept of earlier prompts."""
        if mx.get_active_memory() <= PROCESS.allowed(self.plan):
            return False
        self.prefixes.release()
        return mx.get_active_memory() > PROCESS.allowed(self.plan)

    def check_images(self, job: Job) -> None:
        """Refuse images that would not fit beside the rest of the plan.

        Raises:
            OutOfMemory: saying how many were planned for.
        """
        plan, images = self.plan, job.prompt.images
        sizes = tuple((pixels.shape[1], pixels.shape[2]) for pixels in images)
        if not sizes or len(sizes) <= plan.images:
            return
        shape = Shape(len(job.prompt), 1, plan.chunk, sizes)
        model = plan.model
        alone = predict(model.config, model.weights, plan.scheme, shape, plan.profile)
        peak = replace(alone, weights=plan.peak.weights)  # with those of a draft model
        limit = PROCESS.limit(plan)
        if peak.total > limit:
            n = len(sizes)
            what = f"{n} images need" if n > 1 else "an image of that size needs"
            raise OutOfMemory(
                f"{what} {gib(peak.total)} with this prompt, and {gib(limit)} are there: memory "
                f"was planned for {plan.images}. Send fewer or smaller images, or load the "
                f"model with images={n} to plan for them."
            )

    def _see(self) -> None:
        """Have the vision tower in memory.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not self.model.vision_loaded:
            self._load_vision(self.model)

    def _load_vision(self, model: MagistralModel) -> None:
        try:
            load_vision(model, self._checkpoint)
        except BaseException:
            if model.vision_loaded:
                model.drop_vision()  # half a tower must not pass for one
            raise
