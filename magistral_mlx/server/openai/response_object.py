"""Responses and the events of their streams. A field that was not set is left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from magistral_mlx.server.openai.usage import ChatLogprob
from magistral_mlx.server.shared_fields import GenerationTimings, Notes, PromptProgress

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """The answer's text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[ChatLogprob]


class OutputMessage(BaseModel):
    """The answer."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class ReasoningTextPart(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class SummaryPart(BaseModel):
    type: Literal["summary_text"] = "summary_text"
    text: str


class OutputReasoning(BaseModel):
    """The thinking: in the content, or in the summary if one was asked for."""

    type: Literal["reasoning"] = "reasoning"
    id: str
    status: ItemStatus
    summary: list[SummaryPart]
    content: list[ReasoningTextPart]
    encrypted_content: str | None = None


class OutputFunctionCall(BaseModel):
    """A call. What the function returns goes into a `function_call_output` of the same call_id."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str
    status: ItemStatus


class OutputCustomCall(BaseModel):
    """A call to a custom tool. Its result goes into a `custom_tool_call_output`."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    id: str
    call_id: str
    name: str
    namespace: str | None = None
    input: str
    status: ItemStatus


class OutputLocalShellCall(BaseModel):
    """A command for the user's shell. Its result goes into a `local_shell_call_output`."""

    type: Literal["local_shell_call"] = "local_shell_call"
    id: str
    call_id: str
    action: dict[str, Any]
    status: ItemStatus


OutputCall = OutputFunctionCall | OutputCustomCall | OutputLocalShellCall
OutputItem = OutputReasoning | OutputMessage | OutputCall
OutputPart = OutputText | ReasoningTextPart | SummaryPart


class ResponseInputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class ResponseOutputDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ConversationId(BaseModel):
    id: str


class ResponseObject(BaseModel):
    """A response: items of thinking, text and calls, in the order in which they came."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[Annotated[OutputItem, Field(discriminator="type")]]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    instructions: str | None
    previous_response_id: str | None
    conversation: ConversationId | None = None
    store: bool
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: Literal["auto", "disabled"]
    background: Literal[False] = False
    metadata: dict[str, str]
    seed: Annotated[int, Field(description="It gives this response again. Not in OpenAI's API.")]
    timings: Annotated[GenerationTimings | None, Field(description="Not in OpenAI's API.")] = None
    notes: Notes = []


class ResponseEvent(BaseModel):
    """An event of a stream. Its type says which of the fields it has; its name is the type.

    `response.in_progress` comes again, with `progress`, during a long prefill.
    """

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int = 0
    item: OutputItem | None = None
    item_id: str = ""
    content_index: int = 0
    summary_index: int = 0
    part: OutputPart | None = None
    delta: str = ""
    text: str = ""
    name: str = ""
    arguments: str = ""
    input: str = ""
    logprobs: list[ChatLogprob] = []
    code: str | None = None
    message: str = ""
    param: str | None = None
    progress: PromptProgress | None = None
