"""Requests for responses that can be sent as they are; /openapi.json holds them."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from magistral_mlx.server.example_image import RED_CIRCLE

_SUM = "What is 37 + 85?"
_ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds two whole numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "strict": True,
}


def _example(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": {"max_output_tokens": 200, "seed": 1} | body}


RESPONSE_EXAMPLES: dict[str, Example] = {
    "text": _example("A question", input=_SUM),
    "stream": _example("A stream", input=_SUM, stream=True, reasoning={"summary": "auto"}),
    "image": _example(
        "An image",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": RED_CIRCLE},
                    {"type": "input_text", "text": "What is in the picture?"},
                ],
            }
        ],
    ),
    "tool": _example(
        "A call to a function", input=_SUM, tools=[_ADD], tool_choice="required", thinking=64
    ),
    "tool_result": _example(
        "What the function returned",
        input=[
            {"role": "user", "content": _SUM},
            {
                "type": "function_call",
                "call_id": "call00001",
                "name": "add",
                "arguments": '{"a": 37, "b": 85}',
            },
            {"type": "function_call_output", "call_id": "call00001", "output": "122"},
        ],
        tools=[_ADD],
    ),
    "json_schema": _example(
        "Structured output",
        input=_SUM,
        text={
            "format": {
                "type": "json_schema",
                "name": "result",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"result": {"type": "integer"}},
                    "required": ["result"],
                    "additionalProperties": False,
                },
            }
        },
    ),
}
