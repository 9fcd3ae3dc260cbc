"""Python functions as tools: their schemas, calls to them, and the loop until the answer."""

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from magistral_mlx import (
    Assistant,
    InvalidOption,
    Magistral,
    Tool,
    ToolCall,
    ToolResult,
    ToolRoundsExceeded,
    User,
)
from magistral_mlx.api.functions import call_tool, function_tool, result_of
from tests.scripted import write_scripted_checkpoint


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Magistral]:
    """Calls f again and again."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("functions") / "restless",
        ["[/INST]", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"],
        ["[/TOOL_RESULTS]", "[TOOL_CALLS]"],
    )
    with Magistral.load(folder, images=0) as magistral:
        yield magistral


def f(a: int = 2, b: int = 3) -> int:
    """Add two numbers.

    Args:
        a: the first one.
        b: the second one.
    """
    return a + b


# Schemas


class Place(BaseModel):
    city: str
    country: str = "France"


@dataclass
class Point:
    x: float
    y: float


def weather(
    place: Place,
    unit: Literal["C", "F"] = "C",
    days: Annotated[int, Field(ge=1, description="how many")] = 1,
    *,
    at: Point | None = None,
) -> str:
    """Tell the weather.

    In any place.

    Args:
        place (Place): where,
            exactly.
        days: not this one.

    Returns:
        Words.
    """
    return f"{place.city} {unit} {days} {at}"


def test_a_schema_comes_from_signature_and_docstring():
    tool = function_tool(weather)
    assert (tool.name, tool.description) == ("weather", "Tell the weather.\n\nIn any place.")
    properties = tool.parameters["properties"]
    assert tool.parameters["required"] == ["place"]
    assert tool.parameters["additionalProperties"] is False
    assert properties["place"]["description"] == "where, exactly."
    assert properties["unit"] == {"enum": ["C", "F"], "default": "C", "type": "string"}
    assert properties["days"]["description"] == "how many"
    assert properties["days"]["minimum"] == 1


def test_other_docstrings_describe_parameters_too():
    def sphinx(a: int, b: str) -> None:
        """Do it.

        :param int a: one
            thing
        :param b: another
        :returns: nothing
        """

    def google(a: int) -> None:
        """
        Do it.

        Arguments:
            a: one thing
        """

    def bare(a: int) -> None: ...

    tool = function_tool(sphinx)
    assert tool.description == "Do it."
    assert [p["description"] for p in tool.parameters["properties"].values()] == [
        "one thing",
        "another",
    ]
    assert function_tool(google).parameters["properties"]["a"]["description"] == "one thing"
    assert function_tool(bare).description == ""


class Shop:
    def price(self, of: str) -> float:
        """Tell a price."""
        return 1.5


def test_methods_and_coroutines_are_tools_as_well():
    async def later(a: int) -> int:
        return a

    assert function_tool(Shop().price).parameters["required"] == ["of"]
    assert function_tool(later).name == "later"


@pytest.mark.parametrize(
    "function",
    [lambda a: a, lambda *args: args, lambda **more: more, threading.Lock],
)
def test_what_cannot_be_a_tool_is_refused(caller: Magistral, function: Callable[..., Any]):
    with pytest.raises(InvalidOption, match=r"the tool|the parameters"):
        caller.chat(tools=[function])


def unknown(a: threading.Event) -> None: ...


def many(*args: int) -> None: ...


def untyped(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [unknown, many, untyped])
def test_parameters_that_have_no_schema_are_named(function: Callable[..., Any]):
    with pytest.raises(InvalidOption, match=f"the tool {function.__name__}"):
        function_tool(function)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("caf\udce9.txt", "caf\\udce9.txt"),
        (5, "5"),
        (None, "null"),
        ({"a": [1, 2.5]}, '{"a":[1,2.5]}'),
        (Place(city="Lyon"), '{"city":"Lyon","country":"France"}'),
        (Point(1, 2), '{"x":1,"y":2}'),
        (Path("a"), '"a"'),
    ],
)
def test_results_are_text_or_json(value: Any, text: str):
    assert result_of(ToolCall("f", "{}", "123456789"), value) == ToolResult(text, "123456789")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"place": {"city": "Rome"}}', "Rome C 1 None"),
        ('{"place": {"city": "Rome"}, "unit": "F", "days": "3"}', "Rome F 3 None"),
        ('{"place": {"city": "Oslo"}, "at": {"x": 1, "y": 2}}', "Oslo C 1 Point(x=1.0, y=2.0)"),
    ],
)
def test_arguments_get_the_types_of_the_parameters(arguments: str, value: str):
    assert call_tool(function_tool(weather), ToolCall("weather", arguments)) == value


@pytest.mark.parametrize("arguments", ["[]", "5", "{", "", '{"place": 1}', '{"nowhere": 1}'])
def test_arguments_that_do_not_fit_are_refused(arguments: str):
    with pytest.raises(ValueError, match=r"."):
        call_tool(function_tool(weather), ToolCall("weather", arguments))


# The loop


def test_the_model_gets_what_its_calls_return(caller: Magistral):
    chat, seen = caller.chat(), []
    result = chat.ask("Add", tools=[f], on_event=seen.append)
    assert result.text == "Zero" and result.tool_calls == ()
    question, call, outcome, answer = chat.messages
    assert isinstance(call, Assistant) and question == User("Add")
    assert outcome == ToolResult("5", call.tool_calls[0].id)
    assert isinstance(answer, Assistant) and answer.text == "Zero"
    assert [event.name for event in seen if isinstance(event, ToolCall)] == ["f"]


def test_tools_may_be_those_of_the_chat(caller: Magistral):
    chat = caller.chat(tools=[f])
    assert chat.ask("Add").text == chat.ask("Add once more").text == "Zero"


def test_a_required_call_is_required_once(caller: Magistral):
    assert caller.chat().ask("Add", tools=[f], tool_choice="required").text == "Zero"


def raises() -> None:
    raise KeyError("no such thing")


def picky(a: Literal[7]) -> None: ...


@pytest.mark.parametrize(
    ("function", "told"),
    [(raises, "KeyError: 'no such thing'"), (picky, "Missing required argument")],
)
def test_what_goes_wrong_in_a_function_is_told_to_the_model(
    caller: Magistral, function: Callable[..., Any], told: str
):
    chat = caller.chat()
    function.__name__ = "f"
    assert chat.ask("Add", tools=[function]).text == "Zero"
    outcome = chat.messages[2]
    assert isinstance(outcome, ToolResult)
    assert outcome.content.startswith("The call of f failed.") and told in outcome.content


def test_a_call_of_a_function_that_is_not_there_is_told_to_the_model(caller: Magistral):
    chat = caller.chat()
    assert chat.ask("Add", tools=[weather]).text == "Zero"
    outcome = chat.messages[2]
    assert isinstance(outcome, ToolResult)
    assert "there is no tool f; known are weather" in outcome.content


def test_a_tool_that_is_no_function_is_the_callers_to_answer(caller: Magistral):
    chat = caller.chat()
    result = chat.ask("Add", tools=[weather, Tool("f")])
    assert [call.name for call in result.tool_calls] == ["f"]
    chat.append(ToolResult("5", result.tool_calls[0].id))
    assert chat.ask(tools=[weather, Tool("f")]).text == "Zero"


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_rounds_are_bounded(restless: Magistral, rounds: int):
    calls: list[int] = []

    def f(a: int = 2, b: int = 3) -> None:
        calls.append(a)

    chat = restless.chat()
    with pytest.raises(ToolRoundsExceeded, match=f"after {rounds} rounds"):
        chat.ask("Add", tools=[f], max_rounds=rounds)
    assert len(calls) == rounds
    assert isinstance(chat.messages[-1], Assistant)


@pytest.mark.parametrize("rounds", [-1, 1.5, "2", True])
def test_a_bound_that_is_none_is_refused(caller: Magistral, rounds: Any):
    with pytest.raises(InvalidOption, match="max_rounds"):
        caller.chat().ask("Add", tools=[f], max_rounds=rounds)


def test_ctrl_c_in_a_function_leaves_no_call_without_a_result(caller: Magistral):
    def f(a: int = 2, b: int = 3) -> None:
        raise KeyboardInterrupt

    chat = caller.chat()
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Add", tools=[f])
    assert isinstance(chat.messages[-1], ToolResult)
    assert chat.send().text == "Zero"


def test_functions_of_asyncio(caller: Magistral):
    threads: list[threading.Thread] = []

    async def ask() -> None:
        async def f(a: int = 2, b: int = 3) -> int:
            threads.append(threading.current_thread())
            await asyncio.sleep(0)
            return a + b

        chat = caller.chat()
        assert (await chat.aask("Add", tools=[f])).text == "Zero"
        assert isinstance(chat.messages[2], ToolResult) and chat.messages[2].content == "5"

        def f(a: int = 2, b: int = 3) -> int:  # type: ignore[no-redef]
            threads.append(threading.current_thread())
            return a + b

        assert (await caller.chat().aask("Add", tools=[f])).text == "Zero"

    asyncio.run(ask())
    assert threads[0] is threading.current_thread() is not threads[1]


def test_a_coroutine_may_be_called_without_an_event_loop(caller: Magistral):
    async def f(a: int = 2, b: int = 3) -> int:
        return a * b

    chat = caller.chat()
    chat.ask("Multiply", tools=[f])
    assert isinstance(chat.messages[2], ToolResult) and chat.messages[2].content == "6"


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        return function(*args, **more)

    return call


async def multiply(a: int = 2, b: int = 3) -> int:
    return a * b


class Later:
    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return "6"


def promise() -> Later:
    return Later()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("function", [logged(multiply), promise])
def test_what_a_function_promises_is_awaited(
    caller: Magistral, function: Callable[..., Any], asynchronous: bool
):
    function.__name__ = "f"
    chat = caller.chat()
    if asynchronous:
        asyncio.run(chat.aask("Multiply", tools=[function]))
    else:
        chat.ask("Multiply", tools=[function])
    assert isinstance(chat.messages[2], ToolResult) and chat.messages[2].content == "6"


# Classes as answers


class Sum(BaseModel, extra="forbid"):
    """A sum."""

    sum: Literal[1, 2]
    note: Literal["ok"]


# No whitespace between the tokens of JSON: random weights would write it on and on.
TERSE: dict[str, Any] = {
    "temperature": 0,
    "logit_bias": {1000 + byte: -100 for byte in b" \t\r\n"},
}


def test_an_answer_is_an_instance_of_the_class_that_was_asked_for(talker: Magistral):
    result = talker.generate("What?", json_schema=Sum, **TERSE)
    assert isinstance(result.parsed, Sum) and result.parsed.note == "ok"
    assert talker.generate("What?").parsed is None


def test_each_sample_is_an_instance(talker: Magistral):
    result = talker.generate("What?", json_schema=Sum, n=2, **TERSE)
    assert all(isinstance(sample.parsed, Sum) for sample in result.samples)


def test_an_answer_that_was_cut_is_no_instance(talker: Magistral):
    from magistral_mlx import AnswerError

    result = talker.generate("What?", json_schema=Sum, max_tokens=8, thinking="off")
    with pytest.raises(AnswerError, match=r"no Sum: .*cut"):
        result.parsed  # noqa: B018


def test_a_chat_may_ask_for_instances(talker: Magistral):
    chat = talker.chat(json_schema=Sum, **TERSE)
    assert isinstance(chat.send("What?").parsed, Sum)
