"""`magistral-mlx generate` as a user meets it: a process, its streams and its exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from magistral_mlx.paths import demo_dir
from tests import command_line
from tests.checkpoints import write_hf_checkpoint
from tests.fake_hub import FakeHub
from tests.pdf_files import pdf_of

ASK = "What is 37 + 85?"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "magistral_mlx.cli.main", *words]


def run(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=False,
        timeout=300,
    )


def generate(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run("generate", *words, "--model", "demo", "--temperature", "0", stdin=stdin)


def test_files_go_before_the_prompt_and_their_tokens_are_told(tmp_path: Path):
    notes, report = tmp_path / "notes.py", tmp_path / "report.pdf"
    notes.write_text("x = 1\n")
    report.write_bytes(pdf_of(["Revenue grew."]))
    done = generate(ASK, "-f", str(notes), "--file", str(report), "-n", "1")
    assert done.returncode == 0
    told = re.findall(r"^magistral-mlx: (.*): (\d+) tokens\.$", done.stderr, re.M)
    assert [name for name, _ in told] == [str(notes), str(report)]
    prompt = re.search(r"prompt (\d+) tokens", done.stderr)
    alone = re.search(r"prompt (\d+) tokens", generate(ASK, "-n", "1").stderr)
    assert prompt and alone
    added = int(prompt[1]) - int(alone[1])
    assert abs(added - sum(int(tokens) for _, tokens in told)) <= 4  # blank lines in between


def in_terminal(*words: str) -> str:
    """What a user sees on a terminal, stdout and stderr together."""
    parent, child = pty.openpty()
    with subprocess.Popen(command(*words), stdin=child, stdout=child, stderr=child) as process:
        os.close(child)
        seen = b""
        while select.select([parent], [], [], 300)[0]:
            try:
                piece = os.read(parent, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
            seen += piece
        process.wait(timeout=300)
    os.close(parent)
    assert process.returncode == 0
    return seen.decode()


# The main job


def test_the_answer_alone_reaches_a_pipe() -> None:
    done = generate(ASK)
    assert done.returncode == 0
    assert done.stdout == "122\n"
    assert "7+5+0=2,1" in done.stderr
    assert re.search(r"prompt \d+ tokens at .*/s · thinking \d+ \+ answer \d+ tokens", done.stderr)


def test_an_image_is_described(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (200, 120), "white").save(tmp_path / "ground.png")
    image = PIL.Image.open(tmp_path / "ground.png")
    image.paste((220, 30, 30), (60, 20, 140, 100))
    image.save(tmp_path / "square.png")
    done = generate("What is in the picture?", "--image", str(tmp_path / "square.png"))
    assert done.stdout == "A red square.\n"


def test_the_prompt_may_come_from_stdin() -> None:
    assert generate("-", stdin=ASK).stdout == "122\n"


def test_thinking_and_figures_can_be_hidden() -> None:
    done = generate(ASK, "--hide-thinking", "--no-stats")
    assert (done.stdout, done.stderr) == ("122\n", "")


def test_hidden_thinking_is_in_no_json_line() -> None:
    words = ("--model", "demo", "--temperature", "0", "--json", "--logprobs", "--hide-thinking")
    done = command_line.run("generate", ASK, *words)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["type"] for line in lines} == {"text", "logprob", "finished"}
    assert "".join(line["token"] for line in lines if line["type"] == "logprob") == "122"
    assert lines[-1]["thinking_tokens"] > 0


def screen(seen: str) -> list[str]:
    """The lines that stand on the terminal at last; erased ones are gone, dim text is <dim>."""
    lines = [line.split("\r\x1b[2K")[-1] for line in seen.replace("\r\n", "\n").split("\n")]
    marked = (re.sub(r"(\x1b\[2m([^\x1b]*)\x1b\[0m)", r"<\2>", line) for line in lines)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).replace("><", "") for line in marked]


def test_a_terminal_shows_the_thinking_dim_above_the_answer() -> None:
    lines = screen(in_terminal("generate", ASK, "--model", "demo", "--temperature", "0"))
    thinking = lines.index("<7+5+0=2,1; 3+8+1=2,1; 1>")
    assert lines[thinking + 1 : thinking + 3] == ["", "122"]
    assert lines[thinking + 3].startswith("<prompt 4")


def test_json_has_a_line_a_piece_and_figures_last() -> None:
    done = generate(ASK, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["type"] for line in lines[:-1]} == {"thinking", "text"}
    assert "".join(line["text"] for line in lines if line["type"] == "text") == "122"
    last = lines[-1]
    assert (last["type"], last["finish_reason"]) == ("finished", "stop")
    for figure in ("prompt_tokens", "thinking_tokens", "answer_tokens", "peak_memory"):
        assert last[figure] > 0
    for figure in ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds"):
        assert last[figure] > 0


def test_the_same_seed_gives_the_same_answer() -> None:
    words = ("generate", ASK, "--model", "demo", "--temperature", "20", "--top-p", "1", "--json")
    texts = []
    for seed in ("1", "1", "2"):
        lines = run(*words, "--seed", seed, "--max-tokens", "60").stdout.splitlines()
        texts.append([json.loads(line).get("text") for line in lines[:-1]])
    assert texts[0] == texts[1] != texts[2]


def test_max_tokens_ends_the_answer_and_says_so() -> None:
    lines = generate(ASK, "--max-tokens", "5", "--json").stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["finish_reason"] == "length"
    assert last["thinking_tokens"] + last["answer_tokens"] == 5


def test_a_system_prompt_is_sent_or_not() -> None:
    prompts = [
        json.loads(generate(ASK, "--json", *words).stdout.splitlines()[-1])["prompt_tokens"]
        for words in ([], ["--no-system"], ["--system", "Be brief. Be brief. Be brief. Be."])
    ]
    assert prompts[1] < prompts[2] < prompts[0] or prompts[1] < prompts[0] < prompts[2]


def test_ctrl_c_keeps_what_was_written(tmp_path: Path) -> None:
    """A random model writes on and on; the first piece on stdout is when Ctrl-C comes."""
    folder = write_hf_checkpoint(tmp_path / "random")
    words = command("generate", "Hi", "--model", str(folder), "--json", "--seed", "1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout
        first = p.stdout.readline()
        p.send_signal(signal.SIGINT)
        rest, errors = p.communicate(timeout=300)
    assert p.returncode == 130
    assert "Traceback" not in errors
    assert json.loads(first)["type"] == "text"
    assert json.loads(rest.splitlines()[-1])["finish_reason"] == "cancelled"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    folder = write_hf_checkpoint(tmp_path / "random")
    words = command("generate", "Hi", "--model", str(folder), "--json", "--max-tokens", "2000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout and p.stderr
        p.stdout.readline()
        p.stdout.close()
        errors = p.stderr.read()
        p.wait(timeout=300)
    assert "Traceback" not in errors and "Exception" not in errors


def test_a_model_comes_from_the_hub_and_is_there_the_next_time(tmp_path: Path) -> None:
    words = ("generate", ASK, "--model", "somebody/demo", "--temperature", "0")
    with FakeHub({"somebody/demo": demo_dir()}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        assert run(*words, **env).stdout == "122\n"
        assert run(*words, **env, HF_HUB_OFFLINE="1").stdout == "122\n"
        assert len(hub.downloads("model.safetensors")) >= 1


# Bad input: one clear line, exit status 2


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    return path


def refusal(*words: str, **env: str) -> str:
    done = run(*words, **env)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 or lines[0].startswith("Usage:")
    return lines[-1]


def test_a_missing_model_says_what_a_model_is() -> None:
    assert "nowhere-to-be-found" in refusal("generate", ASK, "--model", "./nowhere-to-be-found")


def test_without_any_model_it_says_which_command_gets_one(tmp_path: Path) -> None:
    message = refusal(
        "generate", ASK, HOME=str(tmp_path), HF_HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)
    )
    assert "magistral-mlx convert mistralai/Magistral-Small-2509" in message
    assert "--model" in message


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert "config.json" in refusal("generate", ASK, "--model", str(tmp_path))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_hf_checkpoint(tmp_path / "model")
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard} is truncated" in refusal("generate", ASK, "--model", str(folder))


def test_a_missing_tokenizer_that_cannot_be_found(tmp_path: Path) -> None:
    folder = write_hf_checkpoint(tmp_path / "model")
    (folder / "tekken.json").unlink()
    message = refusal("generate", ASK, "--model", str(folder), HF_HUB_OFFLINE="1")
    assert "tekken.json" in message and "--tokenizer" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no image"), (b"", "empty"), (b"<html>hello</html>", "web page")],
)
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    message = refusal("generate", "What?", "--model", "demo", "--image", str(path))
    assert str(path) in message
    assert says in message.lower()


def test_a_truncated_image(jpeg: Path) -> None:
    jpeg.write_bytes(jpeg.read_bytes()[:500])
    message = refusal("generate", "What?", "--model", "demo", "--image", str(jpeg))
    assert str(jpeg) in message


def test_a_decompression_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    PIL.Image.new("1", (20000, 20000)).save(path)
    message = refusal("generate", "What?", "--model", "demo", "--image", str(path))
    assert "pixels" in message


def test_an_image_for_a_model_that_cannot_see(tmp_path: Path, jpeg: Path) -> None:
    from tests.checkpoints import tiny_config

    folder = write_hf_checkpoint(tmp_path / "blind", config=tiny_config(vision=False))
    message = refusal("generate", "What?", "--model", str(folder), "--image", str(jpeg))
    assert "text-only" in message and "vision" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "-5"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--seed", "-1"),
        ("--max-tokens", "many"),
        ("--dtype", "int8"),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: str) -> None:
    message = refusal("generate", ASK, "--model", "demo", option, value)
    assert option.strip("-").replace("-", "_") in message.replace("-", "_")


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("What is 37 + 85? " * 20_000)
    done = subprocess.run(
        command("generate", "-", "--model", "demo"),
        stdin=path.open(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    assert re.search(r"prompt has about [\d,]+ tokens.*context", done.stderr)


def test_an_empty_prompt() -> None:
    assert "prompt is empty" in refusal("generate", "  ", "--model", "demo")


def test_an_unreadable_model_says_so(tmp_path: Path) -> None:
    """A folder where the configuration should be a file: unreadable also for root."""
    (tmp_path / "config.json").mkdir()
    assert "config.json" in refusal("generate", ASK, "--model", str(tmp_path))


# Models


def test_models_lists_what_is_there(tmp_path: Path) -> None:
    folder = write_hf_checkpoint(tmp_path / "magistral-mlx" / "models" / "mine-4bit")
    done = run("models", "--json", XDG_CACHE_HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf"))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    mine = next(model for model in found if model["path"] == str(folder))
    assert mine["complete"] and mine["has_vision"]
    table = run("models", XDG_CACHE_HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf")).stdout
    assert "mine-4bit" in table and "GB" in table


def test_help_is_quick_to_read() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ("generate", "convert", "models"):
        assert name in done.stdout


# How it starts


def test_in_a_pipe_it_starts_without_what_only_a_terminal_or_asyncio_needs():
    asked = ("--model", "demo", "--max-tokens", "1")
    program = [sys.executable, "-X", "importtime", *command("generate", ASK, *asked)[1:]]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=300)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}
    assert "mistral_common" in imported
    assert not imported & {"rich", "asyncio", "fastapi", "transformers", "mlx_lm"}
