"""A conversation that keeps its history.

The file is longer than others because each way to answer stands in it twice, for threads and for
asyncio, with its docstring.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Unpack

from magistral_mlx.api.history import (
    attached_to,
    continued,
    open_ended,
    turn_starts,
    without_oldest,
)
from magistral_mlx.api.image_inputs import Images, to_images
from magistral_mlx.api.inputs import PromptLike, to_messages
from magistral_mlx.api.option_fields import OptionFields
from magistral_mlx.api.options import Options
from magistral_mlx.api.stream import Stream
from magistral_mlx.api.tool_loop import answer_with_tools, answer_with_tools_async
from magistral_mlx.chat.messages import Assistant, Message, User
from magistral_mlx.errors import PromptError
from magistral_mlx.runtime.request import Observer, Request

if TYPE_CHECKING:
    from magistral_mlx.api.async_stream import AsyncStream
    from magistral_mlx.chat.prompt import Prompt
    from magistral_mlx.events import Event
    from magistral_mlx.runtime.result import Result


MAX_ROUNDS = 10  # of tool calls


class Model(Protocol):
    """The methods of `Magistral` that a conversation needs."""

    def submit(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        observer: Observer | None = None,
        **changes: Unpack[OptionFields],
    ) -> Request: ...

    def prompt(
        self,
        prompt: PromptLike,
        images: Images = (),
        *,
        options: Options | None = None,
        **changes: Unpack[OptionFields],
    ) -> Prompt: ...

    @property
    def name(self) -> str: ...


class Conversation:
    """Messages, and what a model answers to them. Make one with `Magistral.chat`.

    A question enters the history together with its answer, so there is never half a turn in it:
    if the model fails, or is stopped before it has said anything, the history stays as it was. An
    answer that is stopped later is kept as far as it got; `resume` goes on with it.

    One answer is generated at a time; the next question waits for it. Every method may be called
    from any thread. The history is what has been settled: reading it does not wait for an answer,
    and changing it while one goes on raises `PromptError`. One that has been cancelled ends within
    a token, and is waited for.
    """

    def __init__(self, model: Model, messages: Sequence[Message], options: Options) -> None:
        """Use `Magistral.chat`."""
        self.options = options
        self._model = model
        self._lock = threading.RLock()
        self._messages = tuple(messages)
        self._dropped = 0  # turns at the beginning that are no longer sent
        # An answer on its way, and the messages that it follows.
        self._pending: tuple[Request, list[Message]] | None = None

    # The history

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that has been said, without an answer that goes on."""
        self._record_finished()
        return self._messages

    @property
    def dropped_turns(self) -> int:
        """The oldest turns, which no longer fit and are not sent (overflow="drop")."""
        self._record_finished()
        return self._dropped

    @property
    def tokens(self) -> int:
        """Tokens that `messages` take of the context, but for the end mark of an answer."""
        sent = self._sent(self.messages)
        if not turn_starts(sent):
            return 0
        return len(self._model.prompt(open_ended(sent), options=self.options))

    def append(self, message: PromptLike, images: Images = ()) -> None:
        """Add to the history what was said elsewhere: a text of the user, a message, or several.

        Raises:
            PromptError: what is no message.
            ImageError: an image that cannot be opened.
        """
        added = to_messages(message, images)
        with self._changing():
            self._messages += tuple(added)

    def undo(self) -> tuple[Message, ...]:
        """Take the last turn back: the user's last message and all that followed it.

        User's messages with no answer between them are one turn.

        Returns:
            What was taken back; nothing if there is no turn.
        """
        with self._changing():
            starts = turn_starts(self._messages)
            if not starts:
                return ()
            taken = self._messages[starts[-1] :]
            self._messages = self._messages[: starts[-1]]
            self._forget_dropped()
            return taken

    def edit(self, text: str, images: Images | None = None, *, turn: int = -1) -> None:
        """Put another text in place of what the user said, and forget what followed it.

        `send()` without a prompt then answers anew.

        Args:
            images: in place of what is attached to that message; None keeps its images and files.
            turn: which turn, counted from 0, or from the end with -1.

        Raises:
            PromptError: there is no such turn.
        """
        with self._changing():
            starts = turn_starts(self._messages)
            if not -len(starts) <= turn < len(starts):
                raise PromptError(f"there is no turn {turn}: the conversation has {len(starts)}.")
            start = starts[turn]
            user = self._messages[start]
            assert isinstance(user, User)
            attached = attached_to(user) if images is None else to_images(images)
            [edited] = to_messages(User((*attached, text) if attached else text))
            self._messages = (*self._messages[:start], edited)
            self._forget_dropped()

    def fork(self) -> Conversation:
        """A copy that goes its own way from here."""
        self._record_finished()
        with self._lock:
            copy = Conversation(self._model, self._messages, self.options)
            copy._dropped = self._dropped
            return copy

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation to a JSON file, images included.

        The file appears whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        from magistral_mlx.api.transcript import write_transcript

        write_transcript(Path(path), self.messages, self.options.system, self._model.name)

    def load(self, path: str | PathLike[str]) -> None:
        """Go on with the conversation in a file that `save` wrote, in place of this one.

        Raises:
            PromptError: the file is missing or no conversation; this one then stays as it is.
        """
        from magistral_mlx.api.transcript import read_transcript

        messages, system = read_transcript(Path(path))
        with self._changing():
            self._messages = tuple(messages)
            self._dropped = 0
            self.options = replace(self.options, system=system)

    # Asking

    def send(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        **changes: Unpack[OptionFields],
    ) -> Result:
        """Say something, and wait for the answer. Raises what `Magistral.generate` raises.

        Args:
            prompt: None answers the history as it stands, such as after `append` of a tool's
                result.
            changes: options for this answer alone.
        """
        return self.stream(prompt, images, **changes).result()

    def stream(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        **changes: Unpack[OptionFields],
    ) -> Stream:
        """`send`, event by event."""
        return Stream(self._model, partial(self._submit, prompt, images, changes))

    async def asend(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        **changes: Unpack[OptionFields],
    ) -> Result:
        """`send` for asyncio. Cancelling the task stops the answer within a token."""
        return await self.astream(prompt, images, **changes).result()

    def astream(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        **changes: Unpack[OptionFields],
    ) -> AsyncStream:
        """`stream` for `async for`."""
        from magistral_mlx.api.async_stream import AsyncStream

        return AsyncStream(self._model, partial(self._submit, prompt, images, changes))

    def ask(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        *,
        max_rounds: int = MAX_ROUNDS,
        on_event: Callable[[Event], None] | None = None,
        **changes: Unpack[OptionFields],
    ) -> Result:
        """`send`, calling the Python functions among the `tools` until the answer calls none.

        Calls and results enter the history. What goes wrong in a function is told to the model. A
        call of a tool that is no function ends the loop: the result holds it.

        Args:
            max_rounds: of calls, at most.
            on_event: called in this thread with each event of all answers.

        Raises:
            ToolRoundsExceeded: the model still asks for calls after so many rounds.
            MagistralError: what `send` raises.
        """

        options = Options.of(self.options, changes)
        later = _after_required(changes, options)

        def answer(first: bool) -> Result:
            stream = self.stream(prompt, images, **changes) if first else self.stream(**later)
            if on_event:
                for event in stream:
                    on_event(event)
            return stream.result()

        return answer_with_tools(answer, self.append, options.offered_tools, max_rounds)

    async def aask(
        self,
        prompt: PromptLike | None = None,
        images: Images = (),
        *,
        max_rounds: int = MAX_ROUNDS,
        on_event: Callable[[Event], None] | None = None,
        **changes: Unpack[OptionFields],
    ) -> Result:
        """`ask` for asyncio: functions may be coroutines, and others run in helper threads."""

        options = Options.of(self.options, changes)
        later = _after_required(changes, options)

        async def answer(first: bool) -> Result:
            stream = self.astream(prompt, images, **changes) if first else self.astream(**later)
            async for event in stream:
                if on_event:
                    on_event(event)
            return await stream.result()

        tools = options.offered_tools
        return await answer_with_tools_async(answer, self.append, tools, max_rounds)

    def resume(self, **changes: Unpack[OptionFields]) -> Stream:
        """Go on with the last answer, where it ended.

        Raises:
            PromptError: there is no answer to go on with.
        """
        return Stream(self._model, partial(self._submit_last, changes))

    def aresume(self, **changes: Unpack[OptionFields]) -> AsyncStream:
        """`resume` for `async for`; the first event raises what `resume` does."""
        from magistral_mlx.api.async_stream import AsyncStream

        return AsyncStream(self._model, partial(self._submit_last, changes))

    # Underneath

    def _submit(
        self, prompt: PromptLike | None, images: Images, changes: OptionFields, observer: Observer
    ) -> Request:
        """Queue the answer to the history and `prompt`; it enters the history later."""
        if prompt is None and to_images(images):
            raise PromptError("images were given without a message that could hold them.")
        asked = [] if prompt is None else to_messages(prompt, images)
        with self._settled():
            return self._submit_settled([*self._messages, *asked], changes, observer)

    def _submit_last(self, changes: OptionFields, observer: Observer) -> Request:
        """Queue the continuation of the last answer."""
        with self._settled():
            last = self._messages[-1] if self._messages else None
            if not isinstance(last, Assistant) or last.tool_calls:
                raise PromptError("there is no answer to go on with: the last message is none.")
            messages = [*self._messages[:-1], replace(last, prefix=True)]
            return self._submit_settled(messages, changes, observer)

    def _submit_settled(
        self, messages: list[Message], changes: OptionFields, observer: Observer
    ) -> Request:
        sent = self._sent(messages)
        request = self._model.submit(sent, options=self.options, observer=observer, **changes)
        self._pending = (request, messages)
        return request

    def _sent(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without turns that no longer fit."""
        return without_oldest(messages, self._dropped)

    def _forget_dropped(self) -> None:
        """After the end of the history was cut off: try again with all, unless enough is left."""
        if self._dropped >= len(turn_starts(self._messages)):
            self._dropped = 0

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Hold the history once no answer is on its way, waiting for one that is."""
        while True:
            self._settle()
            with self._lock:
                if self._pending is None:
                    yield
                    return

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the history to change it.

        Raises:
            PromptError: an answer is being generated that has not been cancelled.
        """
        pending = self._pending
        if pending is not None and not pending[0].ending:
            raise PromptError(
                "an answer is being generated, and the history cannot change meanwhile. Wait for "
                "it, or cancel it first."
            )
        with self._settled():
            yield

    def _record_finished(self) -> None:
        """Put a pending answer into the history, unless it goes on."""
        pending = self._pending
        if pending is not None and pending[0].ending:
            self._settle()

    def _settle(self) -> None:
        """Wait for a pending answer, and put it into the history."""
        pending = self._pending
        if pending is None:
            return
        request, messages = pending
        try:
            result = request.wait()
        except Exception:  # the stream has raised it
            result = None
        with self._lock:
            if self._pending is pending:
                if result is not None:
                    self._record(result, messages)
                self._pending = None

    def _record(self, result: Result, messages: list[Message]) -> None:
        """Make the history of what an answer follows and the answer, unless nothing was said."""
        answer = result.message
        if not (answer.text or answer.thinking or answer.tool_calls):
            return
        if result.dropped is not None:
            self._dropped += result.dropped.turns
        last = messages[-1] if messages else None
        if isinstance(last, Assistant) and last.prefix:
            self._messages = (*messages[:-1], continued(last, answer))
        else:
            self._messages = (*messages, answer)


def _after_required(changes: OptionFields, options: Options) -> OptionFields:
    """Options for the answers after a call that was required: no more of them is."""
    return {**changes, "tool_choice": "auto"} if options.tool_choice == "required" else changes
