"""The device's half of a loaded model; it runs on the worker thread alone.

The file is longer than others because weights, adapters, tower and prefix cache share one memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import DTYPES, free_memory, mx
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.adapters.load import compute_gains, load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.distributed.ranks import Ranks
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.images import ImageKey, image_keys, token_keys
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.prefix_cache import PrefixCache, PrefixCacheStats
from magistral_mlx.engine.sequence import SequenceState, Token
from magistral_mlx.errors import InvalidOption, LoadAborted, OutOfMemory, RankLost
from magistral_mlx.events import Prefill
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.peak import Shape, adapter_bytes, head_rows, predict
from magistral_mlx.memory.plan import Plan, gib
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.runtime.activity import MemoryUse
from magistral_mlx.runtime.generation_request import GenerationRequest, nth_seed
from magistral_mlx.runtime.precision import default_dtype, load_in_default_dtype
from magistral_mlx.runtime.speculation import SpeculationPolicy, load_drafter

BuildDisk = Callable[[Path, int, str, KVScheme], DiskPrefixCache]  # root, limit, identity, scheme


class ModelRunner:
    """A model in memory, its prefix cache, and its passes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        dtype: str | None,
        open_disk: Callable[[Checkpoint, Plan, str, BuildDisk], DiskPrefixCache] | None = None,
        draft: Checkpoint | None = None,
        tokenizer: str | None = None,
        adapters: Mapping[str, StoredAdapter] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`open_disk`: opens a prefix cache on disk for a dtype, as it is given to build.

        `draft`: a draft model. `dtype`: None for the best one here. `tokenizer`: in place of its
        own. `adapters`: by name.
        `ranks`: those over which the model is split; `checkpoint` and `plan` are of rank 0's part.
        """
        self._checkpoint = checkpoint
        self.plan = plan
        self._dtype = dtype
        self._open_disk = open_disk
        self._ranks = ranks
        self._draft = draft
        self._tokenizer = tokenizer
        self.when_idle: Callable[[], None] | None = None  # any thread: `keep_some` has work
        self._model: MagistralModel | None = None
        self._prefixes: PrefixCache | None = None
        self._speculation: SpeculationPolicy | None = None
        self.last_notes: tuple[str, ...] = ()  # of the disk cache, once it is closed
        self._planned_adapters = adapters or {}
        self.adapters: Mapping[str, Adapter] = {}  # by name; replaced as a whole, for any thread
        # Dropped ones that are in use as well; likewise.
        self._held_adapters: tuple[ref[Adapter], ...] = ()

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

        plan = self.plan
        model: MagistralModel
        if self._ranks is not None:
            dtype = DTYPES[self._dtype] if self._dtype else default_dtype(self._checkpoint)
            model = self._ranks.load(self._checkpoint, plan, dtype, report)
        elif self._dtype is None:
            model = load_in_default_dtype(
                self._checkpoint, report, images=plan.images > 0, tokenizer=self._tokenizer
            )
        else:
            model = load_model(self._checkpoint, DTYPES[self._dtype], report)
        self._model = model
        drafter = load_drafter(self._draft, model, plan, report) if self._draft else None
        self._speculation = SpeculationPolicy(plan, drafter)
        disk = None
        if self._open_disk is not None:
            build = DiskPrefixCache if self._ranks is None else self._ranks.disk
            disk = self._open_disk(self._checkpoint, plan, str(model.dtype), build)
            if self.when_idle is not None:
                disk.notify_capacity(self.when_idle)
        self._prefixes = PrefixCache(
            plan.caches,
            lambda: model.make_caches(plan.scheme, plan.profile.workspace),
            model.config.image_token_id,
            disk,
            self._load_tower,
        )
        for name, stored in self._planned_adapters.items():
            self.load_adapter(name, stored)

    # Adapters

    def load_adapter(self, name: str, stored: StoredAdapter) -> None:
        """Load an adapter; one of the same name is replaced for what begins from now on.

        Raises:
            CheckpointError: its file cannot be read, or holds infinities or NaNs.
            InvalidOption: the model is split over several machines.
        """
        if self._ranks is not None:
            raise InvalidOption(
                "adapter changes a model on one machine only; convert the model with the adapter "
                "merged into it, or load it without --machines."
            )
        adapter = load_adapter(stored, self.model)
        self._held_adapters = (*map(ref, self._adapters_in_memory()), ref(adapter))
        self.adapters = {**self.adapters, name: adapter}
        self._share()

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter: its memory comes back when nothing uses it any more."""
        self.adapters = {other: one for other, one in self.adapters.items() if other != name}
        self._share()

    def lent(self, more: int = 0) -> int:
        """Bytes that adapters take, `more` of them and work with them included, beyond the plan."""
        plan = self.plan
        held = sum(adapter.nbytes for adapter in self._adapters_in_memory()) + more
        if held and not plan.model.adapters:
            rows = min(plan.chunk, plan.context)
            held += adapter_bytes(plan.model.config.text, rows, plan.profile)
        return max(0, held - plan.model.adapters)

    def _adapters_in_memory(self) -> list[Adapter]:
        return [adapter for held in self._held_adapters if (adapter := held()) is not None]

    def _share(self) -> None:
        """Let the prefix cache have what the adapters leave."""
        self.prefixes.budget = self.plan.caches - self.lent()

    def close(self) -> None:
        """Give the memory back, with nothing left in flight when the thread ends."""
        try:
            if self._prefixes is not None:
                self._prefixes.close()
                self.last_notes = tuple(self._prefixes.take_notes())
            if self._ranks is not None:
                self._ranks.close()
        finally:
            self._model = self._prefixes = self._speculation = None
            self.adapters = {}
            try:
                mx.synchronize()
                free_memory()
            finally:
                PROCESS.release(self.plan)

    def release(self) -> None:
        """Drop what comes back by itself: what is kept of earlier prompts, and the tower."""
        if self._prefixes is not None:
            self._prefixes.release()
        if self._model is not None and self._model.vision_loaded:
            self._model.drop_vision()
        free_memory()

    def drop_unplanned_tower(self) -> None:
        """Drop the vision tower if it is in memory, and not in the plan."""
        if self.model.vision_loaded and not self.plan.peak.vision:
            self.model.drop_vision()
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
        """Prefix cache of earlier prompts."""
        assert self._prefixes is not None, "it is loaded first"
        return self._prefixes

    @property
    def lost(self) -> RankLost | None:
        """Why the model can answer no more, once a rank has been lost; any thread may ask."""
        return None if self._ranks is None else self._ranks.error

    def notify_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread of its own, when a rank is lost."""
        if self._ranks is not None:
            self._ranks.notify_lost(callback)

    def explain(self, error: BaseException) -> BaseException:
        """Return the error that ends all answers, where `error` ended a pass."""
        return error if self._ranks is None else self._ranks.explain(error)

    @property
    def disk_problem(self) -> str | None:
        """Why the disk cache keeps nothing more, if so; any thread may ask."""
        return None if self._prefixes is None else self._prefixes.disk_problem

    @property
    def memory(self) -> MemoryUse:
        """Memory in use, without the caches of running requests; any thread may ask."""
        model, prefixes = self._model, self._prefixes
        if model is None or prefixes is None:
            return MemoryUse()
        weights, draft = self.plan.model.weights, self.plan.model.draft
        return MemoryUse(
            weights=weights.decoder
            + (weights.vision if model.vision_loaded else 0)
            + (draft.decoder if draft else 0)
            + sum(adapter.nbytes for adapter in self._adapters_in_memory()),
            kept=prefixes.nbytes,
            buffers=mx.get_cache_memory(),
            limit=self.plan.limit,
        )

    @property
    def counts(self) -> PrefixCacheStats:
        """Counts of prefix reuse so far; any thread may ask."""
        prefixes = self._prefixes
        return PrefixCacheStats() if prefixes is None else prefixes.counts

    def start(
        self,
        inputs: GenerationRequest,
        index: int,
        images: Sequence[ImageKey],
        prefilled: ComputedPrefix | None,
    ) -> SequenceState:
        """Begin sample `index` of a request.

        Args:
            images: keys of its images. prefilled: caches that hold the beginning of its prompt.

        Raises:
            InvalidOption: an option that this model's vocabulary does not allow.
        """
        assert self._speculation is not None, "it is loaded first"
        self._share()
        plan, sampling = self.plan, inputs.sampling
        shape = Shape(len(inputs.prompt), 0, plan.chunk)
        return SequenceState(
            self.model,
            SequenceInputs(
                tokens=inputs.prompt.tokens,
                images=inputs.prompt.images,
                sampling=replace(sampling, seed=nth_seed(sampling.seed, index)),
                limit=inputs.limit,
                scheme=plan.scheme,
                chunk=plan.chunk,
                snapshots=plan.snapshots,
                workspace=plan.profile.workspace,
                stop_tokens=inputs.stop_tokens,
                minimum=inputs.minimum,
                thinking=inputs.thinking,
                grammar=inputs.grammar,
                logprobs=inputs.logprobs,
                prompt_logprobs=None if index else inputs.prompt_logprobs,
                head_rows=head_rows(plan.model.config.text, plan.scheme, shape, plan.profile),
                vocabulary=inputs.vocabulary,
                image_keys=images,
                image_features=self.prefixes,
                speculation=self._speculation.speculation(inputs.speculation),
                adapter=inputs.adapter,
            ),
            prefilled,
        )

    def prefill(self, sequence: SequenceState, most: int) -> Prefill:
        """Encode an image, or put a chunk of `most` tokens at most into the caches."""
        return sequence.prefill(most)

    def decode(self, sequences: Sequence[SequenceState]) -> list[tuple[Token, ...]]:
        """One pass over the weights for all `sequences` -> the new tokens of each."""
        return decode(self.model, sequences)

    def keys_of(self, inputs: GenerationRequest) -> tuple[tuple[ImageKey, ...], NDArray[np.int64]]:
        """Return the keys of a prompt's images and of its tokens, (L,)."""
        config, prompt = self.model.config, inputs.prompt
        images = image_keys(config, prompt.images, inputs.adapter)
        keys = token_keys(prompt.tokens, images, config.image_token_id, inputs.adapter_key)
        return images, keys

    def short_of_memory(self) -> bool:
        """Whether there is too little memory even without what is kept of earlier prompts."""
        if mx.get_active_memory() <= PROCESS.allowed(self.plan):
            return False
        self.prefixes.release()
        return mx.get_active_memory() > PROCESS.allowed(self.plan)

    def check_images(self, inputs: GenerationRequest) -> None:
        """Refuse images that would not fit beside the rest of the plan.

        Raises:
            OutOfMemory: saying how many were planned for.
        """
        plan, images = self.plan, inputs.prompt.images
        sizes = tuple((pixels.shape[1], pixels.shape[2]) for pixels in images)
        if not sizes or len(sizes) <= plan.images:
            return
        shape = Shape(len(inputs.prompt), 1, plan.chunk, sizes)
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

    def _load_tower(self) -> None:
        """Have the vision tower in memory.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not self.model.vision_loaded:
            self._load_vision(self.model)

    def _load_vision(self, model: MagistralModel) -> None:
        try:
            load_vision(model, self._checkpoint)
            for adapter in self._adapters_in_memory():
                compute_gains(adapter, model)
        except BaseException:
            if model.vision_loaded:
                model.drop_vision()  # half a tower must not pass for one
            raise
