"""Requests for chat completions that can be sent as they are; /openapi.json holds them."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from magistral_mlx.server.example_image import RED_CIRCLE

_SUM = {"role": "user", "content": "What is 37 + 85?"}
_ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 37, "b": 85}'},
}
_SHORT = {"max_completion_tokens": 200, "seed": 1}


def _example(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": _SHORT | body}


CHAT_EXAMPLES: dict[str, Example] = {
    "text": _example("A question", messages=[_SUM]),
    "stream": _example(
        "A stream that ends with its usage",
        messages=[_SUM],
        stream=True,
        stream_options={"include_usage": True},
    ),
    "thinking": _example(
        "Thinking within a budget, in Mistral's style",
        messages=[_SUM],
        reasoning_effort="low",
        reasoning_format="mistral",
    ),
    "image": _example(
        "An image",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": RED_CIRCLE}},
                    {"type": "text", "text": "What is in the picture?"},
                ],
            }
        ],
    ),
    "tool": _example(
        "A call to a tool", messages=[_SUM], tools=[_ADD], tool_choice="required", thinking=64
    ),
    "tool_result": _example(
        "What the tool returned",
        messages=[
            _SUM,
            {"role": "assistant", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call00001", "content": "122"},
        ],
        tools=[_ADD],
    ),
    "json_schema": _example(
        "Structured output",
        messages=[_SUM],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "result",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"result": {"type": "integer"}},
                    "required": ["result"],
                    "additionalProperties": False,
                },
            },
        },
    ),
    "logprobs": _example(
        "Log probabilities", messages=[_SUM], logprobs=True, top_logprobs=2, temperature=0
    ),
    "several": _example("Three answers", messages=[_SUM], n=3),
}
