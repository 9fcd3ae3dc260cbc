"""Schemas of requests for responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from magistral_mlx.server.foreign_fields import CHAT, WithoutForeignFields, instead
from magistral_mlx.server.openai.chat_schemas import JSONFormat, TextFormat
from magistral_mlx.server.openai.response_items import Item
from magistral_mlx.server.openai.thinking_fields import ThinkingField
from magistral_mlx.server.option_values import MaxTokens, option_field
from magistral_mlx.server.request_body import (
    JSONObject,
    Many,
    NonEmptyText,
    RequestSchema,
    Table,
)
from magistral_mlx.server.request_translation import (
    EFFORT_DESCRIPTION,
    Effort,
    FunctionSchema,
)


class FunctionTool(FunctionSchema):
    """A function that the model may call."""

    type: Literal["function"] = "function"


class CustomFormat(RequestSchema):
    """Form of a custom tool's input: any text, or one that a grammar describes."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class CustomTool(RequestSchema):
    """A tool that takes text instead of arguments."""

    type: Literal["custom"]
    name: NonEmptyText
    description: str | None = None
    format: CustomFormat | None = None


class LocalShellTool(RequestSchema):
    """The shell of the user's machine."""

    type: Literal["local_shell"]


class HostedTool(RequestSchema):
    """A tool that the vendor runs: not offered to the model."""

    type: str


def _tool_kind(tool: Any) -> Any:
    """The tag of a tool by its type, which is "function" by default."""
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    if kind is None:
        return "function"
    return kind if kind in ("function", "custom", "local_shell", "namespace") else "hosted"


_Member = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_tool_kind),
]


class NamespaceTool(RequestSchema):
    """A group of tools."""

    type: Literal["namespace"]
    name: NonEmptyText
    description: str | None = None
    tools: Many[_Member]


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[LocalShellTool, Tag("local_shell")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_tool_kind),
]


class ToolChoiceByName(RequestSchema):
    """This tool must be called."""

    type: str
    name: str | None = None
    namespace: str | None = None


class AllowedTools(RequestSchema):
    """Some of the tools may or must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Many[ToolChoiceByName]


def _choice_kind(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return "allowed_tools" if kind == "allowed_tools" else "named"


class ResponseSchemaFormat(RequestSchema):
    """JSON that a schema describes. It is always kept to, whatever `strict` says."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[JSONObject, Field(alias="schema")]
    strict: bool | None = None


class TextSettings(RequestSchema):
    """Form of the text."""

    format: (
        Annotated[TextFormat | JSONFormat | ResponseSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class Reasoning(RequestSchema):
    """Effort of the thinking, and where it is reported."""

    effort: Annotated[Effort | None, Field(description=EFFORT_DESCRIPTION)] = None
    summary: Annotated[
        Literal["auto", "concise", "detailed"] | None,
        Field(
            description="Put the thinking, all of it, into the summary of the reasoning item, "
            "which more clients show, instead of into its content."
        ),
    ] = None


class ConversationReference(RequestSchema):
    id: str


class ResponseRequest(WithoutForeignFields):
    """Input to respond to. The fields that OpenAI's API lacks say so."""

    instead: ClassVar = instead(length="max_output_tokens", stop=CHAT, form="text.format")

    model: Annotated[
        str | None,
        Field(description="A name of /v1/models; the first one by default."),
    ] = None
    input: Annotated[
        str | Many[Item] | None,
        Field(
            description="What to respond to. It may be left out after a response or in a "
            "conversation, which then goes on as it is."
        ),
    ] = None
    instructions: Annotated[
        str | None, Field(description="The system prompt. It is not carried over.")
    ] = None
    previous_response_id: Annotated[
        str | None, Field(description="Continue after a response that this server still stores.")
    ] = None
    store: Annotated[
        bool | None,
        Field(description="Store it, so that another may follow. In memory, the last few 100."),
    ] = None
    stream: bool | None = None
    max_output_tokens: MaxTokens = None
    temperature: Annotated[float | None, option_field("temperature", le=2)] = None
    top_p: Annotated[float | None, option_field("top_p", "0 is greedy.", ge=0)] = None
    top_logprobs: Annotated[int | None, option_field("top_logprobs")] = None
    include: Annotated[
        Many[str] | None,
        Field(
            description="message.output_text.logprobs and reasoning.encrypted_content count; the "
            "others are ignored."
        ),
    ] = None
    reasoning: Reasoning | None = None
    text: TextSettings | None = None
    tools: Many[ResponseTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[
            Annotated[AllowedTools, Tag("allowed_tools")]
            | Annotated[ToolChoiceByName, Tag("named")],
            Discriminator(_choice_kind),
        ]
        | None
    ) = None
    parallel_tool_calls: Annotated[bool | None, option_field("parallel_tool_calls")] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        Field(description="auto leaves out the oldest turns where the context is too small."),
    ] = None
    background: Annotated[bool | None, Field(description="Refused if true.")] = None
    prompt: Annotated[
        Any, Field(description="Refused: no prompts are kept. Send instructions and input.")
    ] = None
    conversation: Annotated[
        str | ConversationReference | None,
        Field(
            description="Id of a conversation: the response continues it, and what it adds is "
            "kept there."
        ),
    ] = None
    metadata: Annotated[Table[str] | None, Field(description="Comes back with the response.")] = (
        None
    )
    user: Annotated[Any, Field(description="Accepted and ignored.")] = None
    seed: Annotated[
        int | None,
        Field(
            description="The same one gives the same tokens; -1 is a random one. Not in OpenAI's "
            "API."
        ),
    ] = None
    thinking: Annotated[
        ThinkingField | None,
        Field(
            description='"on", "off", or the most tokens of thinking. It overrides '
            "reasoning.effort. Not in OpenAI's API."
        ),
    ] = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that it continues."""
        named = self.conversation
        return named.id if isinstance(named, ConversationReference) else named
