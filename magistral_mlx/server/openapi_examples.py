"""Example requests in /openapi.json, one table for each endpoint; all can be sent as they are."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

# 64 by 64 pixels: a red circle on white.
RED_CIRCLE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX////cHh7/Hx2WAAAAi0lEQVR4"
    "2q3RsQ2CYBiE4YeLiRQmsoGM4AiMxmiMwgiUFIbf4jcGI51ec5e8ua/4jv/ptr5CKQhnZkJLR7hzIQyE"
    "hoJGNDCKwCBO0IsWugogOmhFD6c9eoeh2jdqlOpHrR/DCOUQTbAdohkeYoF1j1ZYxANmscG0f52RQphU"
    "7FrKQljVo69RPmb6h54OXyEda4io2gAAAABJRU5ErkJggg=="
)

_PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_RESULT = {
    "type": "object",
    "properties": {"result": {"type": "integer"}},
    "required": ["result"],
    "additionalProperties": False,
}

# Chat completions

_CHAT_SUM = {"role": "user", "content": "What is 37 + 85?"}
_CHAT_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two whole numbers.",
        "parameters": _PARAMETERS,
        "strict": True,
    },
}
_CHAT_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 37, "b": 85}'},
}
_SHORT = {"max_completion_tokens": 200, "seed": 1}


def _chat(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": _SHORT | body}


CHAT_EXAMPLES: dict[str, Example] = {
    "text": _chat("A question", messages=[_CHAT_SUM]),
    "stream": _chat(
        "A stream that ends with its usage",
        messages=[_CHAT_SUM],
        stream=True,
        stream_options={"include_usage": True},
    ),
    "thinking": _chat(
        "Thinking within a budget, in Mistral's style",
        messages=[_CHAT_SUM],
        reasoning_effort="low",
        reasoning_format="mistral",
    ),
    "image": _chat(
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
    "tool": _chat(
        "A call to a tool",
        messages=[_CHAT_SUM],
        tools=[_CHAT_TOOL],
        tool_choice="required",
        thinking=64,
    ),
    "tool_result": _chat(
        "What the tool returned",
        messages=[
            _CHAT_SUM,
            {"role": "assistant", "tool_calls": [_CHAT_CALL]},
            {"role": "tool", "tool_call_id": "call00001", "content": "122"},
        ],
        tools=[_CHAT_TOOL],
    ),
    "json_schema": _chat(
        "Structured output",
        messages=[_CHAT_SUM],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "result",
                "strict": True,
                "schema": _RESULT,
            },
        },
    ),
    "logprobs": _chat(
        "Log probabilities", messages=[_CHAT_SUM], logprobs=True, top_logprobs=2, temperature=0
    ),
    "several": _chat("Three answers", messages=[_CHAT_SUM], n=3),
}

# Completions

COMPLETION_EXAMPLES: dict[str, Example] = {
    "text": {"summary": "Text to go on with", "value": {"prompt": "What is 37 + 85?"}},
    "several": {
        "summary": "Two prompts, streamed, with log probabilities",
        "value": {"prompt": ["1 + 1 =", "2 + 2 ="], "max_tokens": 4, "logprobs": 1, "stream": True},
    },
    "tokens": {"summary": "Token ids", "value": {"prompt": [1, 1049], "max_tokens": 4, "seed": 1}},
}

# Responses

_QUESTION = "What is 37 + 85?"
_RESPONSE_TOOL = {
    "type": "function",
    "name": "add",
    "description": "Adds two whole numbers.",
    "parameters": _PARAMETERS,
    "strict": True,
}


def _response(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": {"max_output_tokens": 200, "seed": 1} | body}


RESPONSE_EXAMPLES: dict[str, Example] = {
    "text": _response("A question", input=_QUESTION),
    "stream": _response("A stream", input=_QUESTION, stream=True, reasoning={"summary": "auto"}),
    "image": _response(
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
    "tool": _response(
        "A call to a function",
        input=_QUESTION,
        tools=[_RESPONSE_TOOL],
        tool_choice="required",
        thinking=64,
    ),
    "tool_result": _response(
        "What the function returned",
        input=[
            {"role": "user", "content": _QUESTION},
            {
                "type": "function_call",
                "call_id": "call00001",
                "name": "add",
                "arguments": '{"a": 37, "b": 85}',
            },
            {"type": "function_call_output", "call_id": "call00001", "output": "122"},
        ],
        tools=[_RESPONSE_TOOL],
    ),
    "json_schema": _response(
        "Structured output",
        input=_QUESTION,
        text={
            "format": {
                "type": "json_schema",
                "name": "result",
                "strict": True,
                "schema": _RESULT,
            }
        },
    ),
}

# Messages

_MESSAGE_TOOL = {
    "name": "add",
    "description": "Adds two whole numbers.",
    "input_schema": _PARAMETERS,
}
_MESSAGE_THINKING = {"type": "enabled", "budget_tokens": 1024}
_MESSAGE_IMAGE = {
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
_MESSAGE_CALL = {"type": "tool_use", "id": "call00001", "name": "add", "input": {"a": 37, "b": 85}}
_MESSAGE_RESULT = {"type": "tool_result", "tool_use_id": "call00001", "content": "122"}


def _message(summary: str, **body: Any) -> Example:
    return {"summary": summary, "value": {"max_tokens": 200, "seed": 1} | body}


_ASKED: dict[str, Any] = {"type": "message", "role": "user", "content": "What is 37 + 85?"}
COMPACT_EXAMPLES: dict[str, Example] = {
    "short": {"summary": "A short conversation", "value": {"input": [_ASKED]}},
}
CONVERSATION_EXAMPLES: dict[str, Example] = {
    "empty": {"summary": "With metadata alone", "value": {"metadata": {"topic": "sums"}}},
    "items": {"summary": "With its first items", "value": {"items": [_ASKED]}},
}
ITEM_EXAMPLES: dict[str, Example] = {
    "question": {"summary": "A question", "value": {"items": [_ASKED]}},
}

MESSAGE_EXAMPLES: dict[str, Example] = {
    "text": _message("A question, answered at once", messages=[_CHAT_SUM]),
    "thinking": _message(
        "A question, with thinking", messages=[_CHAT_SUM], thinking=_MESSAGE_THINKING
    ),
    "stream": _message("A stream", messages=[_CHAT_SUM], thinking=_MESSAGE_THINKING, stream=True),
    "image": _message("An image", messages=[_MESSAGE_IMAGE], thinking=_MESSAGE_THINKING),
    "tool": _message(
        "A call to a tool", messages=[_CHAT_SUM], tools=[_MESSAGE_TOOL], tool_choice={"type": "any"}
    ),
    "tool_result": _message(
        "What the tool returned",
        messages=[
            _CHAT_SUM,
            {"role": "assistant", "content": [_MESSAGE_CALL]},
            {"role": "user", "content": [_MESSAGE_RESULT]},
        ],
        tools=[_MESSAGE_TOOL],
    ),
}
COUNT_EXAMPLES: dict[str, Example] = {
    "text": {"summary": "A question", "value": {"messages": [_CHAT_SUM], "tools": [_MESSAGE_TOOL]}},
    "image": {"summary": "An image", "value": {"messages": [_MESSAGE_IMAGE]}},
}

# Documents

DOCUMENT_EXAMPLES: dict[str, Example] = {
    "code": Example(
        summary="A file of code",
        value={"name": "sum.py", "data": "dG90YWwgPSAzNyArIDg1Cg=="},
    ),
}
