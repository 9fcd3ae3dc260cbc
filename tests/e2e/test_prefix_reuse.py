"""What was read before is not read again, as a user meets it, and no answer is another for it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from magistral_mlx import Magistral
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import InvalidOption
from magistral_mlx.paths import demo_dir
from tests.command_line import run
from tests.serving import wait_until

MIB = 1 << 20
SUMS = "".join(f"{n} + {n} = {2 * n}. " for n in range(50))
QUESTIONS = ("What is 37 + 85?", "What is 46 + 9?", "What is 12 + 13 + 14?")


def command(*words: str) -> list[str]:
    given = ("generate", "--model", "demo", "--temperature", "0", "--max-tokens", "40", "--json")
    return [sys.executable, "-m", "magistral_mlx.cli.main", *given, *words]


def generate(*words: str) -> tuple[str, int, str]:
    """The answer of a process, the tokens of its prompt that were known, and its stderr."""
    done = subprocess.run(command(*words), capture_output=True, text=True, check=True, timeout=300)
    text, known = read(done.stdout)
    return text, known, done.stdout + done.stderr


def read(stdout: str) -> tuple[str, int]:
    events = [json.loads(line) for line in stdout.splitlines()]
    text = "".join(event["text"] for event in events if event["type"] == "text")
    return text, events[-1]["cached_tokens"]


# A conversation


@pytest.mark.parametrize("kv", ["full", "6/4", "4/4"])
def test_a_turn_reads_what_is_new_in_it_and_nothing_else(kv: str) -> None:
    with Magistral.load("demo", kv=kv, images=0) as magistral:  # type: ignore[arg-type]
        chat, afresh = magistral.chat(temperature=0), magistral.chat(temperature=0)
        before = 0
        for question in QUESTIONS:
            result = chat.send(question)
            assert result.stats.cached_tokens == before
            before = result.usage.total_tokens
            magistral.release_memory()
            alone = afresh.send(question)
            assert alone.stats.cached_tokens == 0
            assert (alone.thinking, alone.text) == (result.thinking, result.text)
            magistral.release_memory()
            chat_again = chat.fork()
            chat_again.undo()
            assert chat_again.send(question).message == result.message


def test_an_image_in_a_conversation_is_looked_at_once() -> None:
    image = PIL.Image.new("RGB", (112, 112), (200, 30, 30))
    with Magistral.load("demo") as magistral:
        chat = magistral.chat(temperature=0)
        chat.send("What is in the picture?", [image])
        second = chat.send("And what colour is it?")
        assert second.stats.cached_tokens > 16
        assert (magistral.activity.images, magistral.activity.reused_images) == (1, 0)
        # Behind another system prompt it is in no cached prefix, but its features are at hand.
        magistral.generate("Say the colour.", [image], system="Be brief.", max_tokens=1)
        assert (magistral.activity.images, magistral.activity.reused_images) == (2, 1)
        assert second.message == magistral.generate(list(chat.messages[:-1]), temperature=0).message


def test_released_memory_is_read_again() -> None:
    with Magistral.load("demo", images=0) as magistral:
        first = magistral.generate(QUESTIONS[0], temperature=0)
        assert magistral.generate(QUESTIONS[0], temperature=0).stats.cached_tokens > 0
        magistral.release_memory()
        again = magistral.generate(QUESTIONS[0], temperature=0)
        assert (again.stats.cached_tokens, again.text) == (0, first.text)


@pytest.mark.parametrize("kv", ["full", "4/4"])
def test_memory_stays_within_the_plan_however_much_was_read(kv: str) -> None:
    limit = 96 * MIB
    with Magistral.load(
        "demo",
        kv=kv,  # type: ignore[arg-type]
        context=3000,
        images=0,
        memory_limit=limit,
    ) as magistral:
        plan = magistral.plan
        assert plan.total <= limit
        mx.reset_peak_memory()
        outside = mx.get_active_memory() - plan.peak.weights
        for n in range(6):
            magistral.generate(f"{n}. {SUMS}{QUESTIONS[0]}", max_tokens=4, temperature=0)
            assert magistral.activity.memory.kept <= plan.caches
        # What an answer leaves is kept once its last event has gone out.
        wait_until(lambda: magistral.activity.memory.kept > plan.caches // 2)
        assert mx.get_peak_memory() - max(0, outside) <= plan.total


# Another process


def test_another_process_goes_on_from_what_one_has_read(tmp_path: Path) -> None:
    words = ("--cache-dir", str(tmp_path / "kept"), "--thinking", "off")
    expected = generate(SUMS + QUESTIONS[1], "--thinking", "off")[0]
    assert generate(SUMS + QUESTIONS[0], *words)[1] == 0
    text, known, _ = generate(SUMS + QUESTIONS[1], *words)
    assert text == expected
    assert known >= 512
    for path in (tmp_path / "kept").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-5])
    text, known, said = generate(SUMS + QUESTIONS[1], *words)
    assert (text, known) == (expected, 0)
    assert "Removed the damaged file" in said and "it is cut short" in said


def test_processes_that_share_a_folder_answer_as_they_do_alone(tmp_path: Path) -> None:
    words = ("--cache-dir", str(tmp_path / "kept"), "--thinking", "off")
    prompts = [SUMS + question for question in QUESTIONS[:2]]
    expected = [generate(prompt, *words[2:])[0] for prompt in prompts]
    for _ in range(2):
        processes = [
            subprocess.Popen(command(prompt, *words), stdout=subprocess.PIPE, text=True)
            for prompt in prompts
        ]
        assert [read(process.communicate()[0])[0] for process in processes] == expected
    assert {path.suffix for path in (tmp_path / "kept").glob("*/*")} == {""}


def test_a_folder_that_cannot_be_used_costs_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text, _, said = generate(QUESTIONS[0], "--cache-dir", str(tmp_path / "file"))
    assert text == "122"
    assert f"Prompts cannot be kept in {tmp_path / 'file'}" in said


def test_a_disk_that_is_full_is_told_though_the_answer_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("magistral_mlx.cache.writer.write", full)
    done = run("generate", "-m", "demo", SUMS, "-n", "2", "--cache-dir", str(tmp_path / "kept"))
    assert done.status == 0
    assert done.stderr.count("is off from now on: the disk is full. Answers are not") == 1


def test_a_size_needs_a_folder_and_has_to_hold_something(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="needs a cache_dir"):
        Magistral.load("demo", cache_size=10**9)
    with pytest.raises(InvalidOption, match="10 MB or more"):
        Magistral.load("demo", cache_dir=tmp_path, cache_size=1000)


def test_a_checkpoint_is_told_from_every_other_one(tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(demo_dir(), tmp_path / name))

    same, touched, changed = copied("same"), copied("touched"), copied("changed")
    weights = "model.safetensors"
    (touched / weights).touch()
    content = bytearray((changed / weights).read_bytes())
    content[len(content) // 2] ^= 1
    times = (demo_dir() / weights).stat()
    (changed / weights).write_bytes(content)
    os.utime(changed / weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    prints = [Checkpoint.open(folder).fingerprint() for folder in (same, touched, changed)]
    assert Checkpoint.open(demo_dir()).fingerprint() == prints[0]
    assert len(set(prints)) == 3
