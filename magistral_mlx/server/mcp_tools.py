"""GET /v1/mcp/tools and POST /v1/mcp/calls: tools of MCP servers, for the page of this server.

They exist where `serve --mcp FILE` was asked for. A call runs what the user's file names, so a web
page of another origin never reaches them, not even one that `--cors` lets use the models.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from magistral_mlx.mcp.servers import MCPServers
from magistral_mlx.server.error_responses import OPENAI_RESPONSES, OpenAIError
from magistral_mlx.server.errors import Forbidden, Unavailable
from magistral_mlx.server.exchange import unless_disconnected
from magistral_mlx.server.openapi import error_responses
from magistral_mlx.server.request_body import JSONObject, JSONRoute, RequestBody

_RETRY_AFTER = 1  # seconds
_log = logging.getLogger("magistral_mlx.server")
_ERRORS = error_responses(OpenAIError, 400, 401, 403, 404, 413, rest=OPENAI_RESPONSES)


def own_page_only(request: Request) -> None:
    """Check that a request comes from the page of this server, or from no web page.

    Browsers tell the origin of a POST, and where any request comes from.

    Raises:
        Forbidden: it comes from a page of another origin.
    """
    host = request.headers.get("host", "").lower()
    own = {f"http://{host}", f"https://{host}"}
    origins = {origin.lower() for origin in request.headers.getlist("origin")}
    sites = set(request.headers.getlist("sec-fetch-site"))
    if not origins <= own or not sites <= {"same-origin"}:
        raise Forbidden("tools are for the page of this server alone, whatever --cors allows.")


router = APIRouter(
    tags=["Tools"],
    responses=_ERRORS,
    route_class=JSONRoute,
    dependencies=[Depends(own_page_only)],
)


class ToolCard(BaseModel):
    """A tool of an MCP server."""

    name: Annotated[str, Field(description="For the model: SERVER_NAME.")]
    server: str
    title: str
    description: str
    parameters: dict[str, Any]
    fingerprint: Annotated[str, Field(description="Changes with description and parameters.")]


class ToolList(BaseModel):
    """The tools of all MCP servers."""

    tools: list[ToolCard]


class CallRequest(RequestBody):
    """A call that the user has allowed."""

    name: str
    arguments: JSONObject = Field(default_factory=dict)


class CallResult(BaseModel):
    """The result of a call."""

    content: str
    is_error: bool


def _connected(request: Request) -> MCPServers:
    """Return the MCP servers.

    Raises:
        Unavailable: they are being connected or closed, or one of them cannot be connected.
    """
    servers: MCPServers = request.app.state.mcp
    if not servers.connected:
        awaited = ", ".join(servers.awaited)
        raise Unavailable(
            f"these MCP servers are not connected: {awaited}."
            if awaited
            else "the MCP servers are being connected or closed.",
            headers={"Retry-After": str(_RETRY_AFTER)},
        )
    return servers


@router.get("/v1/mcp/tools", summary="The tools of MCP servers")
async def tools(request: Request) -> ToolList:
    servers = _connected(request)
    return ToolList(
        tools=[
            ToolCard(
                name=found.tool.name,
                server=found.server,
                title=found.title,
                description=found.tool.description,
                parameters=dict(found.tool.parameters),
                fingerprint=found.fingerprint,
            )
            for found in servers.tools
        ]
    )


@router.post("/v1/mcp/calls", summary="Call a tool of an MCP server")
async def call(request: Request, body: CallRequest) -> CallResult:
    servers = _connected(request)
    _log.info("the page calls the tool %s", body.name[:100])
    outcome = await unless_disconnected(request, servers.call(body.name, body.arguments))
    return CallResult(content=outcome.text, is_error=outcome.failed)
