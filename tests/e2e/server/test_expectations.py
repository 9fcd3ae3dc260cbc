"""What clients of LM Studio, Ollama, llama-server and vLLM send, against the live server.

`expectations.jsonl` has it, gathered from the documentation and the test suites of those servers,
in words of our own. A row adds `fields` to the shortest request of its path. Where the answer holds
`at` a place a value, the regular expression `is` finds it; where it is `refused`, the message.

    python -m tests.e2e.server.test_expectations    prints the table of docs/api.md
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[3]
ASK, FUNCTION = {"role": "user", "content": "What is 37 + 85?"}, {"name": "f"}
SHORT: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [ASK], "max_tokens": 3, "temperature": 0},
    "completions": {"prompt": "2 + 2 =", "max_tokens": 3, "temperature": 0},
    "chat": {"model": "demo", "messages": [ASK], "stream": False, "options": {"num_predict": 3}},
    "generate": {"model": "demo", "prompt": "Hi", "stream": False, "options": {"num_predict": 3}},
}
WORDS = {
    "$SUM": ASK,
    "$TOOL": {"type": "function", "function": FUNCTION},
    "$SCHEMA": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
    "$LONG": "meaning of life " * 9000,
}


def rows() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("expectations.jsonl").read_text()
    for word, value in WORDS.items():
        text = text.replace(f'"{word}"', json.dumps(value))
    image = (ROOT / "examples/circle.png").read_bytes()
    text = text.replace("$IMAGE", base64.b64encode(image).decode())
    return [json.loads(line) for line in text.splitlines()]


def body_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """None for a GET. A field that is "-" is left out."""
    if row.get("method") == "GET":
        return None
    path = re.sub("^/(v1|api/v0|api)/", "", row["path"])
    body = SHORT.get(path, {}) | row["fields"]
    return {name: value for name, value in body.items() if value != "-"}


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['of']}: {row['sent']}")
def test_what_is_sent_gets_what_the_table_says(server: Server, row: dict[str, Any]):
    status, answer = server.request(row.get("method", "POST"), row["path"], body_of(row))
    assert status == row.get("refused", 200), answer
    found = answer
    for key in row["at"].split(".") if row.get("at") else ():
        found = found[int(key) if key.isdigit() else key]
    assert re.search(row["is"], str(found)), answer


def table() -> str:
    lines = [f"| {row['of']} | {row['sent']} | {_outcome(row)} |" for row in rows()]
    return "\n".join(["| of | sent | here |", "|---|---|---|", *lines]) + "\n"


def _outcome(row: dict[str, Any]) -> str:
    return f"refused ({row['refused']})" if "refused" in row else "answered"


def test_the_table_is_in_the_docs():
    assert table() in (ROOT / "docs/api.md").read_text()


if __name__ == "__main__":
    sys.stdout.write(table())
