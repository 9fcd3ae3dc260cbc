"""The models of a server, described by their plan and tokenizer before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from magistral_mlx.api.adapters import open_adapters
from magistral_mlx.api.composer import Composer
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.api.options import Options
from magistral_mlx.api.prompt_length import estimated_overflow
from magistral_mlx.chat.messages import Message, RawPrompt
from magistral_mlx.chat.prompt import Prompt, encode_raw
from magistral_mlx.chat.system import marked_text
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import CheckpointError, ContextOverflow, InvalidOption
from magistral_mlx.files import user_path
from magistral_mlx.hub import DownloadProgress, find_tokenizer
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.library import locate
from magistral_mlx.memory.here import plan_here
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.paths import DEMO
from magistral_mlx.server.errors import UnknownModel
from magistral_mlx.server.model_info import ModelFiles, ModelInfo
from magistral_mlx.server.settings import Settings


class ServedModel:
    """One model: name, capabilities, and its `Magistral` once it has been loaded.

    adapters: those that requests may name, as in "model:adapter" -> their folders.
    """

    def __init__(
        self,
        id: str,
        source: str,
        plan: Plan,
        composer: Composer,
        checkpoint: Checkpoint,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        """`source` is the name for `Magistral.load`."""
        self.adapters = dict(adapters or {})
        has_vision = checkpoint.config.vision is not None
        self.id = id
        self.source = source
        self.plan = plan
        self._composer: Composer | None = composer
        self._in_memory = False
        self._magistral: Magistral | None = None  # kept when closed: it still counts tokens
        self._folder = composer.folder
        folder = composer.folder
        dated = folder if folder.is_file() else folder / "config.json"
        self._created = int(dated.stat().st_mtime)
        self._files = ModelFiles.of(checkpoint)
        self._supports_images = has_vision and composer.tokenizer.has_image_tokens
        self._thinks = composer.tokenizer.has_thinking_tokens
        own = composer.default_system
        self._system_prompt = None if own is None else marked_text(own)

    @property
    def magistral(self) -> Magistral | None:
        """The model as it was last loaded; it may be closed."""
        return self._magistral

    @magistral.setter
    def magistral(self, loaded: Magistral) -> None:
        self._magistral = loaded
        self._in_memory = True
        self._composer = None  # it brings a tokenizer of its own, which takes some 60 MB

    def unloaded(self) -> None:
        """Note that its memory has been given back."""
        self._in_memory = False

    def public_message(self, error: Exception) -> str:
        """Return an error's message with the model's name in place of the path of its files."""
        message = str(error)
        for folder in (self._folder, self._folder.resolve()):
            message = message.replace(str(folder), self.id)
        return message

    @property
    def info(self) -> ModelInfo:
        """Its description for clients."""
        magistral = self._magistral
        return ModelInfo(
            self.id,
            self._created,
            magistral.context if magistral else self.plan.context,
            self._supports_images,
            self._thinks,
            self._in_memory,
            self._system_prompt,
            self._files,
        )

    @property
    def infos(self) -> list[ModelInfo]:
        """The model, and the model with each of its adapters."""
        info = self.info
        adapted = [
            replace(info, id=self.name_with(adapter), parent=self.id) for adapter in self.adapters
        ]
        return [info, *adapted]

    def name_with(self, adapter: str | None) -> str:
        """The name that requests give the model with an adapter, or without one."""
        return self.id if adapter is None else f"{self.id}:{adapter}"

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, whether the model is in memory or not."""
        if self._composer is not None:
            return self._composer.tokenizer
        assert self._magistral is not None
        return self._magistral.tokenizer

    def check_length(self, texts: Iterable[str], contexts: int) -> None:
        """Refuse texts that would fill so many contexts, without tokenizing all of them.

        Raises:
            ContextOverflow: with an estimate of their tokens.
        """
        context = self.info.context
        about = estimated_overflow(texts, contexts * context, self.tokenizer)
        if about is not None:
            raise ContextOverflow(
                f"the text has about {about:,} tokens, and {contexts * context:,} are counted at "
                "most. Send less of it at once.",
                about,
                context,
            )

    def prompt(self, prompt: list[Message] | RawPrompt, options: Options) -> Prompt:
        """Encode a prompt, whether the model is in memory or not."""
        composer = self._composer
        if composer is None:
            assert self._magistral is not None
            return self._magistral.prompt(prompt, options=options)
        if isinstance(prompt, RawPrompt):
            return encode_raw(prompt, composer.tokenizer)
        return composer.prompt(prompt, options)


