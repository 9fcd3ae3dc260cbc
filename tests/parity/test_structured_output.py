"""Everything that is written under a JSON schema is valid against it, says the jsonschema package.

The writer is a random model at temperature 1, which has no idea of JSON: what is right comes from
the grammar alone. Left to itself it would hardly ever end a string, so the tokens that close
strings, arrays and objects are made likelier, by more or less from one seed to the next, and
whitespace less likely. 17 seeds for each of 30 published schemas, 510 generations, and a few for
each of ours, which go through the keywords one by one.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import validator_for

from magistral_mlx.engine.constraint import GrammarCompiler
from magistral_mlx.engine.sampling import Sampling
from tests.engine_models import ids_of, start, tiny_model, tiny_vocabulary
from tests.published_schemas import PUBLISHED, published
from tests.schemas import SCHEMAS

SEEDS, FEW_SEEDS = 17, 6
LIMIT = 1000  # tokens; the longest takes about half
EOS = 2

_formats = jsonschema.FormatChecker(["email", "date", "ipv4", "uuid"])


@_formats.checks("date-time", raises=ValueError)
def _is_date_time(text: object) -> bool:
    """RFC 3339: a leap second and any number of digits after it are fine."""
    text = re.sub(r"\.\d+", "", str(text).upper())
    return bool(datetime.fromisoformat(text.replace(":60", ":59")))


@_formats.checks("time", raises=ValueError)
def _is_time(text: object) -> bool:
    return _is_date_time(f"2000-01-01T{text}")


@_formats.checks("duration")
def _is_duration(text: object) -> bool:
    date, time = r"(\d+Y)?(\d+M)?(\d+D)?", r"(T(\d+H)?(\d+M)?(\d+S)?)?"
    return re.fullmatch(rf"P(\d+W|{date}{time})", str(text)) is not None


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_vocabulary())


def biases(closing: float) -> dict[int, float]:
    """What makes a random model come to an end."""
    bias = {}
    for token, piece in enumerate(tiny_vocabulary().tokens):
        if piece and not piece.strip():
            bias[token] = -7.0
        elif piece.startswith(b'"'):
            bias[token] = closing
        elif piece.startswith((b"}", b"]", b"@")):
            bias[token] = closing - 1
    return bias


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_valid_against_a_published_schema(
    name: str, compiler: GrammarCompiler
) -> None:
    schema = published(name)
    check(schema, compiler, SEEDS, validator_for(schema)(schema))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_is_valid(name: str, compiler: GrammarCompiler) -> None:
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=_formats)
    check(schema, compiler, FEW_SEEDS, validator)


def check(schema: Any, compiler: GrammarCompiler, seeds: int, validator: Any) -> None:
    """Every text is valid, and they are not all the same."""
    grammar = compiler.json_schema(schema)
    written = set()
    for seed in range(seeds):
        sampling = Sampling(1, 1, seed, logit_bias=biases(3 + seed % 3))
        generation = start(
            tiny_model(1),
            [1, 3, 1100 + seed, 4],
            sampling=sampling,
            limit=LIMIT,
            stop_tokens=frozenset([EOS]),
            grammar=grammar,
        )
        text = text_of(ids_of(generation))
        assert generation.finish == "stop", text
        validator.validate(json.loads(text))
        written.add(text)
    assert len(written) > 1


def text_of(ids: list[int]) -> str:
    """The bytes must be whole characters."""
    return b"".join(tiny_vocabulary().tokens[token] for token in ids).decode()


def test_without_the_grammar_nothing_of_it_is_valid() -> None:
    """So the test above says something about the grammar."""

    def is_json(text: str) -> bool:
        try:
            json.loads(text)
        except ValueError:
            return False
        return True

    texts = []
    for seed in range(SEEDS):
        options: dict[str, Any] = {"sampling": Sampling(1, 1, seed, logit_bias=biases(4))}
        ids = ids_of(start(tiny_model(1), [1, 3, 1100 + seed, 4], limit=100, **options))
        texts.append(b"".join(tiny_vocabulary().tokens[t] for t in ids).decode("utf-8", "replace"))
    assert not any(map(is_json, texts))
