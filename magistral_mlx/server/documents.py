"""POST /v1/documents: a file as the parts of a user's message, and the tokens that they take."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field

from magistral_mlx.api.options import Options
from magistral_mlx.chat.documents import PDFMode
from magistral_mlx.server.document_parts import document_parts
from magistral_mlx.server.error_responses import OPENAI_RESPONSES, OpenAIError
from magistral_mlx.server.exchange import unless_disconnected
from magistral_mlx.server.openai.chat_schemas import ImagePart, TextPart
from magistral_mlx.server.openapi import error_responses
from magistral_mlx.server.openapi_examples import DOCUMENT_EXAMPLES
from magistral_mlx.server.option_values import option_field
from magistral_mlx.server.request_body import JSONRoute, RequestBody
from magistral_mlx.server.service import GenerationService

_ERRORS = error_responses(
    OpenAIError, 400, 401, 403, 404, 413, 429, 500, 503, rest=OPENAI_RESPONSES
)
_FRAME = "."  # a message of one token

router = APIRouter(tags=["OpenAI"], responses=_ERRORS, route_class=JSONRoute)


class DocumentRequest(RequestBody):
    """A file: text, code, a PDF or an image."""

    name: Annotated[
        str, Field(min_length=1, max_length=1000, description="Its name in the prompt.")
    ]
    data: Annotated[str, Field(description="Its bytes in base64.")]
    pdf: Annotated[
        PDFMode, Field(description="Whether a PDF becomes its text or images of its pages.")
    ] = "text"
    model: Annotated[
        str | None, Field(description="Whose tokens are counted; the first one by default.")
    ] = None
    image_tokens: Annotated[int | None, option_field("image_tokens", le=1_000_000)] = None


class Document(BaseModel):
    """A file as the parts of a message for `/v1/chat/completions`."""

    object: Literal["document"] = "document"
    name: str
    parts: list[TextPart | ImagePart]
    tokens: Annotated[int, Field(description="Tokens that they take in a prompt.")]


@router.post("/v1/documents", summary="Read a file into the parts of a message")
async def documents(
    request: Request, body: Annotated[DocumentRequest, Body(openapi_examples=DOCUMENT_EXAMPLES)]
) -> Document:
    """Text stands in a block with the file's name. Nothing of the file is kept."""
    service: GenerationService = request.app.state.service
    options = Options(system=None, image_tokens=body.image_tokens)
    reading = asyncio.to_thread(document_parts, body.data, body.name, body.pdf)
    parts = await unless_disconnected(request, reading)

    async def count(content: Any) -> int:
        message = {"role": "user", "content": content}
        return await service.count(request, body.model, [message], options)

    tokens = await count(parts) - await count(_FRAME) + 1
    return Document.model_validate({"name": body.name, "parts": parts, "tokens": tokens})
