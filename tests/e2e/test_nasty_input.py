"""Input that is damaged, hostile or merely unusual: an answer, or one clear line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_convert import ConvertOptions
from magistral_convert.target import target_path
from magistral_mlx import InvalidOption, PromptError
from magistral_mlx.api.transcript import read_transcript
from magistral_mlx.paths import demo_dir
from tests.checkpoints import write_hf_checkpoint
from tests.command_line import Done, run

ASK = "What is 1 + 2?"
GREEDY = ("--model", "demo", "--temperature", "0", "--no-stats")


@pytest.mark.parametrize(
    "text",
    [ASK, f"{ASK}\n", f"{ASK}\r\n", f"\ufeff{ASK}\n", f"\ufeff{ASK}\r\n\r\n", f"{ASK}\r"],
)
@pytest.mark.parametrize("way", ["stdin", "file"])
def test_ends_of_lines_and_byte_order_marks_are_no_part_of_a_prompt(
    text: str, way: str, tmp_path: Path
):
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    prompt = ("-",) if way == "stdin" else ("--prompt-file", str(file))
    assert run("generate", *prompt, *GREEDY, stdin=text.encode()).stdout == b"3\n"


def prompt_tokens(*words: str, stdin: bytes = b"") -> int:
    done = run("generate", ASK, *GREEDY, "--json", "-n", "1", *words, stdin=stdin)
    return json.loads(done.stdout.splitlines()[-1])["prompt_tokens"]


def test_a_system_file_is_read_as_the_text_that_was_meant(tmp_path: Path):
    file = tmp_path / "system.txt"
    counts = set()
    for text in ("Be brief.\nVery.", "\ufeffBe brief.\r\nVery.\r\n", "Be brief.\rVery.\n\n"):
        file.write_bytes(text.encode())
        counts.add(prompt_tokens("--system-file", str(file)))
    assert counts == {prompt_tokens("--system", "Be brief.\nVery.")}


def test_an_empty_system_prompt_is_none(tmp_path: Path):
    (tmp_path / "empty").touch()
    none = prompt_tokens("--no-system")
    assert prompt_tokens("--system", "") == none
    assert prompt_tokens("--system-file", str(tmp_path / "empty")) == none
    assert prompt_tokens() > none


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"\xff\xfeW\x00h\x00a\x00t\x00", "the prompt on stdin is not UTF-8 text: byte 0xff at 0."),
        (b"caf\xe9", "the prompt on stdin is not UTF-8 text: byte 0xe9 at 3."),
        (b"a" * (17 << 20), "the prompt on stdin is larger than 16 MiB"),
        (b"", "the prompt is empty."),
        (b"\n\r\n", "the prompt is empty."),
        ("\ufeff".encode(), "the prompt is empty."),
    ],
)
def test_what_is_no_text_on_stdin_is_refused(data: bytes, refusal: str):
    assert run("generate", "-", *GREEDY, stdin=data).refusal.startswith(refusal)


HALF = "\udcff"  # what Python makes of the byte 0xff on a command line


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((HALF,), "the prompt"),
        ((ASK, "--regex", HALF), "--regex"),
        ((ASK, "--stop", f"a{HALF}"), "--stop"),
        ((ASK, "--choice", "a", "--choice", HALF), "--choice"),
        ((ASK, "--system", HALF), "--system"),
    ],
)
def test_bytes_that_are_no_text_on_the_command_line_are_refused(words: tuple[str, ...], name: str):
    refusal = run("generate", *words, *GREEDY).refusal
    assert refusal.startswith(name) and "not Unicode text" in refusal


@pytest.fixture(params=["missing", "folder", "endless", "pipe", "binary", "socket-like name"])
def no_text(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The path of something that is no text file."""
    path = tmp_path / "file"
    match request.param:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "binary":
            path.write_bytes(bytes(range(256)))
        case "endless":
            yield "/dev/zero"
            return
        case "socket-like name":
            yield f"~nosuchuser/{path.name}"
            return
    yield str(path)


