"""Requests that can be sent as they are; /openapi.json holds them."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from magistral_mlx.server.example_image import RED_CIRCLE

_SUM = {"role": "user", "content": "What is 37 + 85?"}
_ADD = {
    "name": "add",
    "description": "Adds two whole numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
_THINKING = {"type": "enabled", "budget_tokens": 1024}
_IMAGE = {
    "role": "user",
    "content": [
        {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": RED_CIRCLE.partition(",")[2],
            },
        },
        {"type": "text", "text": "What is in the picture?"},
    ],
}
_CALL = {"type": "tool_use", "id": "call00001", "name": "add", "input": {"a": 37, "b": 85}}
_RESULT = {"type": "tool_result", "tool_use_id": "call00001", "content": "122"}


def _example(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": {"max_tokens": 200, "seed": 1} | body}


MESSAGE_EXAMPLES: dict[str, Example] = {
    "text": _example("A question, answered at once", messages=[_SUM]),
    "thinking": _example("A question, with thinking", messages=[_SUM], thinking=_THINKING),
    "stream": _example("A stream", messages=[_SUM], thinking=_THINKING, stream=True),
    "image": _example("An image", messages=[_IMAGE], thinking=_THINKING),
    "tool": _example(
        "A call to a tool", messages=[_SUM], tools=[_ADD], tool_choice={"type": "any"}
    ),
    "tool_result": _example(
        "What the tool returned",
        messages=[
            _SUM,
            {"role": "assistant", "content": [_CALL]},
            {"role": "user", "content": [_RESULT]},
        ],
        tools=[_ADD],
    ),
}
COUNT_EXAMPLES: dict[str, Example] = {
    "text": {"summary": "A question", "value": {"messages": [_SUM], "tools": [_ADD]}},
    "image": {"summary": "An image", "value": {"messages": [_IMAGE]}},
}
