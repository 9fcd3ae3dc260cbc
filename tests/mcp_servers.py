"""MCP servers for tests: the time server of a package, by stdio, and one of our own by HTTP."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent

TIME: dict[str, Any] = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
# Reads the first request, and answers nothing until its stdin is closed.
SILENT: dict[str, Any] = {"command": "sh", "args": ["-c", "read first; read second"]}
NOON = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}


def write_servers(file: Path, **servers: Any) -> Path:
    """Write a file of MCP servers."""
    file.write_text(json.dumps({"mcpServers": servers}))
    return file


def own_server() -> MCPServer:
    """Tools that return several blocks, much text, or an error."""
    server = MCPServer("own", log_level="CRITICAL")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two whole numbers."""
        return a + b

    @server.tool()
    def now() -> str:
        """Tell the time."""
        return "It is 5"

    @server.tool()
    def show() -> list[TextContent | ImageContent]:
        """Show a text and an image."""
        return [
            TextContent(type="text", text="a text"),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
        ]

    @server.tool()
    def talk(characters: int) -> str:
        """Talk for long."""
        return "x" * characters

    @server.tool(name="fail.on/purpose")
    def fail() -> str:
        """Fail."""
        raise ToolError("on purpose")

    return server


@contextmanager
def http_server() -> Iterator[str]:
    """`own_server` by HTTP; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = own_server().streamable_http_app()
        process = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.should_exit = True
            process.force_exit = True
            thread.join(30)
