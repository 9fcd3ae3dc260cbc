"""JSON schemas for grammars: their text, keywords that llguidance cannot follow, looser schemas.

Schemas of tools come from many programs. llguidance supports most of JSON Schema and refuses the
rest, so a schema that need not be followed exactly is reduced to its supported part, and an error
for one that must be names the keyword and its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from magistral_mlx.engine.large_stack import with_large_stack
from magistral_mlx.engine.schema_references import NAMED, ONE, SEVERAL, References
from magistral_mlx.errors import InvalidOption

Schema = Mapping[str, Any] | bool

# JSON allows any amount of whitespace between tokens, and a model can get lost in it.
WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,48}"}
ANY_OBJECT: Schema = {"type": "object"}

_DEEPEST = 2000  # schemas that refer to one another, a quarter of what the stack is enough for
_UNIMPLEMENTED = re.compile("Unimplemented keys")
_CIRCULAR = "refers to itself"


def schema_text(schema: Schema | str, what: str = "the JSON schema") -> str:
    """Return a schema as JSON text; `true` as the empty schema.

    Args:
        what: name of the schema in errors.

    Raises:
        InvalidOption: not JSON, or neither an object nor true.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if not isinstance(parsed, Mapping):
            raise InvalidOption(f"{what} is {parsed!r}; it must be an object or true.")
        text = json.dumps(dict(parsed), allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError:
        raise InvalidOption(f"{what} is nested too deeply. Make it flatter.") from None
    except UnicodeEncodeError:
        raise InvalidOption(f"{what} has half a surrogate pair. Use valid Unicode.") from None
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"{what} is not JSON: {error}.") from error
    return text.replace("\x7f", "\\u007f")  # which a grammar cannot have as it is


def grammar_source(text: str, *, coerce_one_of: bool = False) -> str:
    """Return llguidance's grammar of the schema `text`.

    Raises:
        ValueError: the schema is nested too deeply.
    """
    from llguidance import LLMatcher

    options = WHITESPACE | {"coerce_one_of": coerce_one_of}
    try:
        if '"$ref"' in text and References(json.loads(text)).depth() > _DEEPEST:
            raise ValueError
        return LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError("it is nested too deeply. Make it flatter.") from None


def problem(text: str, *, coerce_one_of: bool = False) -> str | None:
    """Return the message on why the schema `text` cannot be followed; None if it can be."""
    from llguidance import LLMatcher

    try:
        source = grammar_source(text, coerce_one_of=coerce_one_of)
    except ValueError as error:
        return str(error)
    return with_large_stack(lambda: LLMatcher.validate_grammar(source)) or circular(text)


def circular(text: str) -> str | None:
    """Return the message on a reference of the schema `text` that leads to itself alone, if any."""
    if '"$ref"' not in text:
        return None
    reference = References(json.loads(text)).circular()
    return None if reference is None else f"$ref {reference!r:.60} {_CIRCULAR}."


def explain(text: str, error: str) -> str:
    """Explain llguidance's `error` for the schema `text` with the keywords and their places."""
    loosening = _Loosening(json.loads(text), coerce_one_of=False)
    with suppress(RecursionError):
        loosening.loosen()
    dropped = loosening.dropped
    if not dropped or "nested too deeply" in error:
        return reason(error)
    if keywords := [keyword for keyword, cause in dropped if _UNIMPLEMENTED.search(cause)]:
        return f"it uses {', '.join(keywords[:3])}, not supported here. Leave that out."
    keyword, cause = dropped[0]
    if "coerce_one_of" in cause:
        return f"{keyword} has branches that may both hold, not supported here. Use anyOf."
    if cause == _CIRCULAR:
        return f"{keyword} {cause}."
    return f"{keyword}: {reason(cause)}"


def loosened(text: str) -> str:
    """Return a schema that can be followed and allows at least what the schema `text` does.

    Keywords that cannot be followed are left out where they stand. If that is not enough, only the
    names of the properties stay, and at last any JSON object is allowed.
    """
    loosening = _Loosening(json.loads(text), coerce_one_of=True)
    for make in (loosening.loosen, loosening.outline):
        with suppress(RecursionError):
            found = schema_text(make())
            if problem(found, coerce_one_of=True) is None:
                return found
    return schema_text(ANY_OBJECT)


def reason(error: str) -> str:
    """Return llguidance's message on one line, without its listing of the grammar."""
    parse_error = re.search(r"error: (.*)", error)
    message = " ".join((parse_error[1] if parse_error else error.split("\n")[0]).split())
    return message if message.endswith(".") else message + "."


