"""Incremental parser of generated tokens into thinking, answer and tool calls.

Control tokens are recognised by id, so text that spells them stays text.
"""

from __future__ import annotations

from magistral_mlx.chat.tokenizer import Detokenizer, Tokenizer
from magistral_mlx.chat.tool_calls import ToolCallText
from magistral_mlx.events import MalformedCall, Text, Thinking, ToolCall, ToolCallPart

ParserEvent = Thinking | Text | ToolCallPart | ToolCall | MalformedCall


class Parser:
    """The parser's state between two tokens of a generation.

    `thinking_tokens` counts the thinking and its marks; `answer_tokens` everything else: text,
    tool calls, the end of the turn. Set `thinking` where the prompt itself ends inside thinking.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special
        self._characters = Detokenizer(tokenizer)
        self._marks = tokenizer.special.thinking_marks
        self._thinking = thinking
        self._call: ToolCallText | None = None
        self._calls_ended = 0
        self.thinking_tokens = 0
        self.answer_tokens = 0

    @property
    def thinking(self) -> bool:
        """Whether the last token left the model inside its thinking."""
        return self._thinking

    def feed(self, token: int) -> list[ParserEvent]:
        """Parse one token; return the events that it completes, often none."""
        self.count(token)
        is_control = self._tokenizer.is_control(token)
        return self._control(token) if is_control else self._text(self._characters.feed(token))

    def count(self, token: int) -> None:
        """Count `token` on its side of the mark, and do nothing else with it."""
        if self._marks.counts(token, self._thinking):
            self.thinking_tokens += 1
        else:
            self.answer_tokens += 1

    def finish(self) -> list[ParserEvent]:
        """End the generation; return the events of what was still incomplete."""
        return self._text(self._characters.flush()) + self._end_call()

    def _control(self, token: int) -> list[ParserEvent]:
        """A control token ends the character before it, and is never text itself."""
        special = self._special
        events = self._text(self._characters.flush())
        self._thinking = self._marks.inside_after(token, self._thinking)
        if token in (special.think, special.eos, special.tool_calls):
            events += self._end_call()
            if token == special.tool_calls:
                self._call = ToolCallText(self._tokenizer.control_name(token))
        elif self._call and token == special.call_id:
            self._call.enter("call_id", self._tokenizer.control_name(token))
        elif self._call and token == special.args:
            self._call.enter("arguments", self._tokenizer.control_name(token))
            events += self._call_part("")
        return events

    def _text(self, text: str) -> list[ParserEvent]:
        if not text:
            return []
        if self._call:
            self._call.add(text)
            return self._call_part(text)
        return [Thinking(text, self.thinking_tokens) if self._thinking else Text(text)]

    def _end_call(self) -> list[ParserEvent]:
        """End the call that is being written, if any; return it, or that it is malformed."""
        call, self._call = self._call, None
        if call is None:
            return []
        calls: list[ParserEvent] = [*call.calls()]
        self._calls_ended += len(calls) or 1
        return calls or [MalformedCall(call.written, call.problem())]

    def _call_part(self, arguments: str) -> list[ParserEvent]:
        if self._call is None or not self._call.arguments_begun:
            return []
        return [ToolCallPart(self._calls_ended, self._call.name, arguments)]
