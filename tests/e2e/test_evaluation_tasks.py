"""Tasks by name, and what is said where their data cannot be had."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import httpx
import pytest
from inspect_ai import Task
from inspect_ai._util.error import EvalError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalSample

from magistral_mlx.errors import EvaluationError, InvalidOption
from magistral_mlx.evaluation.answers import answer_of, score_of
from magistral_mlx.evaluation.run import choose_questions
from magistral_mlx.evaluation.tasks import TASKS, TaskSpec


class RetryError(Exception):
    """As tenacity's, around what the last attempt raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__("RetryError[<Future at 0x7f>]")
        self.last_attempt: Future[None] = Future()
        self.last_attempt.set_exception(error)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """What is said where a task's function raises `error`."""

    def function() -> Task:
        raise error

    module = SimpleNamespace(function=function)
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    with pytest.raises(EvaluationError) as raised:
        TaskSpec("aime24", "AIME", "module:function").make()
    message = str(raised.value)
    assert message.startswith("aime24: ") and "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'a/b' on the Hub\n(LocalEntryNotFoundError)"),
        RetryError(httpx.ConnectError("[Errno 111] Connection refused")),
        httpx.ReadTimeout("timed out"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_download_that_fails_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    message = failing(monkeypatch, error)
    assert "cannot be downloaded" in message and "Check the connection" in message
    assert "RetryError" not in message


@pytest.mark.parametrize(
    "text",
    [
        "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub. You must be authenticated.",
        "401 Client Error: https://huggingface.co/datasets/Idavidrein/gpqa/resolve/main/a.csv",
        "403 Forbidden for https://hf.co/datasets/Idavidrein/gpqa: access is restricted",
    ],
)
def test_data_behind_a_licence_name_their_page(monkeypatch: pytest.MonkeyPatch, text: str):
    message = failing(monkeypatch, ValueError(text))
    assert "https://huggingface.co/datasets/Idavidrein/gpqa, make a token" in message
    assert "HF_TOKEN" in message


def test_data_of_another_form_are_no_matter_of_the_connection(monkeypatch: pytest.MonkeyPatch):
    message = failing(monkeypatch, KeyError("Problem"))
    assert "cannot be read (KeyError: 'Problem')" in message


def test_the_same_questions_are_drawn_each_time(monkeypatch: pytest.MonkeyPatch):
    def make(self: TaskSpec) -> Task:
        samples = [Sample(input=str(n), id=f"q{n}" if n % 2 else None) for n in range(40)]
        return Task(dataset=MemoryDataset(samples))

    monkeypatch.setattr(TaskSpec, "make", make)
    drawn = [choose_questions(TASKS["demo"], 10).ids for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(map(str, drawn[0]))) == 10
    more = choose_questions(TASKS["demo"], 20).ids
    assert set(map(str, drawn[0])) < set(map(str, more)), "a larger sample holds the smaller one"
    assert len(choose_questions(TASKS["demo"], None).ids) == 40


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ("C", 1), ("I", 0), ("P", 0.5), (0.25, 0.25), (True, 1), ("no", 0), ("yes", 1),
        ({"prompt_level_strict": True, "inst_level_strict": 3}, 1),
        ({"prompt_level_strict": False, "inst_level_strict": 3}, 0), (None, 0),
    ],
)  # fmt: skip
def test_scores_are_numbers_from_0_to_1(value: object, score: float):
    assert score_of(value) == score


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        (repr(InvalidOption('it\'s 0; it must be "1".')), 'it\'s 0; it must be "1".'),
        ("Connection error.", "Connection error."),
        (repr(TimeoutError()), "TimeoutError()"),
        (repr(KeyError("usage")), "KeyError('usage')"),
        (repr(OSError(28, "No space left")), "OSError(28, 'No space left')"),
    ],
)
def test_a_failure_is_told_in_its_own_words(logged: str, told: str):
    error = EvalError(message=logged, traceback="", traceback_ansi="")
    assert answer_of(EvalSample(id=1, epoch=1, input="", target="", error=error)).error == told
