"""How a stream of events is shown: on a terminal, into a pipe, or as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from magistral_mlx.cli.terminal import say, stdout_is_unicode, write
from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Notice,
    Prefill,
    PromptLogprobs,
    PromptToken,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
)


class Printer(Protocol):
    """Shows one event; the last is `Finished`."""

    def __call__(self, event: Event) -> None: ...


class JsonPrinter:
    """One JSON object a line, a line a piece. Progress is left out."""

    def __init__(self, *, hide_thinking: bool) -> None:
        self._hide_thinking = hide_thinking

    def __call__(self, event: Event) -> None:
        match event:
            case Thinking() | TokenLogprob(thinking=True) if self._hide_thinking:
                pass
            case Thinking(text):
                self._line("thinking", text=text)
            case Text(text):
                self._line("text", text=text)
            case ToolCall(name, arguments, call_id):
                self._line("tool_call", name=name, arguments=arguments, id=call_id)
            case MalformedCall(text, problem):
                self._line("malformed_call", text=text, problem=problem)
            case Notice(text):
                self._line("notice", text=text)
            case Sample(index):
                self._line("sample", index=index)
            case TokenLogprob():
                self._line("logprob", **_probabilities(event), thinking=event.thinking)
            case PromptLogprobs(tokens):
                self._line("prompt_logprobs", tokens=[_probabilities(token) for token in tokens])
            case Finished(reason, stats):
                self._line("finished", finish_reason=reason, **stats.as_dict())

    @staticmethod
    def _line(kind: str, **fields: object) -> None:
        line = json.dumps({"type": kind, **fields}, ensure_ascii=not stdout_is_unicode())
        write(f"{line}\n")


def _probabilities(event: TokenLogprob | PromptToken) -> dict[str, Any]:
    """A token's log probability as JSON types; bytes that are no whole character are replaced."""
    return {
        "id": event.id,
        "token": event.token.decode(errors="replace"),
        "logprob": event.logprob,
        "top": [
            {"id": id, "token": token.decode(errors="replace"), "logprob": logprob}
            for id, token, logprob in event.top
        ],
    }


class TextPrinter:
    """The answer on stdout; the thinking dim above it on a terminal, else on stderr."""

    def __init__(self, *, hide_thinking: bool, stats: bool) -> None:
        self._hide_thinking = hide_thinking
        self._stats = stats
        self._thinking_to_stderr = not sys.stdout.isatty()
        self._status = sys.stderr.isatty()
        self._last: type | None = None
        self._status_shown = False

    def __call__(self, event: Event) -> None:
        match event:
            case Prefill(done, total):
                self._show_status(f"reading the prompt: {done:,} of {total:,} tokens")
                if done == total:
                    self._show_status("")
            case Thinking(text):
                if self._hide_thinking:
                    if self._last is not Thinking:
                        self._show_status("thinking …")
                    self._last = Thinking
                else:
                    self._write(Thinking, text, self._thinking_to_stderr, dim=True)
            case Text(text) | MalformedCall(text):
                self._show_status("")
                self._write(Text, text, False)
            case ToolCall(name, arguments, _):
                self._show_status("")
                self._write(ToolCall, f"{name}({arguments})", False)
            case Notice(text):
                self._show_status("")
                say(text)
            case Sample():
                self._last = None
            case Finished(_, stats):
                self._finish(stats, event.reason)

    def _write(self, kind: type, text: str, to_stderr: bool, *, dim: bool = False) -> None:
        if self._last not in (None, kind) and not self._hide_thinking:
            # The thinking ends its own stream's line; on a terminal a blank line follows.
            thinking_was = self._last is Thinking and self._thinking_to_stderr
            write("\n" if thinking_was else "\n\n", err=thinking_was)
        write(text, err=to_stderr, dim=dim)
        self._last = kind

    def _finish(self, stats: Stats, reason: str) -> None:
        self._show_status("")
        shown = self._last is not None and not (self._last is Thinking and self._hide_thinking)
        if shown:
            write("\n", err=self._last is Thinking and self._thinking_to_stderr)
        if self._stats:
            write(summary(stats, reason), err=True, dim=True)
            write("\n", err=True)

    def _show_status(self, text: str) -> None:
        """One line on a terminal that the next one replaces, and that "" takes away."""
        if self._status and (text or self._status_shown):
            sys.stderr.write("\r\x1b[2K")
            write(text, err=True, dim=True)
            self._status_shown = bool(text)


def summary(stats: Stats, reason: str) -> str:
    """The figures of a generation, for a person."""
    ends = {
        "length": ", cut at the limit",
        "time": ", cut at the time limit",
        "memory": ", cut as memory allows no longer context",
        "cancelled": ", stopped",
    }
    end = ends.get(reason, "")
    known = f", {stats.cached_tokens:,} of them known" if stats.cached_tokens else ""
    read = stats.prompt_tokens - stats.cached_tokens
    speed = f" at {stats.prefill_tokens_per_second:,.1f}/s" if read else ""
    each = f" ({stats.tokens_per_pass:.2f} a pass)" if stats.drafted else ""
    return (
        f"prompt {stats.prompt_tokens:,} tokens{known}{speed} · "
        f"thinking {stats.thinking_tokens:,} + answer {stats.answer_tokens:,} tokens at "
        f"{stats.decode_tokens_per_second:,.1f}/s{each} · first token after "
        f"{stats.first_token_seconds:.2f} s · peak memory {stats.peak_memory / 1e9:.2f} GB{end}"
    )
