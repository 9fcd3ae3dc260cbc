"""An answer on the terminal, while it comes: Markdown above, one live part below."""

from __future__ import annotations

import re
import time
import unicodedata

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text as Styled

from magistral_mlx.cli.terminal import visible
from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Notice,
    Prefill,
    Text,
    Thinking,
    ToolCall,
    TurnsDropped,
)

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_THOUGHT_LINES = 10  # of an unfolded trace that is still growing
_REDRAW = 0.08  # seconds between two drawings


class Unpadded:
    """Something to print without blanks at the ends of its lines, even where Rich pads them.

    Terminals disagree on the width of Hindi, Tamil or Khmer: a line that Rich has padded to the
    full width may take two, and what is drawn over it then begins too low. Spacing marks, which
    Rich counts as nothing, count as one here.
    """

    def __init__(self, content: RenderableType, lines: int | None = None) -> None:
        """`lines`: how many of the last lines are shown; None for all."""
        self._content = content
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = narrower = options.max_width
        lines = self._rendered(console, options)
        while (over := max(map(_widest, lines), default=0) - width) > 0 and narrower > width // 2:
            narrower -= over
            lines = self._rendered(console, options.update(width=narrower))
        for line in lines[-self._lines :] if self._lines else lines:
            yield from line
            yield Segment.line()

    def _rendered(self, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
        return [_stripped(line) for line in console.render_lines(self._content, options, pad=False)]


def _stripped(line: list[Segment]) -> list[Segment]:
    """A line without the blanks at its end, those with a background aside."""
    line = list(line)
    while line and not line[-1].control and not (line[-1].style and line[-1].style.bgcolor):
        last = line.pop()
        text = last.text.rstrip(" ")
        if text:
            return [*line, Segment(text, last.style)]
    return line


def _widest(line: list[Segment]) -> int:
    """Cells that a terminal may take for a line at most."""
    text = "".join(segment.text for segment in line if not segment.control)
    if text.isascii():
        return len(text)
    return max(cell_len(text), sum(cell_len(c) or unicodedata.category(c) == "Mc" for c in text))


class AnswerView:
    """Shows the events of one answer; a context manager.

    The thinking is folded behind one line, unless `unfolded`. What is finished is printed for
    good, so that the terminal's own scrolling shows it; only the last block is drawn again.
    """

    def __init__(self, console: Console, *, unfolded: bool) -> None:
        self._console = console
        self._unfolded = unfolded
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._start = time.monotonic()
        self._drawn = 0.0
        self._status = "reading"
        self._thinking = ""
        self._thought = 0  # tokens
        self._thinking_since: float | None = None
        self._text = ""
        self.finished: Finished | None = None

    @property
    def thinking(self) -> str:
        """The trace so far."""
        return self._thinking

    def __enter__(self) -> AnswerView:
        self._live.start()
        self.draw()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_thinking()
        self._live.update(Styled(""))
        self._live.stop()
        if self._text.strip():
            self._console.print(Unpadded(Markdown(self._text)))
        self._text = ""

    def toggle(self) -> None:
        """Fold or unfold the thinking, now or for what is to come."""
        self._unfolded = not self._unfolded
        self.draw()

    @property
    def unfolded(self) -> bool:
        return self._unfolded

    def add(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case Prefill():
                self._status = _reading(event)
            case Thinking(text, tokens):
                self._think(visible(text), tokens)
            case Text(text):
                self._end_thinking()
                self._write(visible(text))
            case ToolCall(name, arguments, _):
                self._end_thinking()
                self._print(Styled(visible(f"calls {name}({arguments})"), style="cyan"))
            case MalformedCall(text, problem):
                self._end_thinking()
                self._print(Styled(visible(f"{text}\nThis is no call: {problem}."), style="yellow"))
            case TurnsDropped(turns, _):
                oldest = "turn is" if turns == 1 else f"{turns} turns are"
                line = f"The oldest {oldest} left out: the conversation outgrew its context."
                self._print(Styled(line, style="yellow"))
            case Notice(text):
                self._print(Styled(visible(text), style="yellow"))
            case Finished():
                self.finished = event
        self._draw_now_and_then()

    def draw(self) -> None:
        """Draw the live part again."""
        self._drawn = time.monotonic()
        self._live.update(self._live_part(), refresh=True)

    def _draw_now_and_then(self) -> None:
        if time.monotonic() - self._drawn > _REDRAW:
            self.draw()

    def _think(self, text: str, tokens: int) -> None:
        if self._thinking_since is None:
            self._thinking_since = time.monotonic()
        self._thinking += text
        self._thought = tokens
        self._status = "thinking"

    def _end_thinking(self) -> None:
        """Leave one line, or the whole trace, where the thinking was."""
        if self._thinking_since is None:
            return
        seconds = time.monotonic() - self._thinking_since
        self._thinking_since = None
        self._status = ""
        if self._unfolded:
            self._print(Styled(self._thinking.strip(), style="dim"))
        line = f"thought for {_tokens(self._thought)}, {seconds:.1f} s"
        hint = "" if self._unfolded else " · /think shows it"
        self._print(Styled(line + hint, style="dim italic"))

    def _write(self, text: str) -> None:
        self._status = ""
        self._text += text
        end = finished_length(self._text)
        if end:
            block, self._text = self._text[:end], self._text[end:]
            self._print(Group(Unpadded(Markdown(block)), Styled("")))

    def _print(self, content: RenderableType) -> None:
        """Print above the live part, for good."""
        self._live.update(self._live_part(), refresh=False)
        self._console.print(content)

    def _live_part(self) -> RenderableType:
        height = max(3, self._console.size.height - 2)
        if self._thinking_since is not None:
            seconds = time.monotonic() - self._thinking_since
            fold = "hides" if self._unfolded else "shows"
            line = f"thinking · {_tokens(self._thought)} · {seconds:.0f} s · ctrl-t {fold} it"
            status = Styled(line, style="dim italic", no_wrap=True, overflow="ellipsis")
            if not self._unfolded:
                return status
            trace = Styled(self._thinking.strip(), style="dim")
            return Group(Unpadded(trace, min(_THOUGHT_LINES, height - 1)), status)
        if self._text:
            return Unpadded(Markdown(self._text), height)
        return Styled(self._status, style="dim italic", no_wrap=True, overflow="ellipsis")


def _tokens(count: int) -> str:
    return f"{count:,} token{'s' * (count != 1)}"


def _reading(event: Prefill) -> str:
    if event.done == event.total:
        return "…"
    left = "" if event.seconds_left is None else f" · {event.seconds_left:.0f} s left"
    return f"reading {event.done:,} of {event.total:,} tokens{left}"


def finished_length(text: str) -> int:
    """Characters at the beginning of `text` that are whole Markdown blocks.

    A block ends at a blank line that is outside of a code fence, once something follows that does
    not continue it: an indented line may belong to a list's item above.
    """
    finished = position = 0
    fence: str | None = None
    after_blank = False
    for line in text.splitlines(keepends=True):
        blank = not line.strip()
        if fence is None and after_blank and not blank and not line[0].isspace():
            finished = position
        fence = _fence_after(line, fence)
        after_blank = blank and fence is None
        position += len(line)
    return finished


def _fence_after(line: str, fence: str | None) -> str | None:
    """The fence that is open after `line`; a fence is closed by one of its kind, no shorter."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    if fence is None:
        return found[1]
    closes = found[1].startswith(fence) and not line[found.end() :].strip()
    return None if closes else fence
