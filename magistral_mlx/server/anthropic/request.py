"""A request for a message as messages and options of ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from magistral_mlx.api.options import Options, ThinkingOption
from magistral_mlx.server.anthropic.schemas import (
    Base64Source,
    CountRequest,
    DocumentBlock,
    ImageBlock,
    MessageIn,
    MessageRequest,
    MessageTool,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolResultBlock,
    ToolUseBlock,
)
from magistral_mlx.server.efforts import thinking_of
from magistral_mlx.server.functions import Choice, FunctionIn, tool_options
from magistral_mlx.server.option_values import seed_option, stop_option, top_p_option
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.turns import Part, Turns, image_part, left_open, text_part

Shown = TextBlock | ImageBlock | DocumentBlock


def conversation(request: CountRequest) -> list[dict[str, Any]]:
    """The system prompt and the messages as `to_messages` reads them.

    Raises:
        BadRequest: a block where none of its kind may be.
    """
    turns = Turns()
    if request.system:
        turns.system(request.system if isinstance(request.system, str) else _parts(request.system))
    for n, message in enumerate(request.messages):
        _add(turns, message, f"messages[{n}]")
    return left_open(turns.messages())


def options_of(request: CountRequest) -> Options:
    """What decides on the prompt, and on the answer where one is asked for.

    Raises:
        InvalidOption, BadRequest: what does not go together, or is out of range.
    """
    choice = request.tool_choice
    options: dict[str, Any] = _tool_options(request) | {
        "thinking": _thinking(request),
        "ask_for_thinking": True,  # clients always send a system prompt
        "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
    }
    wanted = request.output_config.format if request.output_config else None
    if wanted is not None and options.get("tool_choice") != "required":
        options["json_schema"] = wanted.schema_
    if isinstance(request, MessageRequest):
        options |= {
            "max_tokens": request.max_tokens,
            "stop": stop_option(request.stop_sequences),
            "temperature": request.temperature,
            "top_p": top_p_option(request.top_p),
            "top_k": request.top_k,
            "seed": seed_option(request.seed),
        }
    return Options(**{name: value for name, value in options.items() if value is not None}).seeded()


def _thinking(request: CountRequest) -> ThinkingOption:
    effort = request.output_config.effort if request.output_config else None
    match request.thinking:
        case None | ThinkingDisabled():
            return "off"
        case ThinkingEnabled(budget_tokens=budget):
            return budget
        case _:
            return thinking_of(effort)


def _tool_options(request: CountRequest) -> dict[str, Any]:
    functions = [_function(tool) for tool in request.tools or ()]
    chosen = request.tool_choice
    if chosen and chosen.type == "tool":
        if chosen.name is None:
            raise BadRequest("tool_choice.name is missing: it names the tool.", param="tool_choice")
        return tool_options(functions, "required", [chosen.name])
    names: dict[str, Choice] = {"any": "required", "none": "none"}
    return tool_options(functions, names.get(chosen.type, "auto") if chosen else "auto")


def _function(tool: MessageTool) -> FunctionIn:
    return FunctionIn(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )


def _add(turns: Turns, message: MessageIn, where: str) -> None:
    content = message.content
    blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
    match message.role:
        case "system":
            turns.system(_parts(_only(blocks, TextBlock, where)))
        case "assistant":
            _add_assistant(turns, blocks, where)
        case _:
            _add_user(turns, blocks, where)


def _add_assistant(turns: Turns, blocks: Sequence[Any], where: str) -> None:
    for block in blocks:
        match block:
            case TextBlock():
                turns.text(block.text)
            case ThinkingBlock():
                turns.thinking(block.thinking)
            case ToolUseBlock():
                turns.call(block.name, block.input, block.id)
            case RedactedThinkingBlock():
                pass
            case _:
                raise _misplaced(block.type, where, "an assistant's")


def _add_user(turns: Turns, blocks: Sequence[Any], where: str) -> None:
    """The results of tools first, as the template has it, then what the user says."""
    said: list[Shown] = []
    for block in blocks:
        match block:
            case ToolResultBlock():
                turns.result(_result_parts(block), block.tool_use_id)
            case TextBlock() | ImageBlock() | DocumentBlock():
                said.append(block)
            case _:
                raise _misplaced(block.type, where, "a user's")
    if said or not blocks:
        turns.user(_parts(said))


def _only(blocks: Sequence[Any], kind: type[TextBlock], where: str) -> list[TextBlock]:
    for block in blocks:
        if not isinstance(block, kind):
            raise _misplaced(block.type, where, "a system")
    return list(blocks)


def _misplaced(kind: str, where: str, whose: str) -> BadRequest:
    return BadRequest(f"{where} holds a block {kind!r}, which has no place in {whose} message.")


def _result_parts(block: ToolResultBlock) -> list[Part]:
    content = block.content
    parts = [text_part(content)] if isinstance(content, str) else _parts(content or ())
    if block.is_error:
        parts = [text_part("Error: "), *parts]
    return parts or [text_part("")]


def _parts(blocks: Iterable[Shown]) -> list[Part]:
    return [_part(block) for block in blocks]


def _part(block: Shown) -> Part:
    match block:
        case TextBlock():
            return text_part(block.text)
        case DocumentBlock():
            title = f"{block.title}\n\n" if block.title else ""
            return text_part(title + block.source.data)
        case ImageBlock():
            source = block.source
            if isinstance(source, Base64Source):
                return image_part(f"data:{source.media_type};base64,{source.data}")
            return image_part(source.url)
