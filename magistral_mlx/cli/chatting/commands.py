"""Commands of the chat: lines that begin with a slash."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text as Styled

from magistral_mlx.api.options import DEFAULT
from magistral_mlx.chat.messages import Assistant, Message, System, Thought, User
from magistral_mlx.cli.attachments import open_images, read_files, tokens_of
from magistral_mlx.cli.chatting.session import ChatSession
from magistral_mlx.cli.chatting.tools import require
from magistral_mlx.cli.params import parse_thinking
from magistral_mlx.errors import InvalidOption, PromptError, StorageError, TargetExists
from magistral_mlx.files import user_path


@dataclass(frozen=True)
class Command:
    """A command: its arguments and its effect for /help, and whether it takes a path."""

    takes: str
    does: str
    run: Callable[[ChatSession, str], None]
    path: bool = False


def run_command(session: ChatSession, line: str) -> None:
    """Run the command in `line`, which begins with a slash.

    Raises:
        MagistralError: there is no such command, or it cannot be done.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean /{close[0]}?" if close else "/help lists them."
        raise InvalidOption(
            f"there is no command /{name}. {hint} Begin a text with // for a slash."
        )
    try:
        command.run(session, rest.strip())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StorageError(f"/{name}: {where}{error.strerror or error}.") from error


def _help(session: ChatSession, rest: str) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        table.add_row(Styled(f"/{name} {command.takes}".rstrip(), style="bold"), command.does)
    session.console.print(table)
    session.console.print(
        "Enter sends; Alt-Enter, Ctrl-J or a backslash at the end begins another line. Ctrl-C "
        "stops an answer, Ctrl-T shows or hides the thinking, Ctrl-D leaves.",
        style="dim",
    )


def _image(session: ChatSession, rest: str) -> None:
    if not rest:
        session.attached.clear()
        session.say("Nothing goes with your next message.")
        return
    if not session.magistral.supports_images:
        raise InvalidOption("this model is text-only and cannot see images.")
    opened = open_images([_expanded(name) for name in _words(rest)])
    session.attached += [part for parts in opened for part in parts]
    count = sum(not isinstance(part, str) for part in session.attached)
    session.say(f"{count} image{'s' * (count > 1)} will go with your next message.")


def _file(session: ChatSession, rest: str) -> None:
    if not rest:
        _image(session, "")
        return
    as_images, names = _after(_PAGES, _words(rest))
    if not names:
        raise InvalidOption(f"{_PAGES} is followed by files.")
    limit = session.chat.options.image_tokens
    read = read_files([_expanded(name) for name in names], "images" if as_images else "text")
    tokens = [tokens_of(parts, session.magistral, limit) for parts in read]
    session.attached += [part for parts in read for part in parts]
    for name, count in zip(names, tokens, strict=True):
        session.say(f"{count:,} tokens go with your next message: {name}")


def _system(session: ChatSession, rest: str) -> None:
    if rest:
        if rest == "none":
            session.set_options(system=None)
        elif rest == "default":
            session.set_options(system=DEFAULT)
        else:
            session.set_options(system=rest)
    system = session.chat.options.system
    if system is DEFAULT:
        system = session.magistral.default_system
    if not isinstance(system, System):
        session.say("No system prompt is sent.")
        return
    parts = (system.content,) if isinstance(system.content, str) else system.content
    for part in parts:
        thought = isinstance(part, Thought)
        text = part.text if isinstance(part, Thought) else part
        session.console.print(Styled(text.strip(), style="dim italic" if thought else "dim"))


def _think(session: ChatSession, rest: str) -> None:
    session.show_thinking()


def _thinking(session: ChatSession, rest: str) -> None:
    if rest:
        session.set_options(thinking=parse_thinking(rest))
    mode = session.chat.options.thinking
    session.say(f"Thinking is {mode if isinstance(mode, str) else f'at most {mode:,} tokens'}.")


def _undo(session: ChatSession, rest: str) -> None:
    taken = session.chat.undo()
    if not taken:
        raise PromptError("there is nothing to take back.")
    session.take_up(_asked(taken))
    session.say("Your last message is taken back; change it or send it again.")


