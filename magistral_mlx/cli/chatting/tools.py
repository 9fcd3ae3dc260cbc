"""Tools of MCP servers in the chat: each call is shown, confirmed and made."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from magistral_mlx.chat.messages import ToolResult
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import ToolCall
from magistral_mlx.mcp.servers import CallOutcome, MCPServers, MCPTool

QUESTION = "Allow it? [y]es, always this [t]ool, [a]lways all, [n]o: "
_DENIED = CallOutcome("The user did not allow this call.", failed=True)
_ANSWERS = {"y": "yes", "t": "tool", "a": "all", "n": "no", "": "no"}


class ToolCaller:
    """Makes the calls that the user allows: once, always of a tool, or all of this chat."""

    def __init__(
        self,
        servers: MCPServers,
        ask: Callable[[str], Awaitable[str]],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            ask: shows a question, and returns the line that is typed.
            say: shows a line.
        """
        self._servers = servers
        self._ask, self._say = ask, say
        self._allowed: set[str] = set()  # names of tools
        self._all = False
        self.last: list[tuple[ToolCall, CallOutcome]] = []  # of the last answer

    @property
    def found(self) -> list[MCPTool]:
        """The tools of all servers."""
        return self._servers.tools

    async def results(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Make calls one after the other, as far as the user allows them."""
        self.last = []
        for call in calls:
            outcome = await self._outcome(call)
            self.last.append((call, outcome))
            how = "failed" if outcome.failed else "done"
            self._say(f"{call.name}: {how}, {len(outcome.text):,} characters · /result shows them")
        return [ToolResult(outcome.text, call.id) for call, outcome in self.last]

    def allowed(self, name: str) -> bool:
        """Whether a tool is called without a question."""
        return self._all or name in self._allowed

    async def _outcome(self, call: ToolCall) -> CallOutcome:
        if call.name not in {tool.tool.name for tool in self.found}:
            return CallOutcome(f"There is no tool {call.name}.", failed=True)
        arguments = _arguments(call)
        if arguments is None:
            return CallOutcome("The arguments are no JSON object.", failed=True)
        if not self.allowed(call.name) and not await self._confirm(call):
            return _DENIED
        return await self._servers.call(call.name, arguments)

    async def _confirm(self, call: ToolCall) -> bool:
        answer = None
        while answer is None:
            try:
                typed = await self._ask(QUESTION)
            except (KeyboardInterrupt, EOFError):
                return False
            answer = _ANSWERS.get(typed.strip().lower()[:1])
        if answer == "tool":
            self._allowed.add(call.name)
        self._all = self._all or answer == "all"
        return answer != "no"


def _arguments(call: ToolCall) -> dict[str, object] | None:
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def require(tools: ToolCaller | None) -> ToolCaller:
    """Return the tools of the chat.

    Raises:
        InvalidOption: the chat was started without.
    """
    if tools is None:
        raise InvalidOption("this chat has no tools. Start it with --mcp FILE.")
    return tools
