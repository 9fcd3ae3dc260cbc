"""From a name to a model that waits for questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx.api.adapters import open_adapters
from magistral_mlx.api.composer import Composer
from magistral_mlx.api.disk_cache import DiskCacheConfig
from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.models import download_progress
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.distributed.ranks import Ranks, join_ranks
from magistral_mlx.errors import InvalidOption, TokenizerError
from magistral_mlx.hub import find_tokenizer
from magistral_mlx.hub.adapters import adapter_name
from magistral_mlx.library import locate
from magistral_mlx.memory.here import hold_plan
from magistral_mlx.memory.plan import PlanRequest
from magistral_mlx.runtime.model_runner import ModelRunner
from magistral_mlx.runtime.progress import OnProgress
from magistral_mlx.runtime.session import Session
from magistral_mlx.runtime.speculation import check_vocabulary

if TYPE_CHECKING:
    from magistral_mlx.memory.plan import Plan


@dataclass(frozen=True)
class Loading:
    """A model's name and options, and the callbacks of its loading; see `Magistral.load`."""

    name: str | Path | None
    options: LoadOptions
    on_plan: Callable[[Plan], None] | None
    on_progress: OnProgress | None

    def run(self) -> tuple[Checkpoint, Plan, Composer, Session, str | None]:
        """Find it, plan it, load it. The last item is the name of the adapter for all requests.

        Raises what `Magistral.load` raises.
        """
        options = self.options
        leader = join_ranks()
        request = PlanRequest(
            options.context, options.kv, options.images, options.memory_limit, options.wire
        )
        name = None if self.name is None else str(self.name)
        downloading = download_progress(self.on_progress)
        checkpoint = Checkpoint.open(locate(name, on_progress=downloading))
        draft = (
            None
            if options.draft is None
            else Checkpoint.open(locate(str(options.draft), on_progress=downloading))
        )
        ranks = None
        if leader is not None:
            ranks = Ranks(leader, checkpoint)
            _refuse_adapters(options)
        adapters = open_adapters(options, checkpoint.config, downloading)
        source = name or str(checkpoint.folder)
        disk = DiskCacheConfig.of(options)
        tokenizer = None if options.tokenizer is None else str(options.tokenizer)
        open_disk = disk.open if disk else None
        if ranks is None:
            plan = hold_plan(checkpoint, source, request, options.dtype, draft, adapters.values())
        else:
            checkpoint, plan = ranks.hold_plan(source, request, options.dtype, draft, options.split)
        runner = ModelRunner(
            checkpoint, plan, options.dtype, open_disk, draft, tokenizer, adapters, ranks
        )
        session = Session(runner, options.parallel)  # whose end releases the plan
        try:
            composer = self._load(checkpoint, plan, session, draft)
        except BaseException:
            session.close()
            session.wait_closed()
            raise
        default = None if options.adapter is None else adapter_name(options.adapter)
        return checkpoint, plan, composer, session, default

    def _load(
        self, checkpoint: Checkpoint, plan: Plan, session: Session, draft: Checkpoint | None
    ) -> Composer:
        if self.on_plan:
            self.on_plan(plan)
        loaded = session.load()
        # While the worker reads weights:
        given = self.options.tokenizer
        tekken = find_tokenizer(checkpoint.folder, None if given is None else str(given))
        words = _load_tokenizer(checkpoint, tekken)
        if draft:
            check_vocabulary(draft, checkpoint, words)
        has_vision = checkpoint.config.vision is not None
        composer = Composer(
            checkpoint.folder,
            words,
            plan.context,
            has_vision=has_vision,
            drafts=draft is not None,
            tekken=tekken,
        )
        composer.vocabulary  # noqa: B018  (made now, so that the first answer need not wait)
        loaded(self.on_progress)
        return composer


def _refuse_adapters(options: LoadOptions) -> None:
    if options.adapter is not None or options.adapters:
        raise InvalidOption(
            "adapter changes a model on one machine only; convert the model with the adapter "
            "merged into it, or load it without --machines."
        )


def _load_tokenizer(checkpoint: Checkpoint, tekken: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(tekken)
    held = checkpoint.config.text.vocab_size
    if tokenizer.vocab_size > held:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model in "
            f"{checkpoint.folder} only {held:,}. Name its own one as the tokenizer."
        )
    return tokenizer
