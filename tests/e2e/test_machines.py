"""Commands with --machines, from the checks to the end of all ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from magistral_mlx import Magistral
from tests.fake_ssh import fake_ssh  # noqa: F401
from tests.ranks import free_ports

pytestmark = pytest.mark.slow

HERE = "127.0.0.1"
QUESTION = "What is 2 + 3?"


def start(*words: str) -> subprocess.Popen[str]:
    """`magistral-mlx WORDS` in a process group of its own, which Ctrl-C goes to."""
    return subprocess.Popen(
        [sys.executable, "-m", "magistral_mlx", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of the ranks but rank 0, which have no arguments."""
    below = psutil.Process(command.pid).children(recursive=True)
    return [one for one in below if one.cmdline()[-1] == "magistral_mlx"]


def read_until(command: subprocess.Popen[str], word: str) -> list[str]:
    """Read lines of stderr up to one that holds `word`."""
    assert command.stderr is not None
    lines = []
    for line in command.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"it ended without {word!r}: {''.join(lines)}")


def test_a_split_model_answers_as_a_whole_one(fake_ssh: Path) -> None:  # noqa: F811
    with Magistral.load("demo", dtype="float32") as model:
        expected = model.generate(QUESTION, temperature=0, max_tokens=12).text
    machines = ("--machines", f"localhost,me@{HERE}", "--split", "tensor", "--dtype", "float32")
    asked = ("--model", "demo", "--temperature", "0", "-n", "12", "--hide-thinking", "--no-stats")
    command = start("generate", *machines, *asked, QUESTION)
    printed, said = command.communicate()
    assert (command.returncode, printed.strip()) == (0, expected), said
    assert said.startswith("magistral-mlx: tensor parallel over localhost, 127.0.0.1 (loopback")
    assert said.count("\n") == 1


def test_serve_comes_back_when_a_rank_is_lost() -> None:
    (port,) = free_ports(1)
    command = start("serve", "demo", "--machines", "localhost,localhost", "--port", str(port))
    try:
        read_until(command, "ready.")
        (lost,) = ranks_of(command)
        lost.send_signal(signal.SIGKILL)
        said = read_until(command, "Starting anew")[-1]
        assert "localhost (rank 1) was lost: its process ended by SIGKILL." in said
        read_until(command, "ready.")
        body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
        url = f"http://{HERE}:{port}/v1/chat/completions"
        with httpx.Client(trust_env=False, timeout=None) as client:
            answer = client.post(url, json=body | {"max_tokens": 4})
        assert answer.status_code == 200, answer.text
        begun = psutil.Process(command.pid).children(recursive=True)
        os.killpg(command.pid, signal.SIGINT)
        printed, _ = command.communicate()
        assert (command.returncode, printed) == (0, "")
        assert not [one for one in begun if one.is_running()]
    finally:
        command.kill()


def test_a_rank_that_dies_ends_the_command_with_one_line() -> None:
    endless = ("--min-tokens", "2000", "-n", "2500", "--no-stats", "--split", "tensor")
    command = start(
        "generate", "--machines", "localhost,localhost", "-m", "demo", *endless, "Count."
    )
    assert command.stdout is not None
    command.stdout.read(8)
    (lost,) = ranks_of(command)
    lost.send_signal(signal.SIGKILL)
    _, said = command.communicate()
    assert command.returncode == 2
    lines = [line for line in said.splitlines() if "parallel over" not in line]
    assert len([line for line in lines if line.startswith("magistral-mlx: ")]) == 1, said
    assert "[ring]" not in said
    assert "magistral-mlx: rank 1 (127.0.0.1) has ended." in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--machines", "localhost"), "two machines or more"),
        (("--machines", "192.0.2.1,localhost"), "which is not this machine"),
        (("--machines", f"localhost,locked@{HERE}"), f"ssh-copy-id locked@{HERE}"),
        (("--split", "tensor"), "--split needs --machines"),
    ],
)
def test_bad_machines_are_one_line(
    words: tuple[str, ...],
    expected: str,
    fake_ssh: Path,  # noqa: F811
) -> None:
    from tests.command_line import run

    assert expected in run("generate", "--model", "demo", *words, QUESTION).refusal


def test_mlx_launch_names_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.command_line import run

    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["127.0.0.1:5000"], ["127.0.0.1:5001"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    words = ("generate", "--machines", "localhost,localhost", QUESTION)
    assert "leave --machines out" in run(*words).refusal
