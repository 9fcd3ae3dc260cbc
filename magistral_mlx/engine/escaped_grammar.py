"""Lark grammars of a text, rewritten for that text inside a JSON string.

A tool that takes text, such as a patch, gets it as the one string of its JSON arguments. A grammar
of the text therefore has to match it as JSON writes it: quotes, backslashes and control characters
escaped. Strings and regular expressions of the grammar are rewritten, its rules stay as they are.

llguidance's lexer takes the longest token and never goes back. Within one token, a backslash might
begin an escape that belongs to the next one, so each escape is a token of its own, and what holds
escapes is a rule, not a terminal.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

# Characters that JSON escapes, and how json.dumps writes them.
_ESCAPES = {char: json.dumps(char)[1:-1] for char in ['"', "\\", *map(chr, range(0x20))]}
_PLAIN = r'[^"\\\x00-\x1f]'

_STRING = r'"(?:\\.|[^"\\\n])*"'
_TOKEN = re.compile(
    rf"""(?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<low>{_STRING})\s*\.\.\s*(?P<high>{_STRING})
    |(?P<string>{_STRING})(?P<any_case>i?)
    |(?P<regex>/(?:\\.|[^/\\\n])+/)(?P<flags>[imslux]*)
    |%import\s+common\.(?P<name>\w+)(?:\s*->\s*(?P<alias>\w+))?
    |%import\s+common\s*\((?P<names>[\w\s,]+)\)
    |->\s*\w+
    |(?P<terminal>\b_*[A-Z][A-Z0-9_]*\b)
    |(?P<other>%\w+|<)""",
    re.VERBOSE,
)
# Terminals of Lark's library that may match a character that JSON escapes.
_LIBRARY = {
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "ESCAPED_STRING": r'"([^"\\\n]|\\.)*"',
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
}
_PIECE = re.compile(
    r"""\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]
    |\\(?:x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|
        [pP](?:\{[^}]*\}|\w)|[^bBAzZG])
    |[^()|*+?^$\\]""",
    re.VERBOSE | re.DOTALL,
)
_COUNT = re.compile(r"([*+?]|\{\d+(?:,\d*)?\})\??")
_GROUP = re.compile(r"\((?:\?:|\?P?<\w+>|(?!\?))")


def escaped_lark(grammar: str) -> str:
    """Return the Lark grammar of the JSON-escaped texts that `grammar` matches.

    Raises:
        ValueError: it uses an extension, or a regular expression that cannot be rewritten.
    """
    return _TOKEN.sub(_token, grammar)


def _token(match: re.Match[str]) -> str:
    found = match.groupdict()
    if found["other"]:
        raise ValueError(f"{found['other']} is not supported in the grammar of a text")
    if found["terminal"]:
        return _rule(found["terminal"])
    if found["low"]:
        low, high = (re.escape(_text(found[end])) for end in ("low", "high"))
        return _regex(f"[{low}-{high}]")
    if found["string"]:
        return _regex(re.escape(_text(found["string"])), found["any_case"])
    if found["regex"]:
        return _regex(found["regex"][1:-1], found["flags"])
    if found["name"]:
        return _imported(found["name"], found["alias"])
    if found["names"]:
        return "\n".join(_imported(name.strip(), None) for name in found["names"].split(","))
    return ""  # a comment, or the name of an alternative


def _text(literal: str) -> str:
    text: str = json.loads(re.sub(r"\\x([0-9a-fA-F]{2})", r"\\u00\1", literal))
    return text


def _rule(terminal: str) -> str:
    """The name of the rule that stands for a terminal."""
    return f"terminal_{terminal.lower()}"


def _imported(name: str, alias: str | None) -> str:
    rule = _rule(alias or name)
    if name in _LIBRARY:
        return f"{rule}: {_regex(_LIBRARY[name])}"
    return f"%import common.{name}\n{rule}: {name}"


def _regex(pattern: str, flags: str = "") -> str:
    if "x" in flags:
        raise ValueError("the flag x of a regular expression is not supported")
    parser = _RegexParser(pattern, flags)
    return parser.rule(parser.parse())


@dataclass(frozen=True)
class _Part:
    """A part of a regular expression: as one still, or as the expression of a rule.

    run: the expression of one or more of a class of characters, with fewer tokens.
    """

    source: str
    is_regex: bool = True
    run: str = ""


class _RegexParser:
    """Parser of a regular expression, which becomes rules where it holds escapes."""

    def __init__(self, pattern: str, flags: str) -> None:
        self._pattern = pattern
        self._flags = flags
        self._at = 0

    def parse(self) -> _Part:
        """Parse the whole pattern."""
        part = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error()
        return part

    def rule(self, part: _Part) -> str:
        """The part as the expression of a rule."""
        if not part.is_regex:
            return part.source
        if not part.source:
            return '""'
        source = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", part.source)
        return f"/{source}/{self._flags}"

    def _error(self) -> ValueError:
        rest = self._pattern[self._at :]
        return ValueError(f"the regular expression cannot be rewritten at {rest!r:.40}")

    def _alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._pattern.startswith("|", self._at):
            self._at += 1
            parts.append(self._sequence())
        if all(part.is_regex for part in parts):
            return _Part("|".join(part.source for part in parts))
        return _Part(f"({' | '.join(map(self.rule, parts))})", is_regex=False)

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            part = self._counted()
            if parts and parts[-1].is_regex and part.is_regex:
                part = _Part(parts.pop().source + part.source)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return _Part(f"({' '.join(map(self.rule, parts))})", is_regex=False) if parts else _Part("")

    def _counted(self) -> _Part:
        part = self._group() if self._pattern[self._at] == "(" else self._piece()
        while count := _COUNT.match(self._pattern, self._at):
            self._at = count.end()
            if part.is_regex:
                part = _Part(f"(?:{part.source}){count[1]}")
            elif part.run and count[1] in "*+":
                part = _Part(f"({part.run}){count[1]}", is_regex=False)
            else:
                part = _Part(f"({part.source}){count[1]}", is_regex=False)
        return part

    def _group(self) -> _Part:
        begin = _GROUP.match(self._pattern, self._at)
        if begin is None:
            raise self._error()
        self._at = begin.end()
        part = self._alternatives()
        if not self._pattern.startswith(")", self._at):
            raise self._error()
        self._at += 1
        return _Part(f"(?:{part.source})") if part.is_regex else part

    def _piece(self) -> _Part:
        """A class of characters, or one character."""
        match = _PIECE.match(self._pattern, self._at)
        if match is None:
            raise self._error()
        piece, escapes = match[0], [re.escape(text) for text in self._escapes(match[0])]
        self._at = match.end()
        if not escapes:
            return _Part(piece)
        escape = f"/{'|'.join(escapes)}/"
        is_class = piece[0] in "[." or piece[:2] in (r"\D", r"\s", r"\S", r"\W", r"\P")
        if not is_class:
            return _Part(escape, is_regex=False)
        if piece == ".":
            piece = r"[\x00-\x{10ffff}]" if "s" in self._flags else r"[^\n]"
        one = f"[{piece}&&{_PLAIN}]"
        plain, run = self.rule(_Part(one)), self.rule(_Part(one + "+"))
        return _Part(f"({plain} | {escape})", is_regex=False, run=f"{run} | {escape}")

    def _escapes(self, piece: str) -> list[str]:
        """The escapes of all characters that the piece matches."""
        # No property of Unicode has a character that is escaped, and its complement has all.
        known = re.sub(r"\\p(\{[^}]*\}|\w)", "a", piece)
        known = re.sub(r"\\P(\{[^}]*\}|\w)", r'"\\\\\\x00-\\x1f', known)
        known = re.sub(
            r"\\[xu]\{([0-9a-fA-F]+)\}", lambda code: f"\\U{int(code[1], 16):08x}", known
        )
        known = known if piece[0] == "[" or known == piece else f"[{known}]"
        options = (re.IGNORECASE if "i" in self._flags else 0) | (
            re.DOTALL if "s" in self._flags else 0
        )
        try:
            test = re.compile(known, options)
        except (re.error, OverflowError):
            raise self._error() from None
        return [text for char, text in _ESCAPES.items() if test.fullmatch(char)]
