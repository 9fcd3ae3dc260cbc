"""A server is sent what its OpenAPI document allows, and what it does not, by schemathesis.

    python -m tests.fuzzing 2000

asks as often as that, and reports what came back; the suite asks a few hundred times.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from magistral_mlx.server.settings import Limits, Settings
from tests.serving import live_server

# Answers are short, or a single case could take the whole context, 128 times.
SETTINGS = Settings(models=("demo",), limits=Limits(tokens=3, seconds=20))
_OTHERS = 10  # requests to an operation without a body
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def fuzz(url: str, cases: int, number: int = 0) -> Counter[tuple[str, int]]:
    """Send `cases` requests and some more to the server at `url` -> what each operation answered.

    Those are shared among the operations that take a body, half of them broken on purpose; the
    others, which offer little to vary, get a few. `number` seeds all of them.

    Raises:
        AssertionError, FailureGroup: a status of 500 or more, or what the document does not tell.
    """
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    bodies = [operation for operation in operations if operation.body]
    half = -(-cases // (2 * len(bodies)))
    seen: Counter[tuple[str, int]] = Counter()
    for operation in operations:
        if operation.body:
            for mode in GenerationMode:
                _send(operation, mode, half, number, seen)
        else:  # nothing in it could be wrong
            _send(operation, GenerationMode.POSITIVE, _OTHERS, number, seen)
    return seen


def _send(
    operation: Any,
    mode: GenerationMode,
    count: int,
    number: int,
    seen: Counter[tuple[str, int]],
) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        _make_answerable(case.body, seen.total())
        response = case.call(timeout=60)
        seen[operation.label, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask()


def _make_answerable(body: Any, number: int) -> None:
    """Most models and conversations that are made up are refused: let some get beyond that."""
    if not isinstance(body, dict):
        return
    if number % 4:
        body.pop("model", None)
    if number % 2 and "messages" in body:
        body["messages"] = [{"role": "user", "content": "What is 1 + 1?"}]


def _report(seen: Counter[tuple[str, int]]) -> Iterator[str]:
    for (label, status), count in sorted(seen.items()):
        yield f"{count:6}  {status}  {label}"
    yield f"{seen.total():6}  cases, no 5xx, nothing that the document does not tell"


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with live_server(SETTINGS) as server:
        seen = fuzz(server.url, cases)
    for line in _report(seen):
        print(line)  # noqa: T201


if __name__ == "__main__":
    main()
