"""The chat itself: read a line, run its command or answer it, until the user leaves.

The file is longer than others because one loop takes turns with lines, keys, answers and calls.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_input
from prompt_toolkit.keys import Keys
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text as Styled

from magistral_mlx.api.async_stream import AsyncStream
from magistral_mlx.api.conversation import MAX_ROUNDS, Conversation
from magistral_mlx.api.history import attached_to, typed_in
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.chat.messages import Assistant, Image, User
from magistral_mlx.cli.chatting.keys import bracketed_paste, interrupts, line_editor
from magistral_mlx.cli.chatting.tools import ToolCaller
from magistral_mlx.cli.chatting.view import AnswerView, Unpadded
from magistral_mlx.cli.printing import summary
from magistral_mlx.cli.terminal import visible
from magistral_mlx.errors import MagistralError
from magistral_mlx.events import Finished
from magistral_mlx.mcp.servers import MCPServers
from magistral_mlx.paths import demo_dir

_LEAVING = ("exit", "quit", "bye")  # alone on a line
_TICK = 0.1  # seconds between two drawings of the live line


class ChatSession:
    """A conversation on a terminal: what is attached, its draft, its figures."""

    def __init__(
        self,
        magistral: Magistral,
        chat: Conversation,
        history: Path,
        run_command: Callable[[ChatSession, str], None],
        commands: Mapping[str, bool],
        servers: MCPServers | None = None,
    ) -> None:
        """
        Args:
            history: the file that keeps what was typed.
            run_command: called with a line that begins with a slash.
            commands: names of commands, and whether a path follows.
            servers: connected MCP servers, whose tools the model may call.
        """
        self.magistral = magistral
        self.chat = chat
        self.console = Console(highlight=False)
        self.attached: list[str | Image] = []  # goes with the next message, before its text
        self.leaving = False
        self.file: Path | None = None  # that this conversation was saved to or loaded from
        self._warned = False
        self._unfolded = False
        self._draft = ""  # what stands in the input when it is shown next, before what was typed
        self._typed = ""  # and not sent while an answer came
        self._lines: list[str] = []  # what was typed and sent while an answer came
        self._next: list[User] = []  # to be asked now
        self._resume = False
        self._answers: list[Finished] = []
        self._used = chat.tokens
        self._last_thinking = ""
        self._input = create_input()
        self._run_command = run_command
        self.tools: ToolCaller | None = None
        if servers is not None:
            self.tools = ToolCaller(servers, self._question, self.say)
        self._untold: list[str] = []  # what is said once the input is left
        self._editor = line_editor(
            self._input, history, commands, self._toolbar, self.show_thinking, self._untold.append
        )

    async def run(self) -> None:
        """Talk until the user leaves."""
        self.say(f"{self.magistral.name} · /help for help")
        while not self.leaving:
            try:
                line = await self._read()
            except KeyboardInterrupt:
                continue  # the line is given up
            except EOFError:
                return
            try:
                await self._take(line)
            except MagistralError as error:
                self.console.print(Styled(visible(str(error)), style="red"))

    # What commands do

    def say(self, text: str) -> None:
        """A line about the chat, not of it."""
        self.console.print(Styled(visible(text), style="dim"))

    def set_options(self, **changes: Any) -> None:
        """Change options of the conversation, from the next message on."""
        self.chat.options = replace(self.chat.options, **changes)

    def show_thinking(self) -> None:
        """Show the last trace."""
        if self._last_thinking.strip():
            self.console.print(Styled(visible(self._last_thinking.strip()), style="dim"))
        else:
            self.say("There is no thinking to show.")

    def take_up(self, messages: list[User]) -> None:
        """Put messages back into the input, and what was attached beside it."""
        self._draft = _paragraphs(self._draft, *map(typed_in, messages))
        self.attached = [part for message in messages for part in attached_to(message)]
        self._used = self.chat.tokens

    def ask_next(self, messages: list[User]) -> None:
        """Ask what is not typed."""
        self._next = messages

    def resume_next(self) -> None:
        """Go on with the last answer."""
        self._resume = True

    def begin_anew(self) -> None:
        self.chat = self.magistral.chat(options=self.chat.options)
        self.attached, self._used, self._last_thinking = [], 0, ""
        self.file = None

    def show_history(self) -> None:
        """Show a conversation that was loaded."""
        for message in self.chat.messages:
            if isinstance(message, User):
                lines = [*map(_label, attached_to(message)), typed_in(message)]
                self.console.print(Styled(visible("❯ " + "\n  ".join(lines)), style="bold"))
            elif isinstance(message, Assistant):
                self._last_thinking = message.thinking or ""
                self.console.print(Unpadded(Markdown(visible(message.text))))
        self._used = self.chat.tokens

    def show_stats(self) -> None:
        if self._answers:
            last = self._answers[-1]
            self.say(summary(last.stats, last.reason))
        thinking = sum(answer.stats.thinking_tokens for answer in self._answers)
        answer = sum(answer.stats.answer_tokens for answer in self._answers)
        self.say(
            f"{len(self._answers)} answers, {thinking:,} tokens of thinking and {answer:,} of "
            f"answers · {self._used:,} of {self.magistral.context:,} tokens of context used"
        )

    # Asking

    async def _read(self) -> str:
        if self._lines:
            line = self._lines.pop(0)
            self.console.print(Styled(visible(f"❯ {line}"), style="bold"))
            return line
        draft = _paragraphs(self._draft, self._typed)
        self._draft = self._typed = ""
        line = await self._editor.prompt_async(default=draft)
        while self._untold:
            self.say(self._untold.pop(0))
        return line

    async def _take(self, line: str) -> None:
        text = line.strip()
        if text.lower() in _LEAVING and not self.attached:
            self.leaving = True
        elif text.startswith("/") and not text.startswith("//"):
            self._run_command(self, text)
        elif text or self.attached:
            self._next = [self._message(text.removeprefix("/") if text[:2] == "//" else text)]
        if self._resume:
            self._resume = False
            await self._answer(self.chat.aresume(), [])
        elif self._next:
            asked, self._next = self._next, []
            self._warn_of_the_demo()
            await self._answer(self.chat.astream(asked), asked)
        else:
            return
        await self._call_tools()

    async def _call_tools(self) -> None:
        """Make the calls of the last answer and answer with their results, until it has none."""
        if self.tools is None:
            return
        for _ in range(MAX_ROUNDS):
            messages = self.chat.messages
            last = messages[-1] if messages else None
            whole = bool(self._answers) and self._answers[-1].reason == "stop"
            if not (isinstance(last, Assistant) and last.tool_calls and whole):
                return
            self.chat.append(await self.tools.results(last.tool_calls))
            await self._answer(self.chat.astream(), [])
        self.say(f"Stopped after {MAX_ROUNDS} rounds of calls.")

    async def _question(self, question: str) -> str:
        editor: PromptSession[str] = PromptSession(input=self._input)
        return await editor.prompt_async(question)

    def _warn_of_the_demo(self) -> None:
        """Say once that the demo was trained for single questions."""
        if self.chat.messages and not self._warned and self.magistral.folder == demo_dir():
            self._warned = True
            self.say(
                "The demo model was trained to answer single questions: what it says in a second "
                "turn makes no sense. /new begins a new conversation."
            )

    def _message(self, text: str) -> User:
        attached, self.attached = self.attached, []
        return User((*attached, text)) if attached else User(text)

    async def _answer(self, stream: AsyncStream, asked: list[User]) -> None:
        """Show an answer as it comes; Ctrl-C stops it, Ctrl-T folds and unfolds the thinking."""
        view = AnswerView(self.console, unfolded=self._unfolded)
        try:
            with view, self._keys(view, stream):
                ticking = asyncio.create_task(_tick(view))
                try:
                    async for event in stream:
                        view.add(event)
                finally:
                    ticking.cancel()
        except MagistralError:
            if asked:
                self.take_up(asked)
            raise
        finally:
            self._unfolded = view.unfolded
        self._note(view, asked)
        self.console.print()

    def _note(self, view: AnswerView, asked: list[User]) -> None:
        """Keep what an answer leaves behind."""
        self._last_thinking = view.thinking or self._last_thinking
        finished = view.finished
        if finished is None:
            return
        stats = finished.stats
        if finished.reason == "cancelled":
            if not stats.completion_tokens and asked:
                self.take_up(asked)
                self.say("Stopped before it began.")
                return
            self.say("Stopped. /continue goes on with it.")
        elif finished.reason == "length":
            self.say("Cut at the limit. /continue goes on with it.")
        elif finished.reason == "time":
            self.say("Cut at the time limit. /continue goes on with it.")
        elif finished.reason == "memory":
            self.say("Cut where the memory that was planned for ends. /plan shows it.")
        self._answers.append(finished)
        self._used = stats.prompt_tokens + stats.completion_tokens

    @contextlib.contextmanager
    def _keys(self, view: AnswerView, stream: AsyncStream) -> Iterator[None]:
        """Keys that are pressed during an answer; what is typed waits for the next input."""

        def pressed() -> None:
            keys = self._input.read_keys()
            # A terminal without bracketed paste sends all lines of a paste at once.
            typed = [key.key for key in keys if key.data.isprintable() or key.key == Keys.ControlM]
            pasted = Keys.ControlM in typed[:-1]
            for key in keys:
                if key.key == Keys.ControlC:
                    stream.cancel()
                elif key.key == Keys.ControlT:
                    view.toggle()
                elif key.key == Keys.BracketedPaste:
                    self._typed += key.data.replace("\r\n", "\n").replace("\r", "\n")
                elif key.key == Keys.ControlJ or (pasted and key.key == Keys.ControlM):
                    self._typed += "\n"
                elif key.key == Keys.ControlM:
                    self._lines.append(self._typed)
                    self._typed = ""
                elif key.key == Keys.ControlH:  # backspace
                    self._typed = self._typed[:-1]
                elif key.data.isprintable():
                    self._typed += key.data

        with (
            self._input.raw_mode(),
            bracketed_paste(),
            self._input.attach(pressed),
            interrupts(stream.cancel),
        ):
            yield

    def _toolbar(self) -> str:
        parts = [f"{self._used:,} of {self.magistral.context:,} tokens"]
        files = sum(isinstance(part, str) for part in self.attached)
        for count, kind in ((len(self.attached) - files, "image"), (files, "file")):
            if count:
                parts.append(f"{count} {kind}{'s' * (count > 1)}")
        thinking = self.chat.options.thinking
        if thinking != "on":
            parts.append(f"thinking {thinking}")
        return " · ".join(parts)


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _label(part: str | Image) -> str:
    """One line that stands for what is attached; a file's text begins with its name."""
    return f"[{part.partition(chr(10))[0]}]" if isinstance(part, str) else "[image]"


async def _tick(view: AnswerView) -> None:
    while True:
        await asyncio.sleep(_TICK)
        view.draw()
