"""Endpoints of vLLM and llama-server: tokens, properties, and what this model has nothing for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from magistral_mlx import __version__
from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.api.options import Options
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.server.errors import BadRequest, NotSupported
from magistral_mlx.server.openai.chat import ERRORS, chat_messages
from magistral_mlx.server.openai.chat_schemas import ChatMessage, ChatRequest, ChatTool
from magistral_mlx.server.openai.completion_schemas import Ids
from magistral_mlx.server.openai.usage import text_of
from magistral_mlx.server.request_body import JSONRoute, Many, RequestBody, Some
from magistral_mlx.server.request_translation import FunctionOnly, tool_options
from magistral_mlx.server.service import GenerationService

router = APIRouter(tags=["Other servers"], responses=ERRORS, route_class=JSONRoute)

_CHAT = [{"role": "user", "content": "What is 37 + 85?"}]
_TOKENIZE_EXAMPLES: dict[str, Example] = {
    "llama-server": {"summary": "As llama-server has it", "value": {"content": "What is 37?"}},
    "vLLM": {"summary": "As vLLM has it", "value": {"prompt": "What is 37?"}},
    "chat": {"summary": "A conversation, with its template", "value": {"messages": _CHAT}},
}
_TEMPLATE_EXAMPLES: dict[str, Example] = {
    "chat": {"summary": "A conversation", "value": {"messages": _CHAT}}
}
_DETOKENIZE_EXAMPLES: dict[str, Example] = {
    "tokens": {"summary": "Three tokens", "value": {"tokens": [1070, 1071, 1072]}}
}


class ConversationRequest(RequestBody):
    """A conversation, as chat completions take it."""

    model: str | None = None
    messages: Some[ChatMessage]
    tools: Many[Annotated[ChatTool, FunctionOnly]] | None = None


class TokenizeRequest(RequestBody):
    """A text or a conversation: one of `content`, `prompt` and `messages`."""

    model: str | None = None
    content: Annotated[
        str | None, Field(description="A text, as llama-server names it: without control tokens.")
    ] = None
    prompt: Annotated[
        str | None, Field(description="A text, as vLLM names it: after the one that begins it.")
    ] = None
    messages: Annotated[
        Some[ChatMessage] | None, Field(description="A conversation, with its template.")
    ] = None
    tools: Many[Annotated[ChatTool, FunctionOnly]] | None = None
    add_special: Annotated[bool | None, Field(description="Begin `content` as a prompt.")] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="false leaves out the token that begins `prompt`.")
    ] = None
    with_pieces: Annotated[bool | None, Field(description="Tell the text of each token.")] = None
    return_token_strs: Annotated[bool | None, Field(description="Tell their texts apart.")] = None


class TokenPiece(BaseModel):
    """A token and its text, or its bytes where they are only a part of a character."""

    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    """Tokens, as llama-server and vLLM have them."""

    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class DetokenizeRequest(RequestBody):
    model: str | None = None
    tokens: Annotated[list[Any], Field(max_length=0)] | Ids


class Detokenized(BaseModel):
    """A text, under the names of llama-server and of vLLM."""

    content: str
    prompt: str


class TemplatedPrompt(BaseModel):
    """A prompt as the model gets it, in text. As tokens it comes from /tokenize."""

    prompt: str


class Modalities(BaseModel):
    vision: bool
    audio: Literal[False] = False


class GenerationSettings(BaseModel):
    """The context, and the sampling where a request says nothing."""

    n_ctx: int
    params: dict[str, float | int]


class Properties(BaseModel):
    """Properties of the first model, in llama-server's words."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: Annotated[str, Field(description="Its name once more; paths are not told.")]
    chat_template: Annotated[Literal[""], Field(description="mistral-common makes the prompts.")]
    modalities: Modalities
    bos_token: str
    eos_token: str
    build_info: str


class ServerVersion(BaseModel):
    version: str


