"""The chat's loop, with keys from a pipe and a conversation whose answers all fail."""

import asyncio
import select
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from magistral_mlx.api.conversation import Conversation
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.chat.messages import User
from magistral_mlx.cli.chatting.session import ChatSession
from magistral_mlx.errors import PromptError

ENTER, LEAVE = "\r", "\x03\x04"


class FailingConversation:
    """Fails each answer after keys that are pressed while it comes; others follow after it."""

    messages: tuple[()] = ()
    tokens = 0
    options = SimpleNamespace(thinking="on")

    def __init__(self, keys: PipeInput, *pressed: tuple[str, str]) -> None:
        self.asked: list[Any] = []
        self._keys, self._pressed = keys, list(pressed)

    def astream(self, asked: list[User]) -> AsyncIterator[Any]:
        self.asked += [message.content for message in asked]
        return cast(AsyncIterator[Any], _Stream(self._keys, *self._pressed.pop(0)))


class _Stream:
    def __init__(self, keys: PipeInput, during: str, after: str) -> None:
        self._keys, self._during, self._after = keys, during, after

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._keys.send_text(self._during)
        while select.select([self._keys.fileno()], [], [], 0)[0]:
            await asyncio.sleep(0)  # until the chat has taken them
        self._keys.send_text(self._after)
        raise PromptError("it failed.")
        yield

    def cancel(self) -> None:
        """Nothing to stop."""


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def talk(
    keys: PipeInput, conversation: FailingConversation, history: Path, patch: pytest.MonkeyPatch
) -> None:
    """Run a chat to its end."""
    patch.setattr("magistral_mlx.cli.chatting.session.create_input", lambda: keys)
    model = cast(Magistral, SimpleNamespace(name="scripted", context=100, folder=Path()))
    chat = cast(Conversation, conversation)
    asyncio.run(ChatSession(model, chat, history, lambda *_: None, {}).run())


def test_what_was_typed_ahead_stays_below_the_message_of_an_answer_that_fails(
    keys: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    conversation = FailingConversation(keys, ("and then?", ENTER), ("", LEAVE))
    keys.send_text("Sum it up" + ENTER)
    talk(keys, conversation, tmp_path / "history", monkeypatch)
    assert conversation.asked == ["Sum it up", "Sum it up\n\nand then?"]


def test_a_message_that_comes_back_is_no_part_of_what_is_typed_meanwhile(
    keys: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    conversation = FailingConversation(keys, ("two" + ENTER, ""), ("three", ENTER), ("", LEAVE))
    keys.send_text("one" + ENTER)
    talk(keys, conversation, tmp_path / "history", monkeypatch)
    assert conversation.asked == ["one", "two", "one\n\ntwo\n\nthree"]


def test_a_history_that_cannot_be_written_is_told_once(
    keys: PipeInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    history = tmp_path / "history"
    history.mkdir()  # no file can be written there
    conversation = FailingConversation(keys, ("", " more" + ENTER), ("", LEAVE))
    keys.send_text("one" + ENTER)
    talk(keys, conversation, history, monkeypatch)
    assert conversation.asked == ["one", "one more"]
    assert capsys.readouterr().out.count("not kept for the next time: Is a directory.") == 1