@pytest.mark.parametrize(
    "option", ["--system-file", "--json-schema", "--tools", "--prompt-file", "-f"]
)
def test_a_file_that_is_no_text_is_refused_at_once(option: str, no_text: str):
    prompt = () if option == "--prompt-file" else (ASK,)
    refusal = run("generate", *prompt, option, no_text, *GREEDY).refusal
    assert no_text in refusal


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("null", "--json-schema is None; it must be a JSON schema"),
        ("false", "--json-schema is False; it must be a JSON schema"),
        ("[]", "--json-schema is []; it must be a JSON schema"),
        ("{", "--json-schema is not JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ('{"const": "\\ud800"}', "--json-schema is not Unicode text: U+D800"),
    ],
)
def test_a_schema_that_is_none_is_refused_before_the_model_is_loaded(
    schema: str, says: str, tmp_path: Path
):
    file = tmp_path / "schema.json"
    file.write_text(schema)
    refusal = run("generate", ASK, "--json-schema", str(file), "--model", "/no/such/model").refusal
    assert says in refusal


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_system_prompt_of_a_checkpoint_that_is_no_file_is_refused(what: str, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(demo_dir(), folder, ignore=shutil.ignore_patterns("SYSTEM_PROMPT.txt"))
    prompt = folder / "SYSTEM_PROMPT.txt"
    if what == "pipe":
        os.mkfifo(prompt)
    elif what == "device":
        prompt.symlink_to("/dev/zero")
    else:
        prompt.mkdir()
    assert str(prompt) in run("generate", ASK, "-m", str(folder)).refusal


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_saved_conversation_that_is_no_file_is_refused(what: str, tmp_path: Path):
    file = tmp_path / "saved"
    if what == "pipe":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    with pytest.raises(PromptError, match=str(file)):
        read_transcript(file)


@pytest.mark.parametrize(
    ("variables", "words", "refusal"),
    [
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, ("models",), "HF_HUB_DOWNLOAD_TIMEOUT is 'abc'; it"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "1.5"}, ("plan",), "HF_HUB_DOWNLOAD_TIMEOUT is '1.5'; it"),
        ({"HF_HUB_ETAG_TIMEOUT": "1s"}, ("pull", "a/b"), "HF_HUB_ETAG_TIMEOUT is '1s'; it must be"),
        ({"ALL_PROXY": "socks5://x"}, ("pull", "a/b"), "the proxy cannot be used: "),
        ({"HTTPS_PROXY": "socks4://x"}, ("plan", "a/b"), "https://huggingface.co does not answer"),
        ({"HTTPS_PROXY": "foo://x"}, ("convert", "a/b"), "https://huggingface.co does not answer"),
        ({"MAGISTRAL_MLX_HOME": "~nosuchuser/x"}, ("models",), "~nosuchuser/x is in the home"),
        ({"HF_HOME": "~nosuchuser/x"}, ("models",), "~nosuchuser/x is in the home folder"),
        ({"HF_HUB_CACHE": "~nosuchuser"}, ("pull", "a/b"), "~nosuchuser is in the home folder"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(
    variables: dict[str, str], words: tuple[str, ...], refusal: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(*words).refusal.startswith(refusal)


def test_more_images_than_any_context_holds_are_planned_for_at_once():
    few, many = (
        json.loads(run("plan", "demo", "--images", images, "--json").stdout)["bytes"]["workspace"]
        for images in ("1", "1000000")
    )
    assert few <= many < 10 * few, "they share the context"


def test_a_link_is_followed_where_a_conversion_goes(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    options = ConvertOptions()
    for name, leads_to in (("link", "real"), ("dangling", "nowhere"), ("link/m", "real/m")):
        assert target_path("demo", tmp_path / name, options) == (tmp_path / leads_to).resolve()
    for name in ("circle", "circle/m"):
        with pytest.raises(InvalidOption, match="leads back to itself"):
            target_path("demo", tmp_path / name, options)


# Control characters


def chosen(text: str, *, terminal: bool) -> Done:
    return run(
        "generate", "Say.", "--choice", text, "--thinking", "off", *GREEDY, terminal=terminal
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;X\x07\x1b[2J", "␛]0;X␇␛[2J"),
        ("a\rb", "a␍b"),
        ("x\x9b31m", "x<9B>31m"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_control_characters_are_harmless_on_a_terminal_and_bytes_in_a_pipe(text: str, shown: str):
    assert chosen(text, terminal=False).stdout.decode() == f"{text}\n"
    assert chosen(text, terminal=True).stdout.decode() == f"{shown}\n"


def test_control_characters_in_an_error_are_shown():
    done = run("generate", "Hi", "--model", "/no/\x1b[2Jsuch", terminal=True)
    assert "\x1b[2J" not in done.stderr
    assert "␛[2J" in done.stderr


def test_a_narrow_encoding_spells_out_what_it_lacks():
    done = run(
        "generate", "Say.", "--choice", "naïve", "--thinking", "off", *GREEDY, encoding="ascii"
    )
    assert (done.status, done.stdout) == (0, b"na\\xefve\n")


# The process


def process(*words: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "magistral_mlx", *words]
    given = {"stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, **given)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("closed", "words", "refusal"),
    [
        (1, ("generate", ASK, *GREEDY), b"stdout is closed, so there is nowhere to write to."),
        (1, ("show", "demo"), b"stdout is closed, so there is nowhere to write to."),
        (0, ("generate", "-", *GREEDY), b"the prompt is empty."),
        (0, ("chat", "demo"), b"chat needs a terminal."),
    ],
)
def test_a_closed_stream_is_one_line(closed: int, words: tuple[str, ...], refusal: bytes):
    close = {0: "<&-", 1: ">&-"}[closed]
    program = (sys.executable, "-m", "magistral_mlx")
    command = ["sh", "-c", f'exec "$@" {close}', "sh", *program, *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert refusal in done.stderr


def test_a_stderr_whose_reader_has_gone_costs_no_answer():
    reader, gone = os.pipe()
    os.close(reader)
    words = ("generate", ASK, *GREEDY, "--stats")
    with process(*words, stdout=subprocess.PIPE, stderr=gone) as running:
        os.close(gone)
        answer, _ = running.communicate(timeout=300)
    assert (running.returncode, answer) == (0, b"3\n")


@pytest.mark.linux("macOS has no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full, process("show", "demo", stdout=full) as running:
        _, told = running.communicate(timeout=300)
    assert running.returncode == 2
    assert told == b"magistral-mlx: No space left on device.\n"


def test_ctrl_c_twice_ends_cleanly(tmp_path: Path):
    """A worker thread inside MLX must not come back into a Python that is being taken down."""
    folder = write_hf_checkpoint(tmp_path / "random")
    words = ("generate", "Hi", "-m", str(folder), "-s", "1", "--json")
    for pause in (0.0, 0.01, 0.05):
        with process(*words, stdout=subprocess.PIPE) as running:
            assert running.stdout
            running.stdout.readline()
            running.send_signal(signal.SIGINT)
            time.sleep(pause)
            running.send_signal(signal.SIGINT)
            _, told = running.communicate(timeout=300)
        assert running.returncode == 130
        assert b"Traceback" not in told and b"terminate" not in told
