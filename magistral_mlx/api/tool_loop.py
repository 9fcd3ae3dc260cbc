"""The loop between a model and Python functions: calls, results, and the answer in the end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from magistral_mlx.api.functions import CallableTool, call_tool, result_of, result_of_error
from magistral_mlx.chat.messages import Tool, ToolResult
from magistral_mlx.errors import InvalidOption, ToolRoundsExceeded
from magistral_mlx.events import ToolCall

if TYPE_CHECKING:
    from magistral_mlx.runtime.result import Result

Answer = Callable[[bool], "Result"]  # to the question, or, if False, to the history as it stands
AsyncAnswer = Callable[[bool], Awaitable["Result"]]
Append = Callable[[Sequence[ToolResult]], None]  # to the history


def answer_with_tools(answer: Answer, append: Append, tools: Sequence[Tool], rounds: int) -> Result:
    """Answer, calling the functions that the model asks for, until it asks for none.

    Raises:
        ToolRoundsExceeded: it still asks for calls after so many rounds of them.
    """
    _check_rounds(rounds)
    result = answer(True)
    for _ in range(rounds):
        if not _callable(result, tools):
            return result
        with _Results(result.tool_calls, append) as results:
            for call in result.tool_calls:
                results.add(call, _outcome(tools, call))
        result = answer(False)
    return _within(result, tools, rounds)


async def answer_with_tools_async(
    answer: AsyncAnswer, append: Append, tools: Sequence[Tool], rounds: int
) -> Result:
    """`answer_with_tools` for asyncio. Functions that are no coroutines run in helper threads."""
    _check_rounds(rounds)
    result = await answer(True)
    for _ in range(rounds):
        if not _callable(result, tools):
            return result
        with _Results(result.tool_calls, append) as results:
            for call in result.tool_calls:
                results.add(call, await _async_outcome(tools, call))
        result = await answer(False)
    return _within(result, tools, rounds)


class _Results:
    """Results of the calls of one answer; each call has one in the end, whatever happens."""

    def __init__(self, calls: Sequence[ToolCall], append: Append) -> None:
        self._missing = list(calls)
        self._results: list[ToolResult] = []
        self._append = append

    def __enter__(self) -> _Results:
        return self

    def add(self, call: ToolCall, result: ToolResult) -> None:
        self._missing.remove(call)
        self._results.append(result)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._results += [result_of_error(call, error) for call in self._missing]
        self._append(self._results)


def _outcome(tools: Sequence[Tool], call: ToolCall) -> ToolResult:
    try:
        value = call_tool(_tool_of(tools, call), call)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        return result_of(call, value)
    except Exception as error:
        return result_of_error(call, error)


async def _async_outcome(tools: Sequence[Tool], call: ToolCall) -> ToolResult:
    try:
        tool = _tool_of(tools, call)
        if inspect.iscoroutinefunction(tool.function):
            value = call_tool(tool, call)
        else:
            value = await asyncio.to_thread(call_tool, tool, call)
        if inspect.isawaitable(value):  # of a function that wraps a coroutine as well
            value = await value
        return result_of(call, value)
    except Exception as error:
        return result_of_error(call, error)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _tool_of(tools: Sequence[Tool], call: ToolCall) -> CallableTool:
    functions = dict(_functions(tools))
    if call.name not in functions:
        raise LookupError(f"there is no tool {call.name}; known are {', '.join(functions)}.")
    return functions[call.name]


def _callable(result: Result, tools: Sequence[Tool]) -> bool:
    """Whether the answer calls functions; tools without one are the caller's to answer."""
    others = {tool.name for tool in tools} - dict(_functions(tools)).keys()
    calls = result.tool_calls
    whole = result.finish_reason == "stop"
    return whole and bool(calls) and not any(call.name in others for call in calls)


def _functions(tools: Sequence[Tool]) -> Iterator[tuple[str, CallableTool]]:
    return ((tool.name, tool) for tool in tools if isinstance(tool, CallableTool))


def _within(result: Result, tools: Sequence[Tool], rounds: int) -> Result:
    if _callable(result, tools):
        raise ToolRoundsExceeded(
            f"the model still asks for calls after {rounds} rounds of them. Its last ones stand in "
            "the history: raise max_rounds, or answer them by hand."
        )
    return result


def _check_rounds(rounds: Any) -> None:
    if type(rounds) is not int or rounds < 0:
        raise InvalidOption(f"max_rounds is {rounds!r}; it must be a whole number of 0 or more.")
