"""Parsing of tool calls, the text after [TOOL_CALLS]."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from magistral_mlx.events import ToolCall

Section = Literal["name", "call_id", "arguments"]
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what mistral-common accepts as a function's name


@dataclass(slots=True)
class ToolCallText:
    """The text of one call as it is generated: `name[CALL_ID]id[ARGS]{json}`, by sections.

    `written` keeps all of it, the marks spelled out, for the case that it is no call.
    """

    written: str
    section: Section = "name"
    sections: dict[Section, str] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Append text to the current section."""
        self.written += text
        self.sections[self.section] = self.sections.get(self.section, "") + text

    def enter(self, section: Section, mark: str) -> None:
        """Begin the next section, at a control token."""
        self.written += mark
        self.section = section
        self.sections.setdefault(section, "")

    @property
    def name(self) -> str:
        return self.sections.get("name", "").strip()

    @property
    def arguments_begun(self) -> bool:
        """Whether arguments of a function with a possible name are being written."""
        return self.section == "arguments" and _NAME.fullmatch(self.name) is not None

    def problem(self) -> str:
        """Return why there are no `calls`, for an error message."""
        if self.sections.keys() <= {"name"}:
            return "it has no arguments"
        if not _NAME.fullmatch(self.name):
            return f"{self.name!r} is no name of a function"
        if _parsed(self.sections.get("arguments", "")) is None:
            return "its arguments are not JSON, or cut short"
        return "its arguments are not a JSON object"

    def calls(self) -> list[ToolCall]:
        """Return the finished call or calls; none if it is malformed."""
        if self.sections.keys() <= {"name"}:
            return _calls_in_list(self.sections.get("name", ""))
        call = _call(
            self.name,
            self.sections.get("arguments", ""),
            self.sections.get("call_id", "").strip() or None,
        )
        return [call] if call else []


def _call(name: str, arguments: str, id: str | None) -> ToolCall | None:
    if not _NAME.fullmatch(name) or not isinstance(_parsed(arguments), dict):
        return None
    return ToolCall(name=name, arguments=arguments, id=id)


def _calls_in_list(text: str) -> list[ToolCall]:
    """Parse the form up to tokenizer version 7: a JSON list of {"name", "arguments", "id"}."""
    entries = _parsed(text)
    if not isinstance(entries, list):
        return []
    calls = [_call_in_entry(entry) for entry in entries]
    found = [call for call in calls if call]
    return found if len(found) == len(calls) else []


def _call_in_entry(entry: Any) -> ToolCall | None:
    if not isinstance(entry, dict):
        return None
    arguments = entry.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    id = entry.get("id")
    return _call(str(entry.get("name")), arguments, id if isinstance(id, str) else None)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
