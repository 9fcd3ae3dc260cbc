"""Kinds of generation options that have more than one form: their checks, and their normal form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magistral_mlx.cache.scheme import NAMES, SCHEMES, KVScheme
from magistral_mlx.errors import InvalidOption
from magistral_mlx.option_spec import Kind, check_unicode, several

_LARGEST_BIAS = 100


class Default:
    """The type of `DEFAULT`."""

    def __repr__(self) -> str:
        return "DEFAULT"

    def __reduce__(self) -> str:
        """Copies and pickles of it are the one that there is."""
        return "DEFAULT"


DEFAULT = Default()
"""The checkpoint's own system prompt, as the value of `system`."""


class CacheScheme(Kind):
    """Name of a KV cache scheme. values: those that a plan chooses from."""

    metavar = "full|KEYS/VALUES"
    words = NAMES
    values = SCHEMES

    def validate(self, name: str, value: Any) -> str:
        try:
            return KVScheme.parse(value).name
        except (InvalidOption, TypeError):
            self._refuse(name, value)


class TokenIds(Kind):
    """Ids of tokens, as a frozenset."""

    metavar = "N[,N]"
    words = "a list of token ids"

    def validate(self, name: str, value: Any) -> frozenset[int]:
        ids = several(name, value)
        if not all(type(id) is int and id >= 0 for id in ids):
            self._refuse(name, value)
        return frozenset(ids)


class LogitBias(Kind):
    """Token ids, which may be text as they are in JSON, to what is added to their logits."""

    metavar = "ID=BIAS"
    words = f"a mapping of token ids to numbers from -{_LARGEST_BIAS} to {_LARGEST_BIAS}"

    def validate(self, name: str, value: Any) -> dict[int, float]:
        try:
            biases = {int(id): float(bias) for id, bias in value.items()}
        except (AttributeError, TypeError, ValueError):
            self._refuse(name, value)
        for id, bias in biases.items():
            if id < 0 or not -_LARGEST_BIAS <= bias <= _LARGEST_BIAS:
                raise InvalidOption(f"{name} holds {bias} for token {id}; it must be {self.words}.")
        return biases


class ThinkingMode(Kind):
    """On, off, or the most tokens of a trace."""

    metavar = "on|off|TOKENS"
    words = '"on", "off", or a number of tokens of 1 or more'

    def validate(self, name: str, value: Any) -> Any:
        if isinstance(value, bool):
            return "on" if value else "off"
        if value not in ("on", "off") and (type(value) is not int or value < 1):
            self._refuse(name, value)
        return value


class JSONSchema(Kind):
    """A JSON schema that allows something, as JSON text or parsed, or a pydantic class."""

    metavar = "FILE"
    words = "a JSON schema: an object or true, or a pydantic class"

    def validate(self, name: str, value: Any) -> Any:
        import json

        schema = value
        if isinstance(value, type) and hasattr(value, "model_json_schema"):
            return value
        if isinstance(value, str):
            try:
                schema = json.loads(value)
            except RecursionError:
                raise InvalidOption(f"{name} is nested too deeply to be read.") from None
            except ValueError as error:
                raise InvalidOption(f"{name} is not JSON: {error}.") from error
        if schema is not True and not isinstance(schema, Mapping):
            self._refuse(name, schema)
        try:
            text = json.dumps(schema, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return value  # what compiles it says why
        check_unicode(name, text)
        return value


class Tools(Kind):
    """Functions that the model may call: Tools, dicts as in OpenAI's API, or Python functions."""

    metavar = "FILE"
    words = "a list of tools"

    def validate(self, name: str, value: Any) -> Any:
        from magistral_mlx.api.inputs import to_tools
        from magistral_mlx.chat.messages import Tool

        single = isinstance(value, Tool | Mapping) or callable(value)
        return to_tools(value if single else several(name, value))


class SystemPrompt(Kind):
    """A System, text, or DEFAULT; empty text is none."""

    words = "text, a System or None"

    def validate(self, name: str, value: Any) -> Any:
        from magistral_mlx.chat.messages import System

        if isinstance(value, str):
            check_unicode(name, value)
            return System(value) if value else None
        if not isinstance(value, System | Default):
            self._refuse(name, value)
        if isinstance(value, System):
            parts = (value.content,) if isinstance(value.content, str) else value.content
            for part in parts:
                check_unicode(name, part if isinstance(part, str) else part.text)
        return value


class DrySettings(Kind):
    """Whether DRY is used, or its settings."""

    metavar = ""
    words = "True, False or a Dry"

    def validate(self, name: str, value: Any) -> Any:
        if not isinstance(value, bool):
            from magistral_mlx.engine.dry import Dry

            if not isinstance(value, Dry):
                self._refuse(name, value)
        return value
