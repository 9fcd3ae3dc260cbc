"""Structured output: grammars for the answer, and masks over the next token.

llguidance (Rust, MIT) tracks the grammar; a mask over 131,072 tokens takes well under a millisecond
on the host, while the device computes the logits.

The file is longer than others because one compiler makes all kinds of grammars, which share rules.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.escaped_grammar import escaped_lark
from magistral_mlx.engine.json_schemas import (
    ANY_OBJECT,
    WHITESPACE,
    Schema,
    circular,
    explain,
    grammar_source,
    loosened,
    problem,
    reason,
    schema_text,
)
from magistral_mlx.engine.large_stack import with_large_stack
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_RULES = 10_000  # each may lead to the next, and a large stack is enough for twice as many
_RULE = re.compile(r"^[ \t]*[?!]?\w[\w-]*[^:\n]*:", re.MULTILINE)
_CALLS = "the grammar of the tool calls"


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar, for any number of generations; made by a `GrammarCompiler`."""

    start: LLMatcher
    vocab_size: int


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Creating it takes some tenths of a second."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLTokenizer

        table = _TokenTable(vocabulary)  # like a TokenizerWrapper, without its trial calls
        self._tokenizer: LLTokenizer = LLTokenizer(table)  # type: ignore[arg-type]
        self._vocab_size = len(vocabulary.tokens)

    def json_schema(self, schema: Schema | str) -> Grammar:
        """Compile a grammar of JSON that is valid against `schema` (Draft 2020-12, or JSON text).

        Properties come in the order of the schema.

        Raises:
            InvalidOption: not a schema, or it has a keyword that cannot be followed, with its name.
        """
        text, what = schema_text(schema), "the JSON schema"
        try:
            source = grammar_source(text)
        except ValueError as error:
            raise InvalidOption(f"{what} cannot be followed: {error}") from None
        return self._compile(source, what, text)

    def json(self) -> Grammar:
        """Compile a grammar of any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """Compile a grammar of text that `pattern` matches entirely (Rust's syntax).

        Raises:
            InvalidOption: an invalid pattern, or one with look-around or backreferences.
        """
        from llguidance import LLMatcher

        _check_unicode(pattern, "the regex")
        return self._compile(LLMatcher.grammar_from_regex(pattern), f"the regex {pattern!r}")

    def choice(self, options: Sequence[str]) -> Grammar:
        """One of `options`, word for word; one or more, none empty."""
        for option in options:
            _check_unicode(option, "the choice")
        return self._compile("start: " + " | ".join(map(_literal, options)), "the choice")

    def grammar(self, text: str) -> Grammar:
        """Compile a grammar in llama.cpp's GBNF, or in Lark as llguidance takes it.

        Raises:
            InvalidOption: it is neither.
        """
        from llguidance.gbnf_to_lark import any_to_lark

        what = "the grammar"
        _check_unicode(text, what)
        _check_rules(text, what)
        try:
            source = any_to_lark(text)
        except Exception as error:  # it raises kinds of its own, and plain ones
            raise InvalidOption(f"{what} cannot be followed: {error}.") from None
        return self._compile(source, what)

    def tool_calls(
        self,
        tools: Mapping[str, Schema],
        *,
        call: int,
        args: int,
        required: bool = False,
        parallel: bool = True,
        answer: Schema | str | None = None,
        strict: Collection[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> Grammar:
        """Compile a grammar of text, or calls to `tools`, or text followed by calls.

        Args:
            tools: JSON schema of the arguments by tool name.
            call, args: ids of [TOOL_CALLS] and [ARGS]: a call is call, name, args, JSON.
            required: calls only.
            parallel: allow more than one call.
            answer: schema of an answer without calls; there is no text before a call then.
            strict: names of the tools whose arguments must be valid. Arguments of the others
                follow their schema as far as it can be followed.
            texts: Lark grammars by tool name, of the text in a tool's one argument, `input`; "" for
                none.

        Raises:
            InvalidOption: no tools, a schema that is none, or one that a strict tool or the answer
                cannot follow, with the tool's name and the keyword; a grammar that cannot be.
        """
        if not tools:
            raise InvalidOption("no tools are given; a grammar for calls needs one or more.")
        schemas = {}
        for name, schema in tools.items():
            _check_unicode(name, "the name of a tool")
            what = f"the JSON schema of the tool {name!r}"
            if texts and texts.get(name):
                schemas[name] = self._text_argument(texts[name], name)
                continue
            schemas[name] = (
                _inner_schema(_followed(schema, what))
                if name in strict
                else _best_effort(schema, what)
            )
        if required:
            rules = ["start: calls"]
        elif answer is not None:
            text = _followed(answer, "the JSON schema")
            rules = [f"answer: {_inner_schema(text)}", "start: answer | calls"]
        else:
            rules = [r"TEXT: /(.|\n)+/", "start: TEXT? calls?"]
        rules.append(f"calls: {'one_call+' if parallel else 'one_call'}")
        rules.append("one_call: " + " | ".join(f"call_{n}" for n in range(len(tools))))
        try:
            return self._compile(_call_rules(rules, schemas, call, args), _CALLS)
        except InvalidOption:  # each schema can be followed, but not all of them together
            loose = {
                name: _inner_schema(schema_text(ANY_OBJECT)) for name in set(tools) - {*strict}
            }
            if not loose:
                raise
            return self._compile(_call_rules(rules, schemas | loose, call, args), _CALLS)

    def _text_argument(self, grammar: str, tool: str) -> str:
        """The arguments of a tool that takes a text, inside a larger grammar."""
        what = f"the grammar of the tool {tool!r}"
        _check_unicode(grammar, what)
        _check_rules(grammar, what)
        try:
            escaped = escaped_lark(grammar)
        except ValueError as error:
            raise InvalidOption(f"{what} cannot be followed: {error}.") from None
        self._compile(escaped, what)
        return f'"{{\\"input\\": \\"" %lark {{\n{escaped}\n}} "\\"}}"'

    def _compile(self, source: str, what: str, schema: str | None = None) -> Grammar:
        """Compile a grammar; `schema` is the text of the JSON schema that it was made from."""
        return with_large_stack(lambda: self._compiled(source, what, schema))

    def _compiled(self, source: str, what: str, schema: str | None) -> Grammar:
        from llguidance import LLMatcher

        start = LLMatcher(self._tokenizer, source, log_level=0)
        why: str | None
        if start.is_error():
            error = start.get_error()
            why = reason(error) if schema is None else explain(schema, error)
        elif not (why := None if schema is None else circular(schema)):
            first = start.deep_copy()
            first.compute_bitmask()
            why = "it allows no text at all." if first.is_error() else None
        if why:
            raise InvalidOption(f"{what} cannot be followed: {why}")
        return Grammar(start, self._vocab_size)


@dataclass
class MaskCost:
    """Host time of a grammar in seconds, and the number of masks computed."""

    seconds: float = 0.0
    masks: int = 0


class GrammarMask:
    """State of one generation in its grammar. Once it is complete only eos is allowed."""

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        """Start at the beginning. `vocab_size`: the model's, which may exceed the tokenizer's."""
        self._matcher = grammar.start.deep_copy()
        self._words = -(-grammar.vocab_size // 32)
        self._bits = np.zeros(max(self._words, -(-vocab_size // 32)), np.uint32)
        self.cost = MaskCost()

    def copy(self) -> GrammarMask:
        """Return an independent copy, except that both count their time together."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        other._bits = self._bits.copy()
        return other

    def next(self, also: int | None = None) -> NDArray[np.uint32]:
        """Return a bitmask of the ids that may come next, lowest bit first in each word.

        The next call overwrites the array.

        Args:
            also: an id that is allowed in any case.
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
        """Advance by `token`, which the mask allowed."""
        start = time.perf_counter()
        self._matcher.consume_token(token)
        self._check()
        self.cost.seconds += time.perf_counter() - start

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidOption(
                "the grammar failed before its end: "
                f"{reason(self._matcher.get_error())} Make it simpler."
            )


class _TokenTable:
    """A vocabulary with the interface of llguidance's `TokenizerWrapper`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._encode = vocabulary.encode
        self.eos_token_id = vocabulary.eos
        self.special_token_ids = [n for n, piece in enumerate(vocabulary.tokens) if not piece]
        # A control token has no text; llguidance needs a name, which no grammar of ours uses.
        self.tokens = [piece or b"<|%d|>" % n for n, piece in enumerate(vocabulary.tokens)]

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


def _inner_schema(text: str, *, coerce_one_of: bool = False) -> str:
    """A schema inside a larger grammar, with our options."""
    options = WHITESPACE | {"coerce_one_of": coerce_one_of}
    return "%json " + schema_text(json.loads(text) | {"x-guidance": options})


def _check_rules(grammar: str, what: str) -> None:
    if len(_RULE.findall(grammar)) > _MOST_RULES:
        raise InvalidOption(f"{what} has more than {_MOST_RULES:,} rules. Make it smaller.")


def _literal(text: str) -> str:
    """A string of a grammar. Its lexer takes U+007F only as an escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidOption(f"{what} has half a surrogate pair. Use valid Unicode.") from None


def _followed(schema: Schema | str, what: str) -> str:
    """Return the text of a schema that can be followed exactly.

    Raises:
        InvalidOption: it cannot, with the keywords and their places.
    """
    text = schema_text(schema, what)
    if error := problem(text):
        raise InvalidOption(f"{what} cannot be followed: {explain(text, error)}")
    return text


def _best_effort(schema: Schema, what: str) -> str:
    """Return the schema in a grammar, loosened where it cannot be followed."""
    text = schema_text(schema, what)
    if problem(text) is None:
        return _inner_schema(text)
    return _inner_schema(loosened(text), coerce_one_of=True)


def _call_rules(rules: Sequence[str], schemas: Mapping[str, str], call: int, args: int) -> str:
    """The grammar with a rule for each tool's call."""
    calls = [
        f"call_{n}: <[{call}]> {_literal(name)} <[{args}]> {arguments}"
        for n, (name, arguments) in enumerate(schemas.items())
    ]
    return "\n".join([*rules, *calls])
