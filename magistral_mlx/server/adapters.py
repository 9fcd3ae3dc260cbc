"""Adapters that come and go while a server runs: the endpoints of vLLM.

They read folders of this machine that a client names, so only a server that was started with
`--load-adapters` has them.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from pydantic import BaseModel, Field

from magistral_mlx.api.adapters import check_adapter_name
from magistral_mlx.errors import CheckpointError, ModelNotFound, OutOfMemory
from magistral_mlx.hub.adapters import locate_adapter
from magistral_mlx.server.errors import BadRequest, UnknownModel
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.request_body import JSONRoute, RequestBody
from magistral_mlx.server.service import GenerationService

router = APIRouter(tags=["Other servers"], responses=ERRORS, route_class=JSONRoute)

_NAMED = {"lora_name": "french"}
_LOAD_EXAMPLES: dict[str, Example] = {
    "folder": {"summary": "A folder", "value": {**_NAMED, "lora_path": "/adapters/french"}}
}
_DROP_EXAMPLES: dict[str, Example] = {"name": {"summary": "By its name", "value": _NAMED}}

ModelName = Annotated[
    str | None, Field(description="The model that it changes. The default is the first one.")
]


class LoadAdapterRequest(RequestBody):
    """An adapter to load."""

    lora_name: Annotated[str, Field(description="Its name, for requests: model:name, or name.")]
    lora_path: Annotated[
        str, Field(description="Its folder on the server, or its name on the hub.")
    ]
    model: ModelName = None


class DropAdapterRequest(RequestBody):
    """An adapter to drop."""

    lora_name: Annotated[str, Field(description="Its name.")]
    model: ModelName = None


class AdapterState(BaseModel):
    """An adapter that was loaded or dropped."""

    model: Annotated[str, Field(description="The name that requests give, or gave.")]
    loaded: bool


@router.post("/v1/load_lora_adapter", summary="Load an adapter, without loading the model anew")
async def load_adapter(
    request: Request,
    body: Annotated[LoadAdapterRequest, Body(openapi_examples=_LOAD_EXAMPLES)],
) -> AdapterState:
    service: GenerationService = request.app.state.service
    name = check_adapter_name(body.lora_name)
    served = service.registry.find(body.model)
    if name in served.adapters:
        raise BadRequest(
            f"{served.name_with(name)} is loaded already. Drop it first, or give another name.",
            param="lora_name",
        )
    async with service.pool.use(served) as magistral:
        try:
            folder = await asyncio.to_thread(locate_adapter, body.lora_path)
            await asyncio.to_thread(magistral.load_adapter, folder, name)
        except (CheckpointError, ModelNotFound, OutOfMemory) as error:
            raise BadRequest(str(error), param="lora_path") from error
        except OSError as error:
            reason = f"it cannot be read: {error.strerror or error}."
            raise BadRequest(reason, param="lora_path") from error
        served.adapters[name] = folder
    return AdapterState(model=served.name_with(name), loaded=True)


@router.post("/v1/unload_lora_adapter", summary="Drop an adapter; its answers go on to their end")
async def drop_adapter(
    request: Request,
    body: Annotated[DropAdapterRequest, Body(openapi_examples=_DROP_EXAMPLES)],
) -> AdapterState:
    service: GenerationService = request.app.state.service
    served = service.registry.find(body.model)
    if served.adapters.pop(body.lora_name, None) is None:
        raise UnknownModel(
            f"there is no adapter {body.lora_name[:100]!r} of {served.id} here. Known: "
            f"{', '.join(served.adapters) or 'none'}.",
            param="lora_name",
        )
    magistral = served.magistral
    if magistral is not None and not magistral.closed:
        await asyncio.to_thread(magistral.drop_adapter, body.lora_name)
    return AdapterState(model=served.name_with(body.lora_name), loaded=False)
