"""Schemas of the items of a response's input: messages, thinking, calls and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from magistral_mlx.server.request_body import JSONObject, Many, RequestSchema
from magistral_mlx.server.validation_errors import UNKNOWN_TYPE


class InputText(RequestSchema):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(RequestSchema):
    """An image: a data URL, or a web address where the server fetches them."""

    type: Literal["input_image"]
    image_url: str
    detail: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class InputFile(RequestSchema):
    """A file: a PDF, text, code, or an image."""

    type: Literal["input_file"]
    file_data: Annotated[str, Field(description="Its bytes in base64, or as a data URL.")]
    filename: str | None = None


class ResponseRefusal(RequestSchema):
    type: Literal["refusal"]
    refusal: str


class InputMessage(RequestSchema):
    """A message of any role."""

    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: (
        str
        | Many[
            Annotated[
                InputText | InputImage | InputFile | ResponseRefusal, Field(discriminator="type")
            ]
        ]
    )


class ReasoningText(RequestSchema):
    type: str | None = None
    text: str


class ReasoningItem(RequestSchema):
    """The model's thinking before its next item. It should be sent back, as in training."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Many[ReasoningText] | None = None
    content: Many[ReasoningText] | None = None
    encrypted_content: Annotated[
        str | None, Field(description="The thinking as this server encoded it; others are ignored.")
    ] = None


class FunctionCallItem(RequestSchema):
    """A function call of the model."""

    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomCallItem(RequestSchema):
    """A call of the model to a custom tool."""

    type: Literal["custom_tool_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    input: str


class LocalShellCallItem(RequestSchema):
    """A command of the model for the local shell."""

    type: Literal["local_shell_call"]
    id: str | None = None
    call_id: str | None = None
    action: JSONObject


class CallOutputItem(RequestSchema):
    """The result of a call; `id` is the call's where there is no `call_id`."""

    type: Literal["function_call_output", "custom_tool_call_output", "local_shell_call_output"]
    id: str | None = None
    call_id: str | None = None
    output: str | Many[Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]]


class ItemReference(RequestSchema):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] | None = None
    id: str


class CompactionItem(RequestSchema):
    """Summary of the conversation before it, as /v1/responses/compact made it."""

    type: Literal["compaction"]
    id: str | None = None
    encrypted_content: Annotated[
        str, Field(description="The summary as this server encoded it; others are ignored.")
    ]


class SkippedItem(RequestSchema):
    """Record of a tool that ran at the vendor's: left out of the prompt, and kept as it is."""

    model_config = ConfigDict(extra="allow")

    type: str
    id: str | None = None


_CALL_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_OWN = (
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "local_shell_call",
    "compaction",
    "item_reference",
)
_SKIPPED = (
    "web_search_call",
    "file_search_call",
    "image_generation_call",
    "code_interpreter_call",
    "computer_call",
    "computer_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
    "tool_search_output",
)


def _item_kind(item: Any) -> str | None:
    """The tag of an item by its type, which is "message" by default; None for an unknown one."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    if kind in _CALL_OUTPUTS:
        return "output"
    if isinstance(item, ItemReference) or (isinstance(item, dict) and _is_reference(item, kind)):
        return "item_reference"
    if kind in _SKIPPED:
        return "skipped"
    return "message" if kind is None else kind if kind in _OWN else None


def _is_reference(item: dict[str, Any], kind: Any) -> bool:
    return kind == "item_reference" or (kind is None and "id" in item and "role" not in item)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[LocalShellCallItem, Tag("local_shell_call")]
    | Annotated[CallOutputItem, Tag("output")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[SkippedItem, Tag("skipped")],
    Discriminator(
        _item_kind,
        custom_error_type=UNKNOWN_TYPE,
        custom_error_message=", ".join(map(repr, (*_OWN, *_CALL_OUTPUTS, *_SKIPPED))),
    ),
]