class _Loosening:
    """Removal of the keywords of a schema that cannot be followed.

    dropped: the removed keywords, each with its place, and llguidance's error.
    """

    def __init__(self, root: Mapping[str, Any], *, coerce_one_of: bool) -> None:
        self.dropped: list[tuple[str, str]] = []
        self._root = root
        self._references = References(root)
        self._coerce_one_of = coerce_one_of
        self._errors: dict[str, str | None] = {}  # by schema

    def loosen(self) -> Schema:
        """Return the schema without the keywords that cannot be followed."""
        return self._loosen(self._root, ())

    def outline(self) -> Schema:
        """Return a schema of the same properties with any values."""
        properties = self._root.get("properties")
        if not isinstance(properties, Mapping):
            return ANY_OBJECT
        required = self._root.get("required")
        names = required if isinstance(required, list) else []
        return {
            "type": "object",
            "properties": dict.fromkeys(properties, True),
            "required": [name for name in names if name in properties],
        }

    def _loosen(self, schema: Any, place: tuple[str, ...]) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            self._drop("a schema", place, "it must be an object or a boolean", schema)
            return True
        children: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in ONE:
                children[keyword] = self._loosen(value, (*place, keyword))
            elif keyword in SEVERAL and isinstance(value, list) and value:
                children[keyword] = self._branches(keyword, value, place)
            elif keyword in NAMED and isinstance(value, Mapping):
                children[keyword] = {
                    name: self._loosen(child, (*place, keyword, name))
                    for name, child in value.items()
                    if keyword != "patternProperties" or self._has_pattern(name, place)
                }
            elif keyword == "$ref":
                target = self._references.target(value)
                if target is None:
                    self._drop(keyword, place, "it points to no schema in here", value)
                elif not self._references.leads(target):
                    self._drop(keyword, place, _CIRCULAR, value)
                else:
                    children[keyword] = value
            else:
                own[keyword] = value
        patterns = schema.get("patternProperties")
        if isinstance(patterns, Mapping) and len(patterns) > len(children["patternProperties"]):
            children.pop("additionalProperties", None)  # or it would forbid what they allowed
        kept = self._own(own, place) | children
        return {keyword: kept[keyword] for keyword in schema if kept.get(keyword) is not None}

    def _branches(self, keyword: str, value: list[Any], place: tuple[str, ...]) -> Any:
        """Loosen the branches of a combination; None for a oneOf that cannot be followed."""
        branches = [self._loosen(child, (*place, keyword, str(n))) for n, child in enumerate(value)]
        if keyword == "oneOf" and not self._coerce_one_of:
            error = problem(json.dumps(self._within_root({keyword: branches})))
            if error and "coerce_one_of" in error:
                self._drop(keyword, place, error)
                return None
        return branches

    def _within_root(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schema with the root's definitions, which it may refer to."""
        definitions = {
            key: self._root[key] for key in ("$defs", "definitions") if key in self._root
        }
        return {**definitions, **schema}

    def _own(self, own: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        """Drop keywords that cannot be followed by themselves, then those that exclude another."""
        if self._error(own) is None:
            return own
        kept = {}
        for keyword, value in own.items():
            # Some keywords are looked at only beside a type.
            beside = {"type": own["type"]} if keyword != "type" and "type" in own else {}
            if not beside or self._error(beside):
                beside = {"type": "string"} if keyword in ("format", "pattern") else {}
            if error := self._error({**beside, keyword: value}):
                self._drop(keyword, place, error, value)
            else:
                kept[keyword] = value
        while error := self._error(kept):
            for keyword in reversed(kept):
                rest = {other: value for other, value in kept.items() if other != keyword}
                if self._error(rest) is None or keyword == next(iter(kept)):
                    self._drop(keyword, place, error, kept[keyword])
                    kept = rest
                    break
        return kept

    def _has_pattern(self, pattern: str, place: tuple[str, ...]) -> bool:
        error = self._error({"patternProperties": {pattern: True}})
        if error:
            self._drop("patternProperties", place, error, pattern)
        return error is None

    def _error(self, schema: Mapping[str, Any]) -> str | None:
        text = schema_text(schema)
        if text not in self._errors:
            self._errors[text] = problem(text)
        return self._errors[text]

    def _drop(self, keyword: str, place: tuple[str, ...], error: str, value: Any = None) -> None:
        is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        shown = f" {value!r:.60}" if is_plain else ""
        where = f" at {'.'.join(place):.60}" if place else ""
        text = f"{keyword}{shown}{where}"
        self.dropped.append(("".join(c if c.isprintable() else "\ufffd" for c in text), error))
