"""Example requests of Ollama's API in /openapi.json; all can be sent as they are."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from magistral_mlx.server.openapi_examples import RED_CIRCLE

MODEL = "demo"  # put in by `describe`, with the name of the first model
_SHORT = {"options": {"num_predict": 200, "seed": 1}}
_QUESTION = {"role": "user", "content": "What is 37 + 85?"}
_IMAGE = RED_CIRCLE.partition(",")[2]
_SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
_ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def _example(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": {"model": MODEL} | _SHORT | body}


CHAT_EXAMPLES: dict[str, Example] = {
    "stream": _example("A question, answered line by line", messages=[_QUESTION]),
    "whole": _example("A question, answered at once", messages=[_QUESTION], stream=False),
    "thinking": _example(
        "Thinking for a short time", messages=[_QUESTION], think="low", stream=False
    ),
    "image": _example(
        "An image",
        messages=[{"role": "user", "content": "What is in the picture?", "images": [_IMAGE]}],
        stream=False,
    ),
    "tools": _example(
        "A call to a tool and its result",
        messages=[
            _QUESTION,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "add", "arguments": {"a": 37, "b": 85}}}],
            },
            {"role": "tool", "tool_name": "add", "content": "122"},
        ],
        tools=[_ADD],
        stream=False,
    ),
    "structured": _example(
        "JSON that a schema describes", messages=[_QUESTION], format=_SUM, stream=False
    ),
    "load": _example("Load the model", messages=[]),
}

GENERATE_EXAMPLES: dict[str, Example] = {
    "stream": _example("A question, answered line by line", prompt="What is 37 + 85?"),
    "whole": _example(
        "A question with a system prompt, answered at once",
        prompt="What is 37 + 85?",
        system="Answer in one word.",
        stream=False,
    ),
    "raw": _example("A text to continue", prompt="2 + 2 =", raw=True, stream=False),
}

NAME_EXAMPLES: dict[str, Example] = {"model": {"summary": "A model", "value": {"model": MODEL}}}
