"""A conversation that keeps its history."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from magistral_mlx.api.history import turn_starts, without_oldest
from magistral_mlx.api.inputs import Images, PromptLike, to_images, to_messages, with_images
from magistral_mlx.api.option_fields import OptionFields
from magistral_mlx.api.options import Options
from magistral_mlx.api.stream import Stream
from magistral_mlx.chat.messages import Assistant, Image, Message, ToolResult, User
from magistral_mlx.errors import PromptError
from magistral_mlx.runtime.request import Observer, Request

if TYPE_CHECKING:
    from magistral_mlx.api.async_stream import AsyncStream
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.runtime.result import Result


class Conversation:
    """Messages, and what a model answers to them. Make one with `Magistral.chat`.

    A question enters the history together with its answer, so there is never half a turn in it:
    if the model fails, or is stopped before it has said anything, the history stays as it was. An
    answer that is stopped later is kept as far as it got; `resume` goes on with it.

    One answer is generated at a time; every method may be called from any thread.
    """

    def __init__(self, magistral: Magistral, messages: Sequence[Message], options: Options) -> None:
        """Use `Magistral.chat`."""
        self.options = options
        self._magistral = magistral
        self._lock = threading.RLock()
        self._messages = list(messages)
        self._dropped = 0  # turns at the beginning that are no longer sent
        self._pending: tuple[Request, list[Message]] | None = None

    # The history

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that has been said; waits for an answer that is being generated."""
        with self._settled():
            return tuple(self._messages)

    @property
    def dropped_turns(self) -> int:
        """The oldest turns, which no longer fit and are not sent (overflow="drop")."""
        with self._settled():
            return self._dropped

    @property
    def tokens(self) -> int:
        """Tokens that the conversation takes of the context, but for the end mark of an answer."""
        with self._settled():
            sent = self._sent(self._messages)
            if not turn_starts(sent):
                return 0
            return len(self._magistral.prompt(_open_ended(sent), options=self.options))

    def append(self, message: PromptLike, images: Images = ()) -> None:
        """Add to the history what was said elsewhere: a text of the user, a message, or several.

        Raises:
            PromptError: what is no message.
            ImageError: an image that cannot be opened.
        """
        added = to_messages(message, images)
        with self._settled():
            self._messages += added

    def undo(self) -> tuple[Message, ...]:
        """Take the last turn back: the user's last message and all that followed it.

        User's messages with no answer between them are one turn.

        Returns:
            What was taken back; nothing if there is no turn.
        """
        with self._settled():
            start = self._start_of_last_turn()
            if start is None:
                return ()
            taken = tuple(self._messages[start:])
            del self._messages[start:]
            self._forget_dropped()
            return taken

    def edit(self, text: str, images: Images | None = None, *, turn: int = -1) -> None:
        """Put another text in place of what the user said, and forget what followed it.

        `send()` without a prompt then answers anew.

        Args:
            images: None keeps the images of that message.
            turn: which turn, counted from 0, or from the end with -1.

        Raises:
            PromptError: there is no such turn.
        """
        with self._settled():
            starts = turn_starts(self._messages)
            if not -len(starts) <= turn < len(starts):
                raise PromptError(f"there is no turn {turn}: the conversation has {len(starts)}.")
            start = starts[turn]
            user = self._messages[start]
            assert isinstance(user, User)
            images = _images(user) if images is None else to_images(images)
            edited = with_images([User(text)], images) if images else [User(text)]
            self._messages[start:] = edited
            self._forget_dropped()

    def fork(self) -> Conversation:
        """A copy that goes its own way from here."""
        with self._settled():
            copy = Conversation(self._magistral, self._messages, self.options)
            copy._dropped = self._dropped
            return copy

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation to a JSON file, images included.

        The file appears whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        from magistral_mlx.api.transcript import write_transcript

        write_transcript(
            Path(path), self.messages, self.options.system, self._magistral.folder.name
        )

    def load(self, path: str | PathLike[str]) -> None:
        """Go on with the conversation in a file that `save` wrote, in place of this one.

        Raises:
            PromptError: the file is missing or no conversation; this one then stays as it is.
        """
        from magistral_mlx.api.transcript import read_transcript

        messages, system = read_transcript(Path(path))
        with self._settled():
            self._messages = messages
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
        return Stream(
            self._magistral, lambda observer: self._submit(prompt, images, changes, observer)
        )

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

        return AsyncStream(
            self._magistral, lambda observer: self._submit(prompt, images, changes, observer)
        )

    def resume(self, **changes: Unpack[OptionFields]) -> Stream:
        """Go on with the last answer, where it ended.

        Raises:
            PromptError: there is no answer to go on with.
        """
        self._open_last_answer()
        return self.stream(**changes)

    def aresume(self, **changes: Unpack[OptionFields]) -> AsyncStream:
        """`resume` for `async for`; it raises at once what `resume` does."""
        self._open_last_answer()
        return self.astream(**changes)

    # Underneath

    def _open_last_answer(self) -> None:
        with self._settled():
            last = self._messages[-1] if self._messages else None
            if not isinstance(last, Assistant) or last.tool_calls:
                raise PromptError("there is no answer to go on with: the last message is none.")
            self._messages[-1] = replace(last, prefix=True)

    def _submit(
        self, prompt: PromptLike | None, images: Images, changes: OptionFields, observer: Observer
    ) -> Request:
        """Queue the answer to the history and `prompt`; it enters the history later."""
        if prompt is None and to_images(images):
            raise PromptError("images were given without a message that could hold them.")
        asked = [] if prompt is None else to_messages(prompt, images)
        with self._settled():
            sent = self._sent([*self._messages, *asked])
            request = self._magistral.submit(
                sent, options=self.options, observer=observer, **changes
            )
            self._pending = (request, asked)
            return request

    def _sent(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without turns that no longer fit."""
        return without_oldest(messages, self._dropped)

    def _start_of_last_turn(self) -> int | None:
        starts = turn_starts(self._messages)
        return starts[-1] if starts else None

    def _forget_dropped(self) -> None:
        """After the end of the history was cut off: try again with all, unless enough is left."""
        if self._dropped >= len(turn_starts(self._messages)):
            self._dropped = 0

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Hold the history, with no answer on its way."""
        while True:
            self._settle()
            with self._lock:
                if self._pending is None:
                    yield
                    return

    def _settle(self) -> None:
        """Wait for a pending answer, and put it into the history."""
        pending = self._pending
        if pending is None:
            return
        request, asked = pending
        try:
            result = request.wait()
        except Exception:  # the stream has told it
            result = None
        with self._lock:
            if self._pending is pending:
                self._pending = None
                if result is not None:
                    self._record(result, asked)

    def _record(self, result: Result, asked: list[Message]) -> None:
        """Put question and answer into the history, unless nothing was said."""
        answer = result.message
        if not (answer.text or answer.thinking or answer.tool_calls):
            return
        if result.dropped is not None:
            self._dropped += result.dropped.turns
        self._messages += asked
        last = self._messages[-1] if self._messages else None
        if isinstance(last, Assistant) and last.prefix:
            self._messages[-1] = _continued(last, answer)
        else:
            self._messages.append(answer)


def _open_ended(messages: Sequence[Message]) -> list[Message]:
    """`messages` so that they make a prompt although nothing in them is to be answered."""
    last = messages[-1]
    if not isinstance(last, Assistant):
        return list(messages)
    if last.tool_calls:
        return [*messages, *(ToolResult("") for _ in last.tool_calls)]
    return [*messages[:-1], replace(last, prefix=True)]


def _continued(first: Assistant, rest: Assistant) -> Assistant:
    """An answer that was cut short, with what came when it was resumed."""
    thinking = (first.thinking or "") + (rest.thinking or "")
    return Assistant(first.text + rest.text, thinking or None, rest.tool_calls, prefix=rest.prefix)


def _images(user: User) -> list[Image]:
    content = () if isinstance(user.content, str) else user.content
    return [part for part in content if isinstance(part, Image)]
