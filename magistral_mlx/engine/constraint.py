"""Structured output: what the answer must look like, as a mask over the next token.

llguidance (Rust, MIT) follows the grammar; a mask over 131,072 tokens takes it well under a
millisecond, on the host, while the device computes the logits.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Schema = Mapping[str, Any] | bool

# Where JSON allows whitespace any amount is allowed by default, and a model can get lost in it.
_WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,48}"}


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, for any number of generations. A `GrammarCompiler` makes it."""

    start: LLMatcher
    vocab_size: int


class GrammarCompiler:
    """Makes grammars for one vocabulary. Making the compiler takes some tenths of a second."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLTokenizer

        table = _TokenTable(vocabulary)  # has what a TokenizerWrapper has, without the trial calls
        self._tokenizer: LLTokenizer = LLTokenizer(table)  # type: ignore[arg-type]
        self._vocab_size = len(vocabulary.tokens)

    def json_schema(self, schema: Schema | str) -> Grammar:
        """JSON that is valid against `schema` (Draft 2020-12), given as such or as JSON text.

        Properties come in the order of the schema.

        Raises:
            InvalidOption: no schema, or one with a keyword that cannot be followed; it is named.
        """
        return self._json_schema(schema, "the JSON schema")

    def json(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """Text that `pattern` matches as a whole (Rust's syntax, without look-around).

        Raises:
            InvalidOption: a pattern that is damaged, or that cannot be followed.
        """
        from llguidance import LLMatcher

        return self._compile(LLMatcher.grammar_from_regex(pattern), f"the regex {pattern!r}")

    def choice(self, options: Sequence[str]) -> Grammar:
        """One of `options`, word for word; one or more, none empty."""
        return self._compile("start: " + " | ".join(map(_literal, options)), "the choice")

    def tool_calls(
        self,
        tools: Mapping[str, Schema],
        *,
        call: int,
        args: int,
        required: bool = False,
        parallel: bool = True,
        answer: Schema | str | None = None,
    ) -> Grammar:
        """Text, or calls to `tools` with arguments that are valid, or text and then calls.

        Args:
            tools: name -> JSON schema of its arguments; one or more.
            call, args: ids of [TOOL_CALLS] and [ARGS]: a call is call, name, args, JSON.
            required: calls and nothing else.
            parallel: whether there may be more than one call.
            answer: the schema of an answer that is no call; text before a call is out then.

        Raises:
            InvalidOption: as for `json_schema`, with the tool named.
        """
        rules = [f"calls: {'one_call+' if parallel else 'one_call'}"]
        for number, (name, schema) in enumerate(tools.items()):
            self._json_schema(schema, f"the JSON schema of the tool {name!r}")
            arguments = _inner_schema(schema)
            rules.append(f"call_{number}: <[{call}]> {_literal(name)} <[{args}]> {arguments}")
        rules.append("one_call: " + " | ".join(f"call_{n}" for n in range(len(tools))))
        if required:
            rules.append("start: calls")
        elif answer is not None:
            self.json_schema(answer)
            rules += [f"answer: {_inner_schema(answer)}", "start: answer | calls"]
        else:
            rules += [r"TEXT: /(.|\n)+/", "start: TEXT? calls?"]
        return self._compile("\n".join(rules), "the grammar of the tool calls")

    def _json_schema(self, schema: Schema | str, what: str) -> Grammar:
        from llguidance import LLMatcher

        source = LLMatcher.grammar_from_json_schema(
            _schema_text(schema, what),
            overrides=_WHITESPACE,  # type: ignore[arg-type]  # a part of the options is enough
        )
        return self._compile(source, what)

    def _compile(self, source: str, what: str) -> Grammar:
        from llguidance import LLMatcher

        start = LLMatcher(self._tokenizer, source, log_level=0)
        if start.is_error():
            raise InvalidOption(f"{what} cannot be followed: {_reason(start.get_error())}")
        return Grammar(start, self._vocab_size)


@dataclass
class MaskCost:
    """Seconds that a grammar has taken on the host, and masks that were computed in them."""

    seconds: float = 0.0
    masks: int = 0


class GrammarMask:
    """How far one generation has come in its grammar. Once it is complete only eos is allowed."""

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        """`vocab_size` is the model's, which may be larger than the tokenizer's."""
        self._matcher = grammar.start.deep_copy()
        self._words = -(-grammar.vocab_size // 32)
        self._bits = np.zeros(max(self._words, -(-vocab_size // 32)), np.uint32)
        self.cost = MaskCost()

    def copy(self) -> GrammarMask:
        """One that goes its own way from here. What it takes counts for both."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        other._bits = self._bits.copy()
        return other

    def next(self, also: int | None = None) -> NDArray[np.uint32]:
        """The ids that may come next, one bit each, the lowest first in each word.

        The array is overwritten by the next call.

        Args:
            also: an id that may come whatever the grammar says.
        """
        start = time.perf_counter()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, 4 * self._words)
        self._check()
        if also is not None:
            self._bits[also // 32] |= np.uint32(1 << also % 32)
        self.cost.masks += 1
        self.cost.seconds += time.perf_counter() - start
        return self._bits

    def accept(self, token: int) -> None:
        """Go on by `token`, one that the mask allowed."""
        start = time.perf_counter()
        self._matcher.consume_token(token)
        self._check()
        self.cost.seconds += time.perf_counter() - start

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidOption(
                "the grammar could not be followed to its end: "
                f"{_reason(self._matcher.get_error())} Make it simpler."
            )


class _TokenTable:
    """A vocabulary as llguidance asks for it (its `TokenizerWrapper`)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._encode = vocabulary.encode
        self.eos_token_id = vocabulary.eos
        self.special_token_ids = [n for n, piece in enumerate(vocabulary.tokens) if not piece]
        # A control token has no text; llguidance wants a name, which no grammar of ours uses.
        self.tokens = [piece or b"<|%d|>" % n for n, piece in enumerate(vocabulary.tokens)]

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


def _schema_text(schema: Schema | str, what: str = "the JSON schema") -> str:
    """The schema as JSON text; what allows everything as the empty object."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if not isinstance(parsed, Mapping):
            raise InvalidOption(f"{what} is {parsed!r}; it must be an object or true.")
        return json.dumps(dict(parsed), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"{what} is not JSON: {error}.") from error


def _inner_schema(schema: Schema | str) -> str:
    """The schema inside a larger grammar, with our rule for whitespace."""
    return "%json " + json.dumps(json.loads(_schema_text(schema)) | {"x-guidance": _WHITESPACE})


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _reason(error: str) -> str:
    """llguidance's message on one line, without the listing of the grammar."""
    unsupported = re.search(r"Unimplemented keys: \[(.*?)\]", error)
    if unsupported:
        keywords = unsupported[1].replace('"', "")
        return f"it uses {keywords}, not supported here. Leave that out."
    if "coerce_one_of" in error:
        return "it has a oneOf whose branches may both hold, not supported here. Use anyOf."
    parse_error = re.search(r"error: (.*)", error)
    reason = " ".join((parse_error[1] if parse_error else error.split("\n")[0]).split())
    return reason if reason.endswith(".") else reason + "."