@router.post("/tokenize", summary="Tokens of a text or a conversation")
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Body(openapi_examples=_TOKENIZE_EXAMPLES)]
) -> Tokens:
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise BadRequest("give one of content, prompt and messages.", param="content")
    if body.messages is not None:
        ids = await _tokens(
            request, ConversationRequest(model=body.model, messages=body.messages, tools=body.tools)
        )
    else:
        begun = (
            body.add_special if body.content is not None else body.add_special_tokens is not False
        )
        text = body.content if body.content is not None else body.prompt
        service: GenerationService = request.app.state.service
        ids = await service.tokenize(request, body.model, RawPrompt(text or ""), Options())
        ids = ids if begun else ids[1:]
    served = request.app.state.service.registry.find(body.model)
    pieces = [served.tokenizer.token_bytes(id) for id in ids]
    return Tokens(
        tokens=[
            TokenPiece(id=id, piece=_piece(piece)) for id, piece in zip(ids, pieces, strict=True)
        ]
        if body.with_pieces
        else ids,
        count=len(ids),
        max_model_len=served.info.context,
        token_strs=[text_of(piece) for piece in pieces] if body.return_token_strs else None,
    )


@router.post("/detokenize", summary="The text of tokens")
async def detokenize(
    request: Request,
    body: Annotated[DetokenizeRequest, Body(openapi_examples=_DETOKENIZE_EXAMPLES)],
) -> Detokenized:
    service: GenerationService = request.app.state.service
    tokenizer = service.registry.find(body.model).tokenizer
    for id in body.tokens:
        if not 0 <= id < tokenizer.vocab_size:
            raise BadRequest(
                f"tokens holds {id}, but this model's go from 0 to {tokenizer.vocab_size - 1}.",
                param="tokens",
            )
    text = tokenizer.decode(body.tokens)
    return Detokenized(content=text, prompt=text)


@router.post("/apply-template", summary="The prompt of a conversation")
async def apply_template(
    request: Request,
    body: Annotated[ConversationRequest, Body(openapi_examples=_TEMPLATE_EXAMPLES)],
) -> TemplatedPrompt:
    tokenizer = request.app.state.service.registry.find(body.model).tokenizer
    pieces = [
        tokenizer.control_name(id).encode()
        if tokenizer.is_control(id)
        else tokenizer.token_bytes(id)
        for id in await _tokens(request, body)
    ]
    return TemplatedPrompt(prompt=text_of(b"".join(pieces)))


@router.head("/props", include_in_schema=False)
@router.get("/props", summary="Properties of the first model")
async def props(request: Request) -> Properties:
    service: GenerationService = request.app.state.service
    served = service.registry.first
    info, tokenizer, usual = served.info, served.tokenizer, Options()
    params = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
    return Properties(
        default_generation_settings=GenerationSettings(
            n_ctx=info.context, params={name: getattr(usual, name) for name in params}
        ),
        total_slots=service.settings.load.parallel,
        model_alias=info.id,
        model_path=info.id,
        chat_template="",
        modalities=Modalities(vision=info.supports_images),
        bos_token=tokenizer.control_name(tokenizer.special.bos),
        eos_token=tokenizer.control_name(tokenizer.special.eos),
        build_info=f"magistral-mlx {__version__}",
    )


@router.head("/version", include_in_schema=False)
@router.get("/version", summary="The version of the server")
async def version() -> ServerVersion:
    return ServerVersion(version=__version__)


async def _tokens(request: Request, body: ConversationRequest) -> list[int]:
    """Tokens of a conversation with its template."""
    service: GenerationService = request.app.state.service
    functions = [tool.function for tool in body.tools or ()]
    options = Options(**tool_options(functions, "auto"))
    prompt: PromptLike = chat_messages(ChatRequest(messages=body.messages))
    return await service.tokenize(request, body.model, prompt, options)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


_UNSUPPORTED = {
    "it has no embeddings": (
        "/v1/embeddings",
        "/embedding",
        "/api/embed",
        "/api/embeddings",
        "/api/v0/embeddings",
    ),
    "it ranks nothing": ("/v1/rerank", "/v1/reranking", "/v2/rerank", "/v1/score"),
    "it was not trained to fill in a middle": ("/infill",),
    "it neither hears nor speaks": (
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    ),
    "it makes no images": ("/v1/images/generations", "/v1/images/edits"),
    "it moderates nothing": ("/v1/moderations",),
}


def _refuse(path: str, why: str) -> None:
    @router.post(path, include_in_schema=False, response_model=None)
    async def refuse() -> None:
        raise NotSupported(f"this model answers chats: {why}.")


for _why, _paths in _UNSUPPORTED.items():
    for _path in _paths:
        _refuse(_path, _why)
