"""`magistral-mlx eval` of models behind an address, and of Mistral's own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.evaluation import livecodebench
from tests.command_line import Done, run
from tests.eval_data import gpqa_file, problem, problems_file
from tests.fake_chat_api import FakeChatAPI

# Inspect looks through all packages for each log: once will do.
_distributions = functools.cache(importlib.metadata.packages_distributions)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MISTRAL_API_KEY", "MISTRAL_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setattr("importlib.metadata.packages_distributions", _distributions)
    monkeypatch.chdir(tmp_path)


def sums(prompt: str) -> tuple[str, str]:
    """Right for sums, wrong for the rest."""
    found = re.findall(r"What is (\d+) ([+-]) (\d+)\?", prompt)
    if not found:
        return "I see nothing.", "A purple line."
    a, sign, b = found[-1]
    return "Digit by digit. " * 3, str(int(a) + int(b) if sign == "+" else int(a) - int(b))


def facts_of(done: Done) -> dict[str, Any]:
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)


def test_a_server_is_asked_and_scored():
    with FakeChatAPI(sums) as api:
        words = ("eval", "demo", "--url", api.url, "--samples", "12", "--json", "--parallel", "4")
        facts = facts_of(run(*words))
        again = facts_of(run(*words))
    (task,) = facts["tasks"]
    right = sum("purple" not in sums(_prompt(request))[1] for request in api.requests)
    assert 0 < right < 12
    assert task["pass_at_1"] == pytest.approx(right / 12)
    assert len(api.requests) == 12, "the second call asks nothing again"
    assert again["tasks"] == facts["tasks"]
    assert task["output_tokens"] == 12 * 40 and task["input_tokens"] == 12 * 20
    # 48 characters of thinking, and an answer of a few.
    assert 0.8 * 40 < task["right"]["thinking"] < 40 and task["thinking_estimated"]
    assert {"temperature": 0.7, "top_p": 0.95}.items() <= api.requests[0].items()
    assert "seed" not in api.requests[0]


def test_the_hosted_model_thinks_in_chunks_and_each_epoch_has_its_seed(
    monkeypatch: pytest.MonkeyPatch,
):
    name = "magistral-medium-2509"
    with FakeChatAPI(sums, model=name, key="secret", mistral=True) as api:
        monkeypatch.setenv("MISTRAL_BASE_URL", api.base)
        monkeypatch.setenv("MY_KEY", "secret")
        words = ("eval", "demo", "--samples", "3", "--epochs", "2", "--seed", "7", "--json")
        facts = facts_of(run(*words, "--model", f"mistral/{name}", "--api-key-env", "MY_KEY"))
    (task,) = facts["tasks"]
    assert task["answers"] == len(api.requests) == 6
    assert task["right"]["answers"] == round(6 * task["pass_at_1"]) > 0
    assert task["right"]["thinking"] > 0
    assert {request["model"] for request in api.requests} == {name}
    assert sorted(request["random_seed"] for request in api.requests) == [7, 7, 7, 8, 8, 8]


def test_choices_and_programs_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """GPQA and LiveCodeBench in their own formats; a program runs here, as is asked for."""
    gpqa = importlib.import_module("inspect_evals.gpqa.gpqa")
    file = gpqa_file(tmp_path / "gpqa.csv")
    monkeypatch.setattr(gpqa, "GPQA_DIAMOND_CACHE_PATH", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(gpqa, "GPQA_DIAMOND_DATASET_SHA256", digest)
    monkeypatch.setenv("INSPECT_EVALS_CACHE_PATH", str(tmp_path))
    problems = problems_file(tmp_path / "test.jsonl", problem(1), problem(2, "method"))
    monkeypatch.setattr(livecodebench, "_download", lambda release: [problems])

    def answer(prompt: str) -> tuple[str, str]:
        if "Read the inputs from stdin" in prompt:
            return "", "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
        if "starter code" in prompt:
            return "", "```python\nclass Solution:\n    def add(self, a, b): return a\n```"
        (letter,) = re.findall(r"^([A-D])\) right$", prompt, re.MULTILINE)
        return "", f"ANSWER: {letter if 'Which is 1' in prompt else 'E'}"

    with FakeChatAPI(answer) as api:
        words = ("eval", "gpqa", "livecodebench", "--url", api.url, "--run-code-here", "--json")
        facts = facts_of(run(*words))
    assert [task["task"] for task in facts["tasks"]] == ["gpqa", "livecodebench"]
    assert [task["pass_at_1"] for task in facts["tasks"]] == [0.5, 0.5]
    assert [task["questions"] for task in facts["tasks"]] == [2, 2]
    assert facts["tasks"][1]["published"]["Small 1.2"] == 70.88


def test_two_runs_are_compared_by_question():
    loop = "so we try the next number and then we try it once more, " * 100
    folders = []
    for seed, answer in enumerate((sums, lambda prompt: (loop, "A purple line."))):
        with FakeChatAPI(answer) as api:
            words = ("eval", "demo", "--url", api.url, "--samples", "12", "--json")
            facts = facts_of(run(*words, "--seed", str(seed)))
            folders.append(facts["run"])
        assert facts["settings"]["sampling"]["seed"] == seed, "another seed is another run"
        assert {request["seed"] for request in api.requests} == {seed}
    assert facts["tasks"][0]["looping"] == 12
    compared = facts_of(run("eval", "--compare", *folders, "--json"))
    (task,) = compared["tasks"]
    assert task["questions"] == 12
    assert task["second"] == 0 and task["difference"] == -task["first"] < 0
    assert task["worse"] == round(12 * task["first"]) and task["better"] == 0
    assert task["p"] == pytest.approx(min(1, 2 / 2 ** task["worse"]))
    table = run("eval", "--compare", *folders, "--plot", "apart.svg")
    assert table.status == 0 and b"sign-flip" in table.stdout
    assert Path("apart.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "mistral/magistral-medium-2509"), "MISTRAL_API_KEY"),
        (("--url", "http://127.0.0.1:9/v1"), "does not answer"),
        (("--url", "{url}", "--api-key-env", "UNSET_KEY"), "UNSET_KEY, which is not set"),
        (("--url", "{url}"), "asks for a key"),
        (("--url", "{url}", "--kv", "4/4"), "--kv is for models that this process loads"),
        (("--api-key-env", "HOME"), "--url"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(words: tuple[str, ...], expected: str):
    with FakeChatAPI(sums, key="secret") as api:
        given = [word.format(url=api.url) for word in words]
        assert expected in run("eval", "demo", *given).refusal
    assert api.requests == []


def _prompt(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]
