"""Translation of Ollama's requests: conversations and options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from magistral_mlx.api.options import Options
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.ollama.schemas import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
    OllamaRequest,
)
from magistral_mlx.server.openai.structure_fields import ANY_OBJECT
from magistral_mlx.server.option_values import seed_option, stop_option, top_p_option
from magistral_mlx.server.request_translation import (
    MessageBuilder,
    Part,
    continue_last,
    image_part,
    text_part,
    thinking_of,
    tool_options,
)

_ALL_TOKENS = 1_000_000


def chat_messages(request: OllamaChatRequest) -> list[dict[str, Any]]:
    """The conversation as dicts for `to_messages`.

    Calls without an id get one; a result belongs to the first call of its function that has none.
    """
    builder = MessageBuilder()
    open_calls: list[tuple[str, str]] = []  # (id, name) of calls without a result
    calls = 0
    for n, message in enumerate(request.messages or ()):
        where = f"messages[{n}].images"
        match message.role:
            case "system":
                builder.system(message.content or "")
            case "user":
                builder.user(_content(message.content or "", message.images, where))
            case "assistant":
                if message.thinking:
                    builder.thinking(message.thinking)
                builder.text(message.content or "")
                open_calls = []
                for call in message.tool_calls or ():
                    calls += 1
                    id = call.id or f"call{calls:05}"
                    open_calls.append((id, call.function.name))
                    builder.call(call.function.name, call.function.arguments, id)
            case "tool":
                builder.result(_parts(message, where), _answered(message, open_calls))
    return continue_last(builder.messages())


def generate_prompt(request: OllamaGenerateRequest) -> list[dict[str, Any]] | RawPrompt:
    """The prompt of /api/generate.

    Raises:
        BadRequest: a field that this server does not support.
    """
    for name, why in (
        ("suffix", "the model was not trained to fill in a middle"),
        ("template", "the template is the model's own"),
        ("context", "send the conversation to /api/chat"),
    ):
        if getattr(request, name):
            raise BadRequest(f"{name} is not supported: {why}.", param=name)
    if request.raw:
        if request.images or request.system:
            raise BadRequest("raw excludes images and system: leave one out.", param="raw")
        return RawPrompt(request.prompt or "")
    builder = MessageBuilder()
    if request.system:
        builder.system(request.system)
    builder.user(_content(request.prompt or "", request.images, "images"))
    return builder.messages()


def generation_options(request: OllamaRequest) -> Options:
    """The options of a request.

    Raises:
        InvalidOption, BadRequest: values that are out of range or exclude each other.
    """
    given = request.options or OllamaOptions()
    limit = given.num_predict
    options: dict[str, Any] = {
        name: getattr(given, name)
        for name in ("temperature", "min_p", "presence_penalty", "frequency_penalty")
    }
    options |= {
        "max_tokens": limit if limit and limit > 0 else None,
        "top_k": None if given.top_k is None else max(0, given.top_k),
        "top_p": top_p_option(given.top_p),
        "seed": seed_option(given.seed),
        "stop": stop_option(given.stop),
        "repetition_penalty": given.repeat_penalty if given.repeat_last_n != 0 else None,
        "thinking": _thinking(request.think),
        "ask_for_thinking": bool(request.think),
        "json_schema": {"json": ANY_OBJECT, "": None}.get(request.format)
        if isinstance(request.format, str)
        else request.format,
        "logprobs": request.logprobs,
        "top_logprobs": request.top_logprobs,
        "overflow": "error" if request.truncate is False else "drop",
    }
    if given.repeat_last_n:
        options["repetition_window"] = (
            _ALL_TOKENS if given.repeat_last_n < 0 else given.repeat_last_n
        )
    if isinstance(request, OllamaChatRequest) and request.tools:
        options |= tool_options([tool.function for tool in request.tools], "auto")
    if isinstance(request, OllamaGenerateRequest) and request.raw:
        options |= {"thinking": "off", "ask_for_thinking": False}
    return Options(**{name: value for name, value in options.items() if value is not None})


def _thinking(think: bool | str | None) -> Any:
    return thinking_of(think) if isinstance(think, str) else think  # type: ignore[arg-type]


def _content(text: str, images: Sequence[str] | None, where: str) -> str | list[Part]:
    if not images:
        return text
    shown = [image_part(_url(image), f"{where}[{n}]") for n, image in enumerate(images)]
    return [*shown, *([text_part(text)] if text else ())]


def _parts(message: OllamaMessage, where: str) -> list[Part]:
    content = _content(message.content or "", message.images, where)
    return [text_part(content)] if isinstance(content, str) else content


def _url(image: str) -> str:
    """The image as a URL. The type is told from its bytes."""
    return image if image[:5].lower() in ("data:", "http:", "https") else f"data:;base64,{image}"


def _answered(message: OllamaMessage, open_calls: list[tuple[str, str]]) -> str | None:
    """The id of the call that the result `message` is of, which is then no longer open."""
    for n, (id, name) in enumerate(open_calls):
        if message.tool_call_id == id or (
            message.tool_call_id is None and message.tool_name in (None, name)
        ):
            del open_calls[n]
            return id
    return message.tool_call_id
