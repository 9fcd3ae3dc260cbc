"""Connections to MCP servers: their tools, and calls to them.

async with MCPServers(read_servers(file)) as servers:
    outcome = await servers.call("time_get_current_time", {"timezone": "UTC"})
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from magistral_mlx.chat.messages import Tool
from magistral_mlx.errors import ToolServerError
from magistral_mlx.mcp.config import ServerSpec
from magistral_mlx.requirements import check_extra

if TYPE_CHECKING:
    from mcp import Client

CONNECT_SECONDS = 60.0  # npx and uvx may download the server first
CALL_SECONDS = 300.0
MAX_TOOLS = 256  # of a server
MAX_RESULT = 100_000  # characters that the model gets of a result
_LONGEST_NAME = 64  # of a tool, in the model's format


@dataclass(frozen=True, slots=True)
class MCPTool:
    """A tool of an MCP server.

    tool: as the model gets it, named SERVER_NAME. own_name: on its server. fingerprint: changes
    with its description or parameters, so that a permission holds for what was seen.
    """

    tool: Tool
    server: str
    own_name: str
    title: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The result of a call as text; `failed` where the tool says that it is an error."""

    text: str
    failed: bool = False


class MCPServers:
    """MCP servers that are connected while the context is entered.

    Each connection lives in a task of its own, so calls may come from any task of the same loop.
    """

    def __init__(self, specs: Sequence[ServerSpec], log: TextIO | None = None) -> None:
        """`log`: a file for what started servers write to stderr; None for stderr."""
        self._specs = specs
        self._log = log
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: dict[str, Client] = {}
        self._tools: dict[str, MCPTool] = {}
        self.connected = False  # to all of them

    @property
    def awaited(self) -> list[str]:
        """The names of the servers that are not connected."""
        return [spec.name for spec in self._specs if spec.name not in self._clients]

    @property
    def tools(self) -> list[MCPTool]:
        """The tools of all servers, in the order of the file."""
        return list(self._tools.values())

    async def __aenter__(self) -> MCPServers:
        """Connect to all servers. Cancelling the task ends those that do not answer yet.

        Raises:
            ToolServerError: one that cannot be started or reached, or does not speak MCP.
            MissingExtra: the package `mcp` is not installed.
        """
        check_extra("--mcp", "mcp", "mcp")
        logging.getLogger("mcp").addHandler(logging.NullHandler())  # errors are told below
        loop = asyncio.get_running_loop()
        ready = [loop.create_future() for _ in self._specs]
        self._tasks = [
            asyncio.create_task(self._keep(spec, future), name=f"mcp {spec.name}")
            for spec, future in zip(self._specs, ready, strict=True)
        ]
        try:
            for tools in await asyncio.gather(*ready):
                for tool in tools:
                    self._add(tool)
        except BaseException:
            await self._close()
            raise
        self.connected = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> CallOutcome:
        """Call a tool by the name that the model has for it.

        What goes wrong in the tool, or on the way to it, is an outcome for the model to read.

        Raises:
            ToolServerError: there is no such tool.
        """
        found = self._tools.get(name)
        if found is None:
            raise ToolServerError(
                f"there is no tool {name[:100]}. Known: {', '.join(self._tools)}."
            )
        client = self._clients.get(found.server)
        if client is None:
            return CallOutcome(f"The MCP server {found.server} is no longer there.", failed=True)
        try:
            result = await client.call_tool(
                found.own_name, dict(arguments), read_timeout_seconds=CALL_SECONDS
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a server may fail in any way
            return CallOutcome(f"The call of {name} failed: {_reason(error)}.", failed=True)
        return CallOutcome(_cut(_text_of(result)), failed=bool(result.is_error))

    def _add(self, found: MCPTool) -> None:
        """Take a tool in; a name that is taken, or too long, gets a digest of it at its end."""
        tool = found.tool
        if len(tool.name) > _LONGEST_NAME or tool.name in self._tools:
            digest = hashlib.sha256(f"{found.server}\n{found.own_name}".encode()).hexdigest()[:8]
            tool = replace(tool, name=f"{tool.name[: _LONGEST_NAME - 9]}_{digest}")
        self._tools[tool.name] = replace(found, tool=tool)

    # Connections

    async def _keep(self, spec: ServerSpec, ready: asyncio.Future[list[MCPTool]]) -> None:
        """Connect, and hold the connection until all are closed."""
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(CONNECT_SECONDS):
                    client = await stack.enter_async_context(self._client(spec, stack))
                    tools = await _list_tools(spec, client)
                self._clients[spec.name] = client
                if not ready.done():
                    ready.set_result(tools)
                await self._stop.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not ready.done():
                ready.set_exception(_refusal(spec, error))
        finally:
            self._clients.pop(spec.name, None)

    def _client(self, spec: ServerSpec, stack: AsyncExitStack) -> Client:
        import httpx2
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        if spec.url is not None:
            timeout = httpx2.Timeout(30, read=CALL_SECONDS)
            http = httpx2.AsyncClient(headers=dict(spec.headers), timeout=timeout)
            stack.push_async_callback(http.aclose)
            return Client(streamable_http_client(spec.url, http_client=http))
        assert spec.command is not None
        parameters = StdioServerParameters(
            command=spec.command, args=list(spec.args), env=dict(spec.env), cwd=spec.cwd
        )
        return Client(stdio_client(parameters, *([self._log] if self._log else [])))

    async def _close(self) -> None:
        self.connected = False
        self._stop.set()
        for spec, task in zip(self._specs, self._tasks, strict=True):
            if spec.name not in self._clients:
                task.cancel()  # it waits for an answer, not for the end
        _, late = await asyncio.wait(self._tasks, timeout=10) if self._tasks else ((), ())
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _list_tools(spec: ServerSpec, client: Client) -> list[MCPTool]:
    found: list[MCPTool] = []
    cursor: str | None = None
    while len(found) < MAX_TOOLS:
        page = await client.list_tools(cursor=cursor)
        found += [_tool(spec, tool) for tool in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[:MAX_TOOLS]


def _tool(spec: ServerSpec, tool: Any) -> MCPTool:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{spec.name}_{tool.name}")
    definition = json.dumps([tool.description, tool.input_schema], sort_keys=True)
    fingerprint = hashlib.sha256(definition.encode()).hexdigest()[:16]
    described = Tool(name, tool.description or "", tool.input_schema)
    title = tool.title or (tool.annotations.title if tool.annotations else None) or tool.name
    return MCPTool(described, spec.name, tool.name, title, fingerprint)


def _text_of(result: Any) -> str:
    """The text of a result; what is no text is named in brackets."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        elif block.type in ("resource", "resource_link"):
            parts.append(f"[resource {getattr(block, 'resource', block).uri}]")
        else:
            parts.append(f"[{block.type}, {block.mime_type}, not shown]")
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n\n".join(parts)


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]}\n[cut here: the result has {len(text):,} characters]"


def _refusal(spec: ServerSpec, error: BaseException) -> ToolServerError:
    what = f"the MCP server {spec.name}"
    target = spec.url or " ".join((spec.command or "", *spec.args))
    if isinstance(_innermost(error), FileNotFoundError):
        return ToolServerError(f"{what} cannot be started: there is no command {spec.command}.")
    if isinstance(error, TimeoutError):
        return ToolServerError(
            f"{what} did not answer within {CONNECT_SECONDS:g} seconds ({target})."
        )
    verb = "reached" if spec.url else "used"
    return ToolServerError(f"{what} cannot be {verb} ({target}): {_reason(error)}.")


def _reason(error: BaseException) -> str:
    inner = _innermost(error)
    words = " ".join(str(inner).split()).rstrip(".")[:500]
    return words or type(inner).__name__


def _innermost(error: BaseException) -> BaseException:
    """The first error in a group; anyio wraps those of its tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
