"""LiveCodeBench: problems of programming contests, whose answers are programs that tests run.

The data are those of `livecodebench/code_generation_lite`: release 5 is its first five files,
release 6 all six. A line holds a problem with all of its tests, megabytes of them, so a question
keeps only where its line is.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate
from inspect_ai.util import sandbox

from magistral_mlx.errors import EvaluationError

REPO = "livecodebench/code_generation_lite"
_HERE = Path(__file__).parent
_SANDBOX = ("docker", str(_HERE / "livecodebench.yaml"))
_RUNNER = _HERE / "run_tests.py"
_SECONDS_A_TEST = 6  # as LiveCodeBench allows
_MOST_SECONDS = 600
_CODE = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_PROMPT = """\
You will be given a question (problem specification) and will generate a correct Python program \
that matches the specification and passes all tests.

### Question
{question}

### Format
{form}

```python
{code}
```
"""
_STARTER = "Use the following starter code, and enclose the whole program in delimiters as here."
_STDIN = (
    "Read the inputs from stdin, solve the problem and write the answer to stdout. Do not test on "
    "the sample inputs. Enclose the program in delimiters as here."
)


@task
def livecodebench(files: list[str] | None = None) -> Task:
    """Return the problems of release 5.

    Args:
        files: local files to read instead of those of the hub.

    Raises:
        EvaluationError: a line that is no problem.
    """
    return _task(5, files)


@task
def livecodebench6(files: list[str] | None = None) -> Task:
    """Return the problems of release 6. Takes and raises what `livecodebench` does."""
    return _task(6, files)


def _task(release: int, files: list[str] | None) -> Task:
    paths = [Path(file) for file in files] if files else _download(release)
    samples = [sample for path in paths for sample in _problems(path)]
    return Task(
        dataset=MemoryDataset(samples, name=f"LiveCodeBench v{release}"),
        solver=generate(),
        scorer=passes_tests(),
        sandbox=_SANDBOX,
    )


@scorer(metrics=[accuracy(), stderr()])
def passes_tests() -> Scorer:
    """Score a program that must pass all tests, in the sandbox."""

    async def score(state: TaskState, target: Target) -> Score:
        found = _CODE.findall(state.output.completion)
        if not found:
            return Score(value=INCORRECT, explanation="The answer holds no program.")
        problem = _problem_at(Path(state.metadata["file"]), state.metadata["offset"])
        tests = {
            "function": json.loads(problem.get("metadata") or "{}").get("func_name"),
            "tests": [
                *_tests(problem["public_test_cases"]),
                *_tests(problem["private_test_cases"]),
            ],
            "seconds": _SECONDS_A_TEST,
        }
        box = sandbox()
        await box.write_file("solution.py", found[-1])
        await box.write_file("tests.json", json.dumps(tests))
        await box.write_file("run_tests.py", _RUNNER.read_text(encoding="utf-8"))
        try:
            done = await box.exec(["python3", "run_tests.py"], timeout=_MOST_SECONDS)
        except TimeoutError:
            return Score(value=INCORRECT, answer=found[-1], explanation="It took too long.")
        return Score(
            value=CORRECT if done.success else INCORRECT,
            answer=found[-1],
            explanation=(done.stdout + done.stderr)[-2000:],
        )

    return score


def _download(release: int) -> list[Path]:
    from huggingface_hub import hf_hub_download

    names = [f"test{number if number > 1 else ''}.jsonl" for number in range(1, release + 1)]
    return [Path(hf_hub_download(REPO, name, repo_type="dataset")) for name in names]


def _problems(path: Path) -> list[Sample]:
    samples, offset = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                problem = json.loads(line)
                samples.append(_sample(problem, path, offset))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else error
                raise EvaluationError(
                    f"{path} holds a line at byte {offset:,} that is no problem ({reason}). "
                    "Delete the file, so that it is downloaded anew."
                ) from error
            offset += len(line)
    return samples


def _sample(problem: dict[str, Any], path: Path, offset: int) -> Sample:
    starter = problem["starter_code"]
    prompt = _PROMPT.format(
        question=problem["question_content"],
        form=_STARTER if starter else _STDIN,
        code=starter or "# YOUR CODE HERE",
    )
    about = {name: problem.get(name) for name in ("platform", "difficulty", "contest_date")}
    return Sample(
        id=problem["question_id"],
        input=prompt,
        metadata={**about, "file": str(path), "offset": offset},
    )


def _problem_at(path: Path, offset: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(offset)
        problem: dict[str, Any] = json.loads(file.readline())
        return problem


class _TextOnly(pickle.Unpickler):
    """Reads pickled text. Anything that would import or call code is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no text")


def _tests(text: str) -> list[dict[str, str]]:
    """Return tests from JSON, or from JSON that was pickled, deflated and encoded in base64."""
    try:
        tests = json.loads(text)
    except ValueError:
        packed = zlib.decompress(base64.b64decode(text))
        tests = json.loads(_TextOnly(io.BytesIO(packed)).load())
    return [{name: test[name] for name in ("input", "output", "testtype")} for test in tests]
