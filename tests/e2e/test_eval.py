"""`magistral-mlx eval` as a user meets it: tasks from the hub, runs that go on, bad input."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.evaluation import asked_twice, recorded
from magistral_mlx.evaluation.provider import MagistralProvider
from magistral_mlx.memory.limits import PROCESS
from tests.command_line import run
from tests.eval_data import AIME25, add_aime, add_images
from tests.fake_hub import FakeHub
from tests.scripted import write_scripted_checkpoint

ROOT = Path(__file__).parents[2]
# Inspect looks through all packages for each log: once will do.
_distributions = functools.cache(importlib.metadata.packages_distributions)


@pytest.fixture(autouse=True)
def _quick_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", _distributions)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with data sets in it, that this process has for the real one."""
    import datasets
    from huggingface_hub import constants

    docvqa = importlib.import_module("inspect_evals.docvqa.docvqa")
    mathvista = importlib.import_module("inspect_evals.mathvista.mathvista")
    with FakeHub() as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "inspect"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr(docvqa, "IMAGE_BASE_DIR", tmp_path / "docvqa")
        monkeypatch.setattr(mathvista, "INSPECT_EVALS_CACHE_PATH", tmp_path)
        monkeypatch.chdir(tmp_path)
        yield hub


def test_tasks_of_the_hub_are_asked_in_their_own_formats(hub: FakeHub, tmp_path: Path):
    add_aime(hub, tmp_path)
    add_images(hub, tmp_path)
    script = ["[/INST]", "[THINK]", "hm", "[/THINK]", "ANSWER: 7", "</s>"]
    write_scripted_checkpoint(tmp_path / "model", script, context=32768, vision=True)
    tasks = ["aime24", "aime25", "docvqa", "mathvista"]
    done = run("eval", *tasks, "--model", str(tmp_path / "model"), "--epochs", "2", "--json")
    assert done.status == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["complete"] and facts["settings"]["context"] == 32768
    assert [task["task"] for task in facts["tasks"]] == tasks
    for task in facts["tasks"]:
        assert (task["questions"], task["answers"], task["epochs"]) == (2, 4, 2)
        assert task["pass_at_1"] == 0.5 and task["low"] < 0.5 < task["high"]
        assert task["right"]["answers"] == task["wrong"]["answers"] == 2
        assert 0 < task["right"]["thinking"] < task["right"]["tokens"]
        assert (task["truncated"], task["looping"], task["failed"]) == (0, 0, 0)
    published = facts["tasks"][0]["published"]
    assert (published["Small 1.2"], published["Medium 1.2"]) == (86.14, 91.82)
    assert {Path(each.path.split("?")[0]).name for each in hub.requests if each.sent} >= {
        "train.jsonl",
        "test.jsonl",
    }


def test_data_behind_a_licence_say_how_to_get_them(hub: FakeHub, tmp_path: Path):
    add_aime(hub, tmp_path)
    hub.gated.add(AIME25)
    refusal = run("eval", "aime25", "--model", "demo").refusal
    assert f"https://huggingface.co/datasets/{AIME25}" in refusal
    assert "hf auth login" in refusal


_RECORDING = """
import sys
from benchmarks.evaluation import child
child(sys.argv[1], sys.argv[2:])
"""


def test_a_run_that_was_killed_asks_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "asked"
    words = ("eval", "demo", "--model", "demo", "--samples", "16", "--parallel", "2", "--json")
    with subprocess.Popen(
        [sys.executable, "-c", _RECORDING, str(record), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    ) as running:
        while not record.exists() or len(record.read_text().split()) < 8:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself, with {running.wait(0.1)}.")
        running.kill()
        running.wait()
    stopped = len(record.read_text().split())
    monkeypatch.setattr(MagistralProvider, "generate", recorded(record))
    done = run(*words)
    assert done.status == 0, done.stderr
    facts = json.loads(done.stdout)
    asked = record.read_text().split()
    assert len(set(asked)) == 16
    # What came in the moment of the kill, two at most, may not have been kept.
    assert len(asked) <= 16 + 2 and not asked_twice(asked, stopped, parallel=2)
    assert facts["complete"] and facts["tasks"][0]["answers"] == 16
    assert facts["tasks"][0]["pass_at_1"] > 0.9


def test_a_limit_ends_the_call_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ("eval", "demo", "--model", "demo", "--samples", "8", "--context", "2048")
    # As a shell starts a command in the background; how a limit ends a call must not rest on it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        first = run(*words, "--limit", "5", "--json")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert not PROCESS.planned  # no model is left in memory
    finally:
        signal.signal(signal.SIGINT, before)
    assert first.status == 0, first.stderr
    facts = json.loads(first.stdout)
    assert not facts["complete"] and facts["tasks"][0]["answers"] == 5
    rest = run(*words, "--plot", "scores.png")
    assert rest.status == 0, rest.stderr
    assert "5 of 8 answers are there" in rest.stderr
    assert b"demo" in rest.stdout and b"context 2,048" in rest.stdout
    assert (tmp_path / "scores.png").read_bytes()[:4] == b"\x89PNG"
    # A run of fewer questions and more epochs keeps the others' answers.
    fewer = run(*words[:5], "3", "--context", "2048", "--epochs", "2", "--json")
    assert fewer.status == 0 and "3 of 6 answers are there" in fewer.stderr, fewer.stderr
    [folder] = (tmp_path / "evals").iterdir()
    both = json.loads(run("eval", "--compare", str(folder), str(folder), "--json").stdout)
    assert both["tasks"][0]["questions_of"] == [8, 8]
    assert "8 of 8 answers are there" in run(*words).stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "no task is named; give one or more of aime24"),
        (("aime26",), "there is no task 'aime26'; aime25 is nearest. There"),
        (("demo", "gpqua"), "gpqa is nearest"),
        (("demo", "--samples", "0"), "--samples"),
        (("demo", "--model", "no/such/folder/here"), "no/such/folder/here"),
        (("demo", "--model", "demo", "--context", "300"), "demo needs a context of"),
        (("demo", "--plot", "scores.doc"), "not into scores.doc"),
        (("ifeval", "--model", "demo"), "instruction_following_eval"),
        (("livecodebench", "--model", "demo"), "--run-code-here"),
        (("--compare", "one"), "--compare needs two runs"),
        (("--compare", "one", "two"), "there is no one"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Docker
    assert expected in run("eval", *words).refusal


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("magistral_mlx.requirements.importlib.util.find_spec", lambda name: None)
    assert "`uv tool install '.[eval]'`" in run("eval", "demo").refusal