def _retry(session: ChatSession, rest: str) -> None:
    messages = session.chat.messages
    if not isinstance(messages[-1] if messages else None, Assistant):
        raise PromptError("there is no answer to replace.")
    session.ask_next(_asked(session.chat.undo()))


def _continue(session: ChatSession, rest: str) -> None:
    session.resume_next()


def _save(session: ChatSession, rest: str) -> None:
    forced, names = _after(_FORCE, _words(rest))
    path = _path(names)
    # Where it cannot be told whether the file exists, saving says why.
    if not forced and os.path.exists(path) and path.resolve() != session.file:
        raise TargetExists(f"{path} exists already. /save {_FORCE} FILE overwrites it.")
    session.chat.save(path)
    session.file = path.resolve()
    session.say(f"Saved to {path}.")


def _load(session: ChatSession, rest: str) -> None:
    path = _path(_words(rest))
    session.chat.load(path)
    session.file = path.resolve()
    session.show_history()


def _plan(session: ChatSession, rest: str) -> None:
    from magistral_mlx.cli.plan import facts_of_plan
    from magistral_mlx.cli.plan_report import show

    show(facts_of_plan(session.magistral.plan, "planned when the chat began"))


def _stats(session: ChatSession, rest: str) -> None:
    session.show_stats()


def _tools(session: ChatSession, rest: str) -> None:
    caller = require(session.tools)
    for tool in caller.found:
        asked = "without asking" if caller.allowed(tool.tool.name) else "asks first"
        session.say(f"{tool.tool.name} · {asked} · {' '.join(tool.tool.description.split())[:200]}")


def _result(session: ChatSession, rest: str) -> None:
    last = require(session.tools).last
    if not last:
        raise PromptError("no tool has been called yet.")
    for call, outcome in last:
        session.say(f"{call.name}({call.arguments})\n{outcome.text}")


def _new(session: ChatSession, rest: str) -> None:
    session.begin_anew()
    session.say("A new conversation; the system prompt and the options stay.")


def _quit(session: ChatSession, rest: str) -> None:
    session.leaving = True


_FORCE, _PAGES = "--force", "--images"
# Words of other chats.
_ALIASES = {"bye": "quit", "exit": "quit", "clear": "new", "?": "help"}
COMMANDS = {
    "help": Command("", "this list", _help),
    "image": Command("FILE…", "show images with the next message; alone: none", _image, True),
    "file": Command(
        "[--images] FILE…",
        "send text, code, a PDF (--images: its pages)",
        _file,
        True,
    ),
    "system": Command("TEXT|none|default", "set or show the system prompt", _system),
    "think": Command("", "show the last thinking", _think),
    "thinking": Command(
        "on|off|TOKENS", "think first, answer at once, or think so long", _thinking
    ),
    "undo": Command("", "take your last message and its answer back", _undo),
    "retry": Command("", "answer the last message again", _retry),
    "continue": Command("", "go on with an answer that was cut", _continue),
    "save": Command("FILE", "write the conversation to a file", _save, True),
    "load": Command("FILE", "go on with a saved conversation", _load, True),
    "new": Command("", "begin a new conversation", _new),
    "plan": Command("", "show what of the memory is used for what", _plan),
    "stats": Command("", "show tokens and speeds", _stats),
    "tools": Command("", "list the tools of MCP servers", _tools),
    "result": Command("", "show what the last calls of tools gave", _result),
    "quit": Command("", "leave", _quit),
}


def _asked(turn: Sequence[Message]) -> list[User]:
    """Return the user's message that began a turn; an answer may have failed in between."""
    return [message for message in turn if isinstance(message, User)]


def _after(option: str, words: list[str]) -> tuple[bool, list[str]]:
    """Whether the words begin with an option, and those that follow it."""
    given = words[:1] == [option]
    return given, words[given:]


def _path(words: list[str]) -> Path:
    if len(words) != 1:
        raise InvalidOption("one file is expected, in quotes if its name holds blanks.")
    return user_path(words[0])


def _expanded(name: str) -> str:
    """A path with ~ expanded; an address as it is."""
    return str(user_path(name)) if name.startswith("~") else name


def _words(text: str) -> list[str]:
    """File names, as a shell splits them; a terminal puts a dragged file in quotes."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidOption(f"the file names cannot be told apart: {error}.") from error
