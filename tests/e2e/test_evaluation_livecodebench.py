"""LiveCodeBench: its data, and the programs that its tests run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from magistral_mlx.errors import EvaluationError
from magistral_mlx.evaluation import livecodebench as livecodebench_module
from magistral_mlx.evaluation import run_tests
from magistral_mlx.evaluation.livecodebench import _tests, livecodebench, livecodebench6
from tests.eval_data import problem, problems_file

READS = "a, b = map(int, input().split())\n"
METHOD = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        "


def passes(folder: Path, program: str, tests: list[dict[str, str]], function: str | None) -> str:
    """Run a program's tests as the sandbox does; what is wrong, or ""."""
    (folder / "solution.py").write_text(program)
    work = {"function": function, "tests": tests, "seconds": 5}
    (folder / "tests.json").write_text(json.dumps(work))
    done = subprocess.run(
        [sys.executable, run_tests.__file__],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("program", "problem_found"),
    [
        (READS + "print(a + b)", ""),
        (READS + "print(f'{a + b}.0 ')", ""),  # numbers are compared as numbers
        (READS + "print(a - b)", "instead of"),
        (READS + "print(a + b, file=sys.stderr)", "instead of"),
        (READS + "print(a + b); print(0)", "instead of"),
        (READS + "1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("print(sum(Counter(map(int, input().split())).elements()))", ""),  # taken for granted
    ],
)
def test_a_program_reads_and_writes(tmp_path: Path, program: str, problem_found: str):
    tests = _tests(problem(1)["public_test_cases"])
    found = passes(tmp_path, program, tests, None)
    assert (problem_found in found) if problem_found else found == ""


@pytest.mark.parametrize(
    ("program", "problem_found"),
    [
        (METHOD + "return a + b", ""),
        (METHOD + "print('noise'); return a + b", ""),
        ("def add(a, b): return a + b", ""),
        (METHOD + "return a * b", "instead of"),
        (METHOD + "return None", "instead of"),
        ("class Solution: pass", "AttributeError"),
    ],
)
def test_a_method_is_called(tmp_path: Path, program: str, problem_found: str):
    tests = _tests(problem(1, "method")["public_test_cases"])
    found = passes(tmp_path, program, tests, "add")
    assert (problem_found in found) if problem_found else found == ""


def test_a_release_is_all_files_up_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        assert (repo, repo_type) == (livecodebench_module.REPO, "dataset")
        asked.append(name)
        return str(problems_file(tmp_path / name, problem(len(asked))))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(livecodebench6().dataset) == 6
    assert asked == ["test.jsonl", *(f"test{n}.jsonl" for n in range(2, 7))]
    asked.clear()
    assert len(livecodebench().dataset) == 5
    assert asked[-1] == "test5.jsonl"


def test_hidden_tests_are_unpacked_and_nothing_else():
    assert [test["output"] for test in _tests(problem(1)["private_test_cases"])] == ["42", "-5"]

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(pickle.UnpicklingError, match="is no text"):
        _tests(packed)


def test_a_question_tells_the_form_and_where_its_line_is(tmp_path: Path):
    file = problems_file(tmp_path / "test.jsonl", problem(1), problem(2, "method"))
    reads, called = livecodebench(files=[str(file)]).dataset
    assert "Read the inputs from stdin" in reads.input and "# YOUR CODE HERE" in reads.input
    assert "starter code" in called.input and "def add(self" in called.input
    assert called.metadata is not None
    with file.open("rb") as lines:
        lines.seek(called.metadata["offset"])
        assert json.loads(lines.readline())["question_id"] == called.id == "sum-2"


@pytest.mark.parametrize("line", ["{", "[]", '{"question_id": 1}', "null"])
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: str):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(problem(1)) + "\n" + line + "\n")
    with pytest.raises(EvaluationError, match="is no problem") as caught:
        livecodebench(files=[str(file)])
    assert "Error(" not in str(caught.value)
