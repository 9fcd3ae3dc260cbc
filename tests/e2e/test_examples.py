"""The programs in examples/, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *words: str, stdin: str = "") -> list[str]:
    """The lines that an example prints; it must end well and say nothing else."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "script.py",
        "chat.py",
        "async_app.py",
        "train_adapter.py",  # in test_train_adapter.py
    }


def test_the_script_answers_and_sees():
    thinking, answer, image, figures = run("script.py")
    assert thinking == "thinking: 7+5+0=2,1; 3+8+1=2,1; 1"
    assert answer == "answer: 122"
    assert image == "image: A red circle."
    assert "tokens read" in figures


def test_the_chat_answers_line_by_line_and_keeps_its_history():
    lines = run("chat.py", stdin="What is 37 + 85?\nWhat is 412 - 97?\n")
    assert lines[0] == "> 122"
    assert lines[2].startswith("> ")  # the demo has learned to answer first questions only
    first, second = (int(lines[n].split()[0].removeprefix("(")) for n in (1, 3))
    assert second > first + 20


def test_the_asyncio_program_cancels_one_and_answers_the_rest():
    lines = run("async_app.py")
    assert lines[0] == "One was cancelled."
    assert sorted(lines[1:]) == [
        "What is 37 + 85? 122",
        "What is 412 - 97? 315",
        "What is 8 + 9? 17",
    ]


@pytest.mark.parametrize("name", ["script.py", "chat.py", "async_app.py"])
def test_an_example_takes_another_model(name: str):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "/no/such/model"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "ModelNotFound: there is no folder /no/such/model" in done.stderr
