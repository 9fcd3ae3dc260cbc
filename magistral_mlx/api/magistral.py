"""`Magistral`: a loaded model that is asked from any thread.

The file is longer than others because it is the public face of a model: each method has its
docstring, and most a twin for asyncio.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from magistral_mlx.api.adapters import check_adapter_name, chosen_adapter
from magistral_mlx.api.image_inputs import Images, to_images
from magistral_mlx.api.inputs import PromptLike, to_messages
from magistral_mlx.api.load_options import LoadFields, LoadOptions
from magistral_mlx.api.option_fields import OptionFields
from magistral_mlx.api.options import Options
from magistral_mlx.api.stream import Stream
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.chat.prompt import encode_raw
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.errors import PromptError
from magistral_mlx.hub.adapters import adapter_name, locate_adapter
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.option_spec import Name, with_changes
from magistral_mlx.paths import DEMO, demo_dir
from magistral_mlx.runtime.progress import OnProgress

if TYPE_CHECKING:
    from magistral_mlx.api.async_stream import AsyncStream
    from magistral_mlx.api.composer import Composer
    from magistral_mlx.api.conversation import Conversation
    from magistral_mlx.chat.messages import System
    from magistral_mlx.chat.prompt import Prompt
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.events import Event
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.activity import Activity
    from magistral_mlx.runtime.request import Observer, Request
    from magistral_mlx.runtime.result import Result
    from magistral_mlx.runtime.session import Session


class Magistral:
    """A loaded model with its tokenizer. Make one with `Magistral.load`.

    Every method may be called from any thread. All of MLX's work happens on one worker thread,
    which answers several calls at once: each token of all of them takes one pass over the weights,
    and what each one gets is what it would get alone. Calls that do not fit into memory beside
    those that run wait for their turn, in the order in which they came. `close` it when done, or
    use it in a `with` statement.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        composer: Composer,
        session: Session,
        adapter: str | None = None,
    ) -> None:
        """Use `Magistral.load`."""
        self.plan = plan
        self._default_adapter = adapter
        self._checkpoint = checkpoint
        self._composer = composer
        self.session = session
        # One that nobody holds any more gives its memory back.
        weakref.finalize(self, session.close).atexit = False

    # Loading and closing

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path | None = None,
        *,
        options: LoadOptions | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: OnProgress | None = None,
        **changes: Unpack[LoadFields],
    ) -> Magistral:
        """Load a model: a folder, a hub name, "demo", or None for the one that is on this machine.

        The decoder is loaded now, the vision tower with the first image.

        Args:
            options: see `LoadOptions`; `changes` override single ones by name.
            on_plan: called in this thread with what was planned, before weights are read. Its
                `warning`, which `plan.warning` of the loaded model gives as well, is a sentence
                for a person where less memory is free than a full context needs, else None.
            on_progress: called in this thread while files are downloaded and read. What it raises
                stops the load.

        Raises:
            MagistralError: no such model, or one that is damaged or of another architecture.
            OutOfMemory: it would not fit into this machine, or not with what is asked for.
        """
        from magistral_mlx.api.loading import Loading

        options = with_changes(LoadOptions, options, changes)
        return cls(*Loading(name_or_dir, options, on_plan, on_progress).run())

    @classmethod
    async def aload(
        cls,
        name_or_dir: str | Path | None = None,
        *,
        options: LoadOptions | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: OnProgress | None = None,
        **changes: Unpack[LoadFields],
    ) -> Magistral:
        """`load` without blocking the event loop; `on_progress` is called in the loop's thread.

        Cancelling the task stops the download or the reading, and so does an exception that
        `on_progress` raises. `on_plan` is called in a helper thread.
        """
        from magistral_mlx.api.async_load import load_in_thread

        def load(report: OnProgress) -> Magistral:
            return cls.load(
                name_or_dir, options=options, on_plan=on_plan, on_progress=report, **changes
            )

        return await load_in_thread(load, on_progress)

    def close(self) -> None:
        """Stop what is being generated and give the memory back. It cannot be asked afterwards."""
        self.session.close()
        self.session.wait_closed()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    def release_memory(self) -> None:
        """Free what comes back by itself: MLX's buffers, the vision tower, and earlier prompts.

        For an app that is told that memory is short. It does not wait: it takes effect within a
        token if something is being generated. The tower is read again with the next image.

        Raises:
            ModelClosed: the model has been closed.
        """
        self.session.release()

    # Adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters, for the option `adapter`."""
        return tuple(self.session.adapters)

    def load_adapter(self, name_or_dir: str | Path, name: str | None = None) -> str:
        """Load a LoRA adapter beside the model, which goes on answering -> its name.

        One of the same name is replaced; what runs with that goes on to its end.

        Args:
            name_or_dir: a folder that PEFT or mlx-lm wrote, or a name on the hub.
            name: for the option `adapter`; None is the last part of `name_or_dir`.

        Raises:
            InvalidOption: a name that none can have.
            ModelNotFound: no such adapter.
            CheckpointError: a damaged one, or one of another model.
            OutOfMemory: it does not fit beside the plan.
            ModelClosed: the model has been closed.
        """
        self.session.check_open()
        Name("DIR_OR_NAME").validate("name_or_dir", name_or_dir)
        given = adapter_name(name_or_dir) if name is None else check_adapter_name(name)
        folder = locate_adapter(str(name_or_dir))
        self.session.load_adapter(given, StoredAdapter.open(folder, self._checkpoint.config))
        return given

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter. Answers that run with it go on, and then its memory comes back.

        Raises:
            InvalidOption: none of that name is loaded.
            ModelClosed: the model has been closed.
        """
        self.session.check_open()
        chosen_adapter(self.session.adapters, check_adapter_name(name), None)
        self.session.drop_adapter(name)

    def __enter__(self) -> Magistral:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Magistral:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # What it is

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self._checkpoint.folder

    @property
    def name(self) -> str:
        """The model's name: "owner/name" of one from the hub, else the name of its folder."""
        folder = self.folder
        if folder == demo_dir():
            return DEMO
        return repo_of_snapshot(folder) or folder.resolve().name

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._composer.context

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: text to ids and back, and the ids of control tokens."""
        return self._composer.tokenizer

    @property
    def supports_images(self) -> bool:
        """Whether it can be shown images."""
        return self._checkpoint.config.vision is not None and self.tokenizer.has_image_tokens

    @property
    def thinks(self) -> bool:
        """Whether it thinks before it answers."""
        return self.tokenizer.has_thinking_tokens

    @property
    def closed(self) -> bool:
        """Whether it has been closed, and cannot be asked any more."""
        return self.session.closed

    @property
    def activity(self) -> Activity:
        """Live statistics: answers that run and wait, prompts so far, memory by kind.

        It is cheap, and does not wait for the model: for a status line, or a server's metrics.
        """
        return self.session.activity

    @property
    def default_system(self) -> System | None:
        """The checkpoint's own system prompt, or the model card's."""
        return self._composer.default_system

    # Asking

    def generate(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        on_event: Callable[[Event], None] | None = None,
        **changes: Unpack[OptionFields],
    ) -> Result:
        """Answer a prompt and wait for the whole answer.

        Args:
            prompt: a user's text, a message, or a list of messages; dicts are those of OpenAI's
                chat API. A `RawPrompt` goes to the model without the chat's template.
            images: paths, bytes, PIL images or data URLs, put before the text.
            options: see `Options`; `changes` override single ones by name.
            on_event: called in this thread with each event as it comes.

        Raises:
            PromptError: messages that make no prompt; ContextOverflow if they are too long.
            ImageError: an image that cannot be opened, or a model that cannot see.
            InvalidOption: an option that is unknown or out of range.
            ModelClosed: the model has been closed.
        """
        stream = self._stream(prompt, images, options, changes)
        if on_event:
            for event in stream:
                on_event(event)
        return stream.result()

    def stream(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> Stream:
        """Answer a prompt, event by event. Takes and raises what `generate` does.

        What is wrong with the prompt is raised here; what goes wrong later, by the stream.
        """
        return self._stream(prompt, images, options, changes)

    async def agenerate(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> Result:
        """`generate` for asyncio. Cancelling the task stops the answer within a token."""
        return await self._astream(prompt, images, options, changes).result()

    def astream(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> AsyncStream:
        """`stream` for `async for`. Images are opened and tokens counted in a helper thread.

        What is wrong with the prompt is raised with the first event.
        """
        return self._astream(prompt, images, options, changes)

    def chat(
        self,
        messages: PromptLike = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> Conversation:
        """A conversation that keeps its history, with these options as its own.

        Args:
            messages: what has been said before.
        """
        from magistral_mlx.api.conversation import Conversation

        return Conversation(self, to_messages(messages), Options.of(options, changes))

    def prompt(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> Prompt:
        """Return the model's input: token ids and pixels; its `len` is the token count.

        Raises:
            PromptError: messages that make no prompt.
            ImageError: an image that cannot be opened, or a model that cannot see.
        """
        options = Options.of(options, changes)
        if isinstance(prompt, RawPrompt):
            _check_no_images(images)
            return encode_raw(prompt, self.tokenizer)
        return self._composer.prompt(to_messages(prompt, images), options)

    def submit(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        observer: Observer | None = None,
        **changes: Unpack[OptionFields],
    ) -> Request:
        """Queue a prompt, and return the request without waiting for anything.

        What streams stand on. Takes and raises what `stream` does.

        Args:
            observer: called on the worker thread with each event, and with `RequestEnd` after the
                last; it must not block.
        """
        return self._submit(prompt, images, options, changes, observer)

    # Underneath

    def _stream(
        self,
        prompt: PromptLike,
        images: Images,
        options: Options | None,
        changes: OptionFields,
    ) -> Stream:
        return Stream(self, partial(self._submit, prompt, images, options, changes))

    def _astream(
        self,
        prompt: PromptLike,
        images: Images,
        options: Options | None,
        changes: OptionFields,
    ) -> AsyncStream:
        from magistral_mlx.api.async_stream import AsyncStream

        return AsyncStream(self, partial(self._submit, prompt, images, options, changes))

    def _submit(
        self,
        prompt: PromptLike,
        images: Images,
        options: Options | None,
        changes: OptionFields,
        observer: Observer | None,
    ) -> Request:
        """Do all that can be done before it queues, then queue it."""
        self.session.check_open()
        options = Options.of(options, changes)
        adapter = chosen_adapter(self.session.adapters, options.adapter, self._default_adapter)
        if isinstance(prompt, RawPrompt):
            _check_no_images(images)
            inputs = self._composer.compose_raw(prompt, options)
        else:
            inputs = self._composer.compose(to_messages(prompt, images), options)
        return self.session.submit(replace(inputs, adapter=adapter), observer)


def _check_no_images(images: Images) -> None:
    if to_images(images):
        raise PromptError("a RawPrompt has no place for images: show them in a message.")
