"""What a client reads about a field that its request's schema refuses."""

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from magistral_mlx.server.anthropic.schemas import MessageRequest
from magistral_mlx.server.ollama.schemas import OllamaChatRequest
from magistral_mlx.server.openai.chat_schemas import ChatRequest
from magistral_mlx.server.openai.completion_schemas import CompletionRequest
from magistral_mlx.server.openai.response_schemas import ResponseRequest
from magistral_mlx.server.validation_errors import validation_error


def refusal(schema: type[BaseModel], body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(body)
    errors = [error | {"loc": ("body", *error["loc"])} for error in refused.value.errors()]
    return validation_error(RequestValidationError(errors, body=body))[1]


def says(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


BOGUS: Any = [{"type": "bogus"}]
PROMPTS = "a text, a list of texts, a list of integers or a list of lists of integers"


@pytest.mark.parametrize(
    ("schema", "body", "message"),
    [
        (ResponseRequest, {"input": BOGUS}, "input[0]: type is 'bogus'; it must be one of "),
        (ResponseRequest, {"input": [{"type": 3}]}, "input[0]: type is 3; it must be one of "),
        (
            ResponseRequest,
            {"input": [{"role": "user", "content": BOGUS}]},
            "input[0].content[0]: type is 'bogus'; it must be one of 'input_text', 'output_text', ",
        ),
        (
            ChatRequest,
            says(BOGUS),
            "messages[0].content[0]: type is 'bogus'; it must be one of 'text', 'image_url', ",
        ),
        (
            ChatRequest,
            says("Hi") | {"tool_choice": {"type": "bogus"}},
            "tool_choice: type is 'bogus'; it must be one of 'function', 'allowed_tools'.",
        ),
        (
            MessageRequest,
            says(BOGUS),
            "messages[0].content[0]: type is 'bogus'; it must be one of 'text', 'image', ",
        ),
    ],
)
def test_an_unknown_type_is_told_with_those_of_the_api(
    schema: type[BaseModel], body: dict[str, Any], message: str
):
    assert refusal(schema, body).startswith(message)


@pytest.mark.parametrize("kind", ["bogus", "output", "skipped"])
def test_the_types_of_items_are_those_that_clients_send(kind: str):
    told = refusal(ResponseRequest, {"input": [{"type": kind, "id": "a"}]})
    assert told.startswith(f"input[0]: type is '{kind}'; it must be one of 'message', ")
    known = told.split("one of ")[1]
    assert "'function_call_output'" in known and "'web_search_call'" in known
    assert "'output'" not in known and "'skipped'" not in known


@pytest.mark.parametrize(
    ("schema", "body", "message"),
    [
        (CompletionRequest, {"prompt": []}, f"prompt: it must be {PROMPTS}; not empty."),
        (CompletionRequest, {"prompt": {}}, f"prompt: it must be {PROMPTS}."),
        (CompletionRequest, {"prompt": [1, "a"]}, "prompt[1]: it must be an integer (it is 'a')."),
        (CompletionRequest, {"prompt": ["a", 1]}, "prompt[1]: it must be a text (it is 1)."),
        (
            CompletionRequest,
            {"prompt": [None]},
            "prompt[0]: it must be a text, an integer or a list.",
        ),
        (
            CompletionRequest,
            {"prompt": "a", "stop": 1, "echo": "x"},
            "stop: it must be a text or a list of texts (it is 1). 1 more problem follows.",
        ),
        (
            ChatRequest,
            says(None),
            "messages[0].content: it must be a text or a list of objects.",
        ),
        (ChatRequest, says(["a"]), "messages[0].content[0]: it must be an object (it is 'a')."),
        (ChatRequest, says([{}]), "messages[0].content[0].type: Field required."),
        (ChatRequest, {"messages": []}, "messages: it must not be empty."),
        (
            ChatRequest,
            says("Hi") | {"tool_choice": 3},
            "tool_choice: it must be 'none', 'auto', 'required' or 'any', or an object (it is 3).",
        ),
        (
            MessageRequest,
            says("Hi") | {"system": 3},
            "system: it must be a text or a list of objects (it is 3).",
        ),
        (
            OllamaChatRequest,
            says("Hi") | {"model": "demo", "format": 3},
            "format: it must be '' or 'json', or an object (it is 3).",
        ),
    ],
)
def test_a_field_of_several_kinds_is_told_with_all_of_them(
    schema: type[BaseModel], body: dict[str, Any], message: str
):
    assert refusal(schema, body) == message
