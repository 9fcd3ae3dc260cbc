"""Grammars: what may be written under them, from when on, and what is said where they fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest

from magistral_mlx.chat.parser import Parser
from magistral_mlx.engine.constraint import Grammar, GrammarCompiler, GrammarMask
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import Text, ToolCall, ToolCallPart
from tests.engine_models import (
    TableModel,
    ids_of,
    start,
    tiny_model,
    tiny_tokenizer,
    tiny_vocabulary,
)

EOS, CALL, ARGS, OPEN, CLOSE = 2, 9, 32, 34, 35
PET = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "maximum": 30}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
TOOLS = {
    "get": {"type": "object", "properties": {}, "additionalProperties": False},
    "get_all": PET,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_vocabulary())


def written(grammar: Grammar, seed: int = 0, **options: Any) -> list[int]:
    """What the tiny random model writes at temperature 1, with little whitespace."""
    bias = {t: -8.0 for t, piece in enumerate(tiny_vocabulary().tokens) if piece.isspace()}
    given = {"sampling": Sampling(1, 1, seed, logit_bias=bias), "limit": 300} | options
    prompt = [1, 3, 1100 + seed, 4]
    return ids_of(start(tiny_model(), prompt, stop_tokens={EOS}, grammar=grammar, **given))


def text_of(ids: list[int]) -> str:
    return b"".join(tiny_vocabulary().tokens[token] for token in ids).decode()


def allowed(mask: GrammarMask) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.next().view(np.uint8), bitorder="little")))


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_given_as_json_text_is_followed(seed: int, compiler: GrammarCompiler) -> None:
    ids = written(compiler.json_schema(json.dumps(PET)), seed)
    assert ids[-1] == EOS
    jsonschema.validate(json.loads(text_of(ids)), PET)


def test_a_json_object_is_an_object(compiler: GrammarCompiler) -> None:
    mask = GrammarMask(compiler.json(), 1280)
    starts = {tiny_vocabulary().tokens[token][:1] for token in allowed(mask)}
    assert starts == {b"{"}


@pytest.mark.parametrize("seed", range(5))
def test_a_regex_is_matched_as_a_whole(seed: int, compiler: GrammarCompiler) -> None:
    pattern = "[A-Z][0-9]{3}-(x|yz)"
    ids = written(compiler.regex(pattern), seed)
    assert ids[-1] == EOS
    assert re.fullmatch(pattern, text_of(ids))


def test_a_choice_is_one_of_the_options_word_for_word(compiler: GrammarCompiler) -> None:
    options = ["yes", "no", 'say "maybe"', "größer", "\n"]
    grammar = compiler.choice(options)
    seen = {text_of(written(grammar, seed)) for seed in range(40)}
    assert seen <= set(options)
    assert len(seen) > 2


def test_once_the_grammar_is_complete_only_the_end_of_the_turn_may_come(
    compiler: GrammarCompiler,
) -> None:
    mask = GrammarMask(compiler.choice(["yes"]), 1280)
    for token in tiny_tokenizer().encode("yes"):
        mask.accept(token)
    assert allowed(mask) == {EOS}


def test_text_that_is_certain_comes_in_the_tokenizer_s_own_tokens(
    compiler: GrammarCompiler,
) -> None:
    """Other ways to split it would be legal bytes, but nothing that the model was trained on."""
    mask = GrammarMask(compiler.choice(["the other thing"]), 1280)
    for token in tiny_tokenizer().encode("the other thing")[:-1]:
        assert allowed(mask) == {token}
        mask.accept(token)


def test_whitespace_inside_json_has_an_end(compiler: GrammarCompiler) -> None:
    mask = GrammarMask(compiler.json_schema(PET), 1280)
    mask.accept(tiny_tokenizer().encode("{")[0])
    blank = tiny_tokenizer().encode("\n")[0]
    for _ in range(48):
        assert blank in allowed(mask)
        mask.accept(blank)
    assert blank not in allowed(mask)


def test_ids_past_the_tokenizer_s_vocabulary_are_never_drawn(compiler: GrammarCompiler) -> None:
    table = np.zeros((1500, 1500), np.float32)
    table[:, 1280:] = 50
    grammar = compiler.regex("[a-z]{20}")
    ids = ids_of(start(TableModel(table), [1], grammar=grammar, stop_tokens={EOS}))
    assert max(ids) < 1280


def test_a_grammar_serves_several_generations_at_once(compiler: GrammarCompiler) -> None:
    grammar = compiler.regex("[a-z]{5}")
    pair = [start(tiny_model(), [1, 3], grammar=grammar, stop_tokens={EOS}) for _ in range(2)]
    ids = [
        step.id for steps in zip(*pair, strict=True) for step in steps if isinstance(step, Token)
    ]
    assert ids[::2] == ids[1::2]
    assert re.fullmatch("[a-z]{5}", text_of(ids[::2]))


def test_the_time_of_the_masks_is_counted(compiler: GrammarCompiler) -> None:
    generation = start(tiny_model(), [1, 3], grammar=compiler.regex("[a-z]{9}"), stop_tokens={EOS})
    ids = ids_of(generation)
    assert generation.masks == len(ids)
    assert 0 < generation.mask_seconds < 1


# 20 [THINK] 1000 1001 1002 [/THINK] 1100 1101 ...: no JSON anywhere
RAMBLES = {20: OPEN, OPEN: 1000, 1002: CLOSE, CLOSE: 1100}


@pytest.fixture(scope="module")
def rambling() -> TableModel:
    return TableModel.successors(RAMBLES, 1280)


def test_a_trace_is_free_and_the_answer_after_it_is_not(
    rambling: TableModel, compiler: GrammarCompiler
) -> None:
    ids = ids_of(
        start(rambling, [20], grammar=compiler.choice(["yes"]), thinking=ThinkingRules(OPEN, CLOSE),
              stop_tokens={EOS})
    )  # fmt: skip
    trace = [OPEN, 1000, 1001, 1002, CLOSE]
    assert ids == [*trace, *tiny_tokenizer().encode("yes"), EOS]


def test_a_model_that_opens_no_trace_answers_by_the_grammar_at_once(
    compiler: GrammarCompiler,
) -> None:
    yes = tiny_tokenizer().encode("yes")
    model = TableModel.successors({20: yes[0]}, 1280)
    ids = ids_of(
        start(model, [20], grammar=compiler.choice(["yes"]), thinking=ThinkingRules(OPEN, CLOSE),
              stop_tokens={EOS})
    )  # fmt: skip
    assert ids == [*yes, EOS]


@pytest.mark.parametrize("thinking", [None, ThinkingRules(OPEN, CLOSE, enabled=False)])
def test_without_thinking_the_grammar_holds_from_the_start(
    thinking: ThinkingRules | None, rambling: TableModel, compiler: GrammarCompiler
) -> None:
    grammar = compiler.choice(["yes"])
    ids = ids_of(start(rambling, [20], grammar=grammar, thinking=thinking, stop_tokens={EOS}))
    assert ids == [*tiny_tokenizer().encode("yes"), EOS]


def test_a_trace_cannot_end_the_turn_before_the_answer_has_come(
    compiler: GrammarCompiler,
) -> None:
    thinking = ThinkingRules(OPEN, CLOSE, exits=frozenset((EOS, CALL)), inside=True, budget=5)
    model = TableModel.successors({20: EOS, EOS: CALL}, 1280)
    grammar = compiler.choice(["yes"])
    ids = ids_of(start(model, [20], grammar=grammar, thinking=thinking, stop_tokens={EOS}))
    assert ids[5:] == [CLOSE, *tiny_tokenizer().encode("yes"), EOS]
    assert not {EOS, CALL} & set(ids[:5])


def test_a_trace_cannot_be_opened_in_the_middle_of_an_answer(compiler: GrammarCompiler) -> None:
    yes = tiny_tokenizer().encode("yes")
    model = TableModel.successors({20: yes[0], yes[0]: OPEN}, 1280)
    ids = ids_of(
        start(model, [20], grammar=compiler.choice(["yes"]), thinking=ThinkingRules(OPEN, CLOSE),
              stop_tokens={EOS})
    )  # fmt: skip
    assert ids == [*yes, EOS]


def events_of(ids: list[int]) -> list[Any]:
    """Texts and whole calls; the pieces of calls are left out."""
    parser = Parser(tiny_tokenizer())
    events = [event for token in ids for event in parser.feed(token)] + parser.finish()
    return [event for event in events if not isinstance(event, ToolCallPart)]


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ('root ::= "cat" | "dog"', {"cat", "dog"}),
        ('start: "cat" | "dog"', {"cat", "dog"}),
        ('root ::= [xy] end\nend ::= "!" | "?"', {"x!", "x?", "y!", "y?"}),
        ("start: LETTER\nLETTER: /[pq]/", {"p", "q"}),
    ],
)
def test_a_grammar_in_either_notation_is_followed(
    compiler: GrammarCompiler, grammar: str, texts: set[str]
) -> None:
    compiled = compiler.grammar(grammar)
    assert {text_of(written(compiled, seed)[:-1]) for seed in range(3)} <= texts


@pytest.mark.parametrize("grammar", ["", "cat", "root ::= cat", "start: cat", "root ::= ("])
def test_a_grammar_that_is_none_is_refused(compiler: GrammarCompiler, grammar: str) -> None:
    with pytest.raises(InvalidOption, match="the grammar cannot be followed: "):
        compiler.grammar(grammar)


@pytest.mark.parametrize("seed", range(8))
def test_a_required_call_has_a_known_name_and_valid_arguments(
    seed: int, compiler: GrammarCompiler
) -> None:
    grammar = compiler.tool_calls(TOOLS, call=CALL, args=ARGS, required=True, parallel=False)
    ids = written(grammar, seed)
    assert ids[0] == CALL and ids[-1] == EOS
    (call,) = events_of(ids)
    assert isinstance(call, ToolCall)
    jsonschema.validate(json.loads(call.arguments), TOOLS[call.name])


def test_a_name_that_begins_another_one_can_end_or_go_on(compiler: GrammarCompiler) -> None:
    grammar = compiler.tool_calls(TOOLS, call=CALL, args=ARGS, required=True)
    names = set()
    for seed in range(12):
        names |= {event.name for event in events_of(written(grammar, seed, limit=2000))}
    assert names == {"get", "get_all"}


def test_several_calls_may_come_where_they_are_allowed(compiler: GrammarCompiler) -> None:
    mask = GrammarMask(compiler.tool_calls({"f": {}}, call=CALL, args=ARGS), 1280)
    for token in [CALL, *tiny_tokenizer().encode("f"), ARGS, *tiny_tokenizer().encode("{}")]:
        mask.accept(token)
    assert allowed(mask) == {CALL, EOS}


def test_text_may_come_instead_of_a_call_or_before_it(compiler: GrammarCompiler) -> None:
    grammar = compiler.tool_calls(TOOLS, call=CALL, args=ARGS)
    mask = GrammarMask(grammar, 1280)
    first = allowed(mask)
    assert {CALL, EOS} <= first
    assert len(first) > 200
    mask.accept(1100)
    assert {CALL, EOS, 1101} <= allowed(mask)
    mask.accept(CALL)
    assert {tiny_vocabulary().tokens[token][:1] for token in allowed(mask)} == {b"g"}


def test_an_answer_beside_the_calls_follows_its_schema(compiler: GrammarCompiler) -> None:
    grammar = compiler.tool_calls(TOOLS, call=CALL, args=ARGS, answer=PET)
    kinds = set()
    for seed in range(30):
        for event in events_of(written(grammar, seed, limit=2000)):
            kinds.add(type(event))
            if isinstance(event, ToolCall):
                jsonschema.validate(json.loads(event.arguments), TOOLS[event.name])
        if kinds == {Text, ToolCall}:
            break
    assert kinds == {Text, ToolCall}


def schema(value: Any) -> Callable[[GrammarCompiler], Grammar]:
    return lambda compiler: compiler.json_schema(value)


def tool(value: Any) -> Callable[[GrammarCompiler], Grammar]:
    return lambda compiler: compiler.tool_calls(
        {"look_up": value}, call=CALL, args=ARGS, strict=("look_up",)
    )


def chain(length: int) -> dict[str, Any]:
    """Definitions of which each is an object that holds the next."""
    parts: dict[str, Any] = {
        str(n): {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{n + 1}"}}}
        for n in range(length)
    }
    return {"$ref": "#/$defs/0", "$defs": parts | {str(length): {"type": "integer"}}}


def rules(count: int) -> str:
    """A grammar in Lark in which each rule leads to the next."""
    chained = "\n".join(f'r{n}: "a" r{n + 1}' for n in range(count - 2))
    return f'start: r0\n{chained}\nr{count - 2}: "b"'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (schema({"type": "array", "uniqueItems": True}), "it uses uniqueItems, not supported"),
        (schema({"not": {"type": "string"}}), "it uses not, not supported"),
        (schema({"type": "frog"}), "Invalid type: frog"),
        (schema({"type": "string", "format": "frog"}), "Unknown format: frog"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-ahead"),
        (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "Use anyOf"),
        (schema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (schema({"$ref": "#"}), r"schema cannot be followed: \$ref '#' refers to itself\."),
        (schema({"anyOf": [{"allOf": [{"$ref": "#"}]}]}), r"\$ref '#' refers to itself"),
        (schema({"$ref": "#", "type": "integer"}), r"\$ref '#' refers to itself"),
        (schema({"$anchor": "a", "$ref": "#a"}), "schema cannot be followed: it allows no text"),
        (lambda compiler: compiler.grammar("root ::= root"), "the grammar .* allows no text"),
        (lambda compiler: compiler.regex(r"[^\s\S]"), "the regex .* allows no text"),
        (schema(chain(2001)), "schema cannot be followed: it is nested too deeply"),
        (lambda compiler: compiler.grammar(rules(10_001)), "more than 10,000 rules"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema("{"), "is not JSON: .*line 1"),
        (schema("[]"), r"is \[\]; it must be an object"),
        (schema(False), "is False; it must be an object or true"),
        (schema({"const": float("nan")}), "is not JSON"),
        (schema({"const": {1}}), "is not JSON"),
        (tool({"if": {}}), "schema of the tool 'look_up' cannot be followed: it uses if"),
        (tool({"type": "frog"}), "'look_up' cannot be followed: type 'frog': Invalid type: frog"),
        (tool(3), "schema of the tool 'look_up' is 3"),
        (schema({"const": "\ud800"}), "half a surrogate pair"),
        (lambda compiler: compiler.choice(["yes", "\udc80"]), "half a surrogate pair"),
        (lambda compiler: compiler.regex("a|\ud800"), "half a surrogate pair"),
        (lambda compiler: compiler.regex("a(b"), r"the regex 'a\(b' .*unclosed group"),
        (lambda compiler: compiler.regex(r"(?<=a)b"), "look-behind"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(
    make: Callable[[GrammarCompiler], Grammar], message: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        make(compiler)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "make", [lambda c: c.json_schema(chain(900)), lambda c: c.grammar(rules(9000))]
)
def test_long_chains_do_not_overflow_the_stack(
    make: Callable[[GrammarCompiler], Grammar], compiler: GrammarCompiler
):
    mask = GrammarMask(make(compiler), len(tiny_vocabulary().tokens))
    assert allowed(mask.copy())


def test_schemas_of_tools_that_are_too_deep_are_followed_as_far_as_they_can_be(
    compiler: GrammarCompiler,
):
    calls = compiler.tool_calls({"deep": chain(3000)}, call=CALL, args=ARGS, required=True)
    assert allowed(GrammarMask(calls, len(tiny_vocabulary().tokens))) == {CALL}


def of_value(**value: Any) -> dict[str, Any]:
    """A schema of an object whose one property has the schema `value`."""
    return {"type": "object", "properties": {"value": value}, "required": ["value"]}


FILE = {"type": "string", "format": "path"}
# Schemas of tools that clients send, with the keyword that cannot be followed, and arguments that
# they allow.
UNSUPPORTED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "format path": (of_value(type="string", format="path"), "format", {"value": "/tmp"}),
    "format uri-reference": (
        of_value(type="string", format="uri-reference"),
        "format",
        {"value": "../a#b"},
    ),
    "format int64": (of_value(type="string", format="int64"), "format", {"value": "7"}),
    "format password": (of_value(type="string", format="password"), "format", {"value": "*"}),
    "format binary": (of_value(type="string", format="binary"), "format", {"value": "AA=="}),
    "uniqueItems": (of_value(type="array", uniqueItems=True), "uniqueItems", {"value": [1, 2]}),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        "propertyNames",
        {"ab": 1},
    ),
    "not": (of_value(**{"not": {"type": "null"}}), "not", {"value": 1}),
    "if and then": (
        of_value() | {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
        "if",
        {"value": 1, "a": 1, "b": 2},
    ),
    "oneOf that overlaps": (
        of_value(oneOf=[{"type": "integer"}, {"type": "number", "minimum": 5}]),
        "oneOf",
        {"value": 3},
    ),
    "look-ahead": (of_value(type="string", pattern="^(?!x)[a-z]+$"), "pattern", {"value": "abc"}),
    "look-behind": (of_value(type="string", pattern="(?<=a)b"), "pattern", {"value": "ab"}),
    "64-bit bounds": (
        of_value(type="integer", minimum=-(2**63), maximum=2**63 - 1),
        "minimum",
        {"value": -5},
    ),
    # More of the same kinds.
    "backreference": (of_value(type="string", pattern=r"(a)\1"), "pattern", {"value": "aa"}),
    "contains": (of_value(type="array", contains={"const": 1}), "contains", {"value": [1]}),
    "dependentRequired": (
        of_value() | {"dependentRequired": {"value": ["unit"]}},
        "dependentRequired",
        {"value": 1, "unit": "m"},
    ),
    "unevaluatedProperties": (
        of_value() | {"unevaluatedProperties": False},
        "unevaluatedProperties",
        {"value": 1},
    ),
    "a reference elsewhere": (
        of_value(**{"$ref": "https://example.com/other.json"}),
        "$ref",
        {"value": 1},
    ),
    "a reference to itself": (
        of_value(**{"$ref": "#/$defs/a"})
        | {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "$ref '#/$defs/a'",
        {"value": 1},
    ),
    "look-ahead in names": (
        {"type": "object", "patternProperties": {"^(?!x)": {}}, "additionalProperties": False},
        "patternProperties",
        {"a": 1},
    ),
    "inside a definition": (
        of_value(**{"$ref": "#/$defs/file"})
        | {"$defs": {"file": {"format": "path", "type": "string"}}},
        "format",
        {"value": "/tmp"},
    ),
    "deep inside": (
        of_value(
            type="array", items={"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]}
        ),
        "format",
        {"value": [None, "/tmp"]},
    ),
}
EACH_UNSUPPORTED = pytest.mark.parametrize(
    ("parameters", "keyword", "allows"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys()
)


@EACH_UNSUPPORTED
def test_arguments_without_strict_follow_what_can_be_followed(
    parameters: dict[str, Any], keyword: str, allows: Any, compiler: GrammarCompiler
) -> None:
    """Whatever the schema allows may be written."""
    grammar = compiler.tool_calls({"f": parameters}, call=CALL, args=ARGS, required=True)
    encode = tiny_tokenizer().encode
    mask = GrammarMask(grammar, 1280)
    for token in [CALL, *encode("f"), ARGS, *encode(json.dumps(allows)), EOS]:
        assert token in allowed(mask)
        mask.accept(token)


@EACH_UNSUPPORTED
def test_a_strict_tool_that_cannot_be_followed_is_named_with_the_keyword(
    parameters: dict[str, Any], keyword: str, allows: Any, compiler: GrammarCompiler
) -> None:
    tools = {"other": PET, "look_up": parameters}
    with pytest.raises(InvalidOption) as caught:
        compiler.tool_calls(tools, call=CALL, args=ARGS, strict=("look_up",))
    message = str(caught.value)
    assert message.startswith("the JSON schema of the tool 'look_up' cannot be followed: ")
    assert keyword in message
    assert "\n" not in message and len(message) < 300


@EACH_UNSUPPORTED
def test_an_answer_s_schema_that_cannot_be_followed_is_refused_with_the_keyword(
    parameters: dict[str, Any], keyword: str, allows: Any, compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidOption, match=re.escape(keyword)):
        compiler.json_schema(parameters)


@pytest.mark.parametrize(
    ("schema", "first"),
    [
        ({"anyOf": [{"$ref": "#"}, {"type": "integer"}]}, "7"),
        (
            {
                "anyOf": [{"$ref": "#/$defs/a"}, {"const": "7"}],
                "$defs": {"a": {"$ref": "#/$defs/a"}},
            },
            '"',
        ),
        ({"type": "array", "items": {"$ref": "#"}}, "["),
        ({"type": "object", "$defs": {"unused": {"$ref": "#/$defs/unused"}}}, "{"),
    ],
    ids=str,
)
def test_a_reference_to_itself_is_followed_where_something_else_may_come(
    schema: dict[str, Any], first: str, compiler: GrammarCompiler
) -> None:
    mask = GrammarMask(compiler.json_schema(schema), 1280)
    assert tiny_tokenizer().encode(first)[0] in allowed(mask)


def test_another_tool_that_is_strict_leaves_a_loose_one_alone(compiler: GrammarCompiler) -> None:
    loose = of_value(type="string", format="path", maxLength=9) | {"additionalProperties": False}
    tools = {"loose": loose, "pet": PET}
    grammar = compiler.tool_calls(
        tools, call=CALL, args=ARGS, required=True, parallel=False, strict=("pet",)
    )
    names = set()
    for seed in range(12):
        (call,) = events_of(written(grammar, seed, limit=2000))
        names.add(call.name)
        given = json.loads(call.arguments)
        if call.name == "pet":
            jsonschema.validate(given, PET)
        else:
            assert isinstance(given["value"], str)
    assert names == set(tools)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"value": False}, "required": ["value"]},
        {"allOf": [of_value(type="string"), of_value(type="integer")]},
        of_value(enum=[]),
        of_value(type="string", minLength=5, maxLength=2),
        of_value(type="frog"),
        {"type": "object", "properties": 3, "required": "value"},
        {"type": "object", "properties": {"value": 3}},
    ],
    ids=str,
)
def test_a_schema_that_makes_no_sense_still_gives_an_object(
    parameters: dict[str, Any], compiler: GrammarCompiler
) -> None:
    grammar = compiler.tool_calls({"f": parameters}, call=CALL, args=ARGS, required=True)
    mask = GrammarMask(grammar, 1280)
    for token in [CALL, *tiny_tokenizer().encode("f"), ARGS]:
        mask.accept(token)
    assert tiny_tokenizer().encode("{")[0] in allowed(mask)


@pytest.mark.parametrize(
    "character", ["\x7f", "\x01", "\x80", "\x9f", "\u2028", "\ufeff", "\\u007f"]
)
def test_any_character_may_stand_in_a_choice_a_name_or_a_schema(
    character: str, compiler: GrammarCompiler
) -> None:
    text = f"a{character}b"
    mask = GrammarMask(compiler.choice([text]), 1280)
    for token in tiny_tokenizer().encode(text):
        mask.accept(token)
    assert allowed(mask) == {EOS}
    compiler.json_schema({"const": text})
    parameters = {"type": "object", "properties": {text: {"type": "string", "description": text}}}
    grammar = compiler.tool_calls({text: parameters}, call=CALL, args=ARGS, required=True)
    mask = GrammarMask(grammar, 1280)
    for token in [CALL, *tiny_tokenizer().encode(text), ARGS, *tiny_tokenizer().encode("{}")]:
        mask.accept(token)
    assert EOS in allowed(mask)