class ModelRegistry:
    """The models of a server, by name."""

    def __init__(self, settings: Settings, on_progress: DownloadProgress | None = None) -> None:
        """Find all models, downloading what is missing.

        Raises:
            MagistralError: a model that is missing, damaged, or does not fit into this machine.
        """
        self._any_model = settings.any_model
        self._models: dict[str, ServedModel] = {}
        for name in settings.models or (None,):
            model = _describe(name, settings, on_progress)
            if model.id in self._models:
                raise InvalidOption(
                    f"two of the models are called {model.id}: name each once, and give folders "
                    "names of their own."
                )
            self._models[model.id] = model
        for adapter in settings.load.adapters or {}:
            if not any(adapter in model.adapters for model in self):
                raise InvalidOption(
                    f"the adapter {adapter} fits none of the models: {', '.join(self._models)}. "
                    "Serve the one that it was trained on."
                )
        self.first = next(iter(self._models.values()))

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str | None) -> ServedModel:
        """Return the model of that name, with an adapter or without. Raises as `resolve` does."""
        return self.resolve(name)[0]

    def info(self, name: str | None) -> ModelInfo:
        """Describe the model of that name. Raises as `resolve` does."""
        model, adapter = self.resolve(name)
        return next(info for info in model.infos if info.id == model.name_with(adapter))

    def resolve(self, name: str | None) -> tuple[ServedModel, str | None]:
        """Return the model of that name, the first one for None or "", and the adapter.

        A name is that of a model, "model:adapter", or that of an adapter alone where no model has
        it.

        A tag `:latest`, as Ollama's clients append it, is no part of a name. With `any_model` the
        first model has all names that no other has.

        Raises:
            UnknownModel: no such model; the message lists all names.
        """
        for known in (name or self.first.id, (name or "").removesuffix(":latest")):
            if known in self._models:
                return self._models[known], None
            for model in self:
                for adapter in model.adapters:
                    if known in (adapter, model.name_with(adapter)):
                        return model, adapter
        if self._any_model:
            return self.first, None
        assert name is not None
        names = (info.id for model in self for info in model.infos)
        raise UnknownModel(
            f"there is no model {name[:100]!r} here. Known: {', '.join(names)}. "
            "`serve --any-model` lets the first one answer to every name.",
            param="model",
        )


def _describe(
    name: str | None, settings: Settings, on_progress: DownloadProgress | None
) -> ServedModel:
    folder = locate(name, on_progress=on_progress)
    checkpoint = Checkpoint.open(folder)
    load = settings.load
    request = PlanRequest(load.context, load.kv, load.images, load.memory_limit)
    adapters = _adapters(settings, checkpoint, on_progress)
    plan = plan_here(
        checkpoint, name or str(folder), request, load.dtype, adapters=adapters.values()
    )
    tekken = find_tokenizer(folder, str(load.tokenizer) if load.tokenizer else None)
    tokenizer = Tokenizer.load(tekken)
    has_vision = checkpoint.config.vision is not None
    composer = Composer(folder, tokenizer, plan.context, has_vision=has_vision, tekken=tekken)
    folders = {name: adapter.folder for name, adapter in adapters.items()}
    id, source = _id(name, folder), name or str(folder)
    return ServedModel(id, source, plan, composer, checkpoint, folders)


def _adapters(
    settings: Settings, checkpoint: Checkpoint, on_progress: DownloadProgress | None
) -> dict[str, StoredAdapter]:
    """The adapters of a model: all of them, or those that fit it where there are several models."""
    if len(settings.models) < 2:
        return open_adapters(settings.load, checkpoint.config, on_progress)
    fitting: dict[str, StoredAdapter] = {}
    for name, source in (settings.load.adapters or {}).items():
        one = replace(settings.load, adapters={name: source})
        with suppress(CheckpointError):
            fitting |= open_adapters(one, checkpoint.config, on_progress)
    return fitting


def _id(name: str | None, folder: Path) -> str:
    """The name for clients: a hub's name as it is, a folder's last part."""
    if name == DEMO or (name is not None and not user_path(name).exists()):
        return name
    return repo_of_snapshot(folder) or folder.resolve().name
