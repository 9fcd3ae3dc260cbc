"""Answers as chat completions."""

from __future__ import annotations

from magistral_mlx.api.options import nth_seed
from magistral_mlx.events import Finished, ToolCall
from magistral_mlx.server.answers import Answer, fingerprint
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.figures import new_id, timings_of
from magistral_mlx.server.openai.chat_answer_schemas import (
    Called,
    CallOut,
    ChatCompletion,
    Choice,
    Content,
    FinishReason,
    Message,
    TextChunk,
    ThinkingChunk,
)
from magistral_mlx.server.openai.figures import logprobs_of, usage_of


def finish_reason(end: Finished, called: bool) -> FinishReason:
    """OpenAI's word for an end. Where memory or the server ended an answer its `notes` say so."""
    if end.reason != "stop":
        return "length"
    return "tool_calls" if called else "stop"


def chat_completion(
    exchange: Exchange, answers: list[Answer], *, seed: int, logprobs: bool, mistral: bool
) -> ChatCompletion:
    """The answers to one request.

    Args:
        seed: of the first one.
        mistral: put the thinking into the content, in Mistral's style.
    """
    choices = [
        _choice(index, answer, seed=seed, logprobs=logprobs, mistral=mistral)
        for index, answer in enumerate(answers)
    ]
    return ChatCompletion(
        id=new_id("chatcmpl-"),
        object="chat.completion",
        created=exchange.created,
        model=exchange.model,
        choices=choices,
        usage=usage_of([answer.stats for answer in answers]),
        system_fingerprint=fingerprint(exchange.model),
    )


def _choice(index: int, answer: Answer, *, seed: int, logprobs: bool, mistral: bool) -> Choice:
    assert answer.end is not None
    choice = Choice(
        index=index,
        message=_message(answer, mistral),
        finish_reason=finish_reason(answer.end, bool(answer.calls)),
        logprobs=logprobs_of(answer.logprobs) if logprobs else None,
        seed=nth_seed(seed, index),
        timings=timings_of(answer.stats),
    )
    if answer.notes:
        choice.notes = answer.notes
    return choice


def _message(answer: Answer, mistral: bool) -> Message:
    content: Content = answer.text or (None if answer.calls else "")
    if mistral and answer.thinking:
        content = [thinking_chunk(answer.thinking)]
        if answer.text:
            content.append(TextChunk(type="text", text=answer.text))
    message = Message(role="assistant", content=content, refusal=None)
    if answer.thinking and not mistral:
        message.reasoning_content = answer.thinking
    if answer.calls:
        message.tool_calls = [_call(call) for call in answer.calls]
    return message


def thinking_chunk(text: str) -> ThinkingChunk:
    return ThinkingChunk(type="thinking", thinking=[TextChunk(type="text", text=text)])


def _call(call: ToolCall) -> CallOut:
    function = Called(name=call.name, arguments=call.arguments)
    return CallOut(id=call.id or "", type="function", function=function)
