"""`magistral-mlx convert` as a user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magistral_convert import Converting, Measuring
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.cli import convert_progress
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.fake_hub import FakeHub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Magistral-Small-2509"
    return write_hf_checkpoint(folder, config=tiny_config(layers=8))


@pytest.fixture
def run(tmp_path: Path):
    """Runs the command in a process of its own, with a home of its own."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "MAGISTRAL_MLX_HOME": str(tmp_path / "home"),
        "COLUMNS": "100",
    }

    def command(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "magistral_mlx.cli.main", "convert", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment | extra,
            check=False,
        )

    return command


def test_the_path_of_the_result_is_all_that_goes_to_stdout(run, source: Path, tmp_path: Path):
    result = run(source, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'out'}\n"
    first, last = result.stderr.splitlines()
    assert re.fullmatch(rf"4.8 MB -> 2.1 MB \(6.91 bits a weight\) in {tmp_path / 'out'}", first)
    assert last.startswith("Done in ")
    assert len(Checkpoint.open(tmp_path / "out").quantized) > 0


def test_without_an_output_it_goes_to_the_users_cache(run, source: Path, tmp_path: Path):
    result = run(source, "--bits", 6)
    expected = tmp_path / "home" / "models" / "Magistral-Small-2509-6bit"
    assert result.stdout == f"{expected}\n"
    assert (expected / "config.json").is_file()


def test_a_dry_run_shows_sizes_and_writes_nothing(run, source: Path, tmp_path: Path):
    result = run(source, "-o", tmp_path / "out", "--recipe", "4bit-plus", "--dry-run")
    assert result.returncode == 0, result.stderr
    rows = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines() if line}
    assert rows["embedding"][-1] == "4.50"
    assert rows["head"][-1] == "6.50"
    assert 4.5 < float(rows["MLP"][-1]) < 6.5
    assert rows["vision tower"][-1] == "16.00"
    parameters = sum(values.size for values in random_weights(tiny_config(layers=8), 0).values())
    assert rows["all"][1] == f"{parameters:,}"
    assert f"Output: {tmp_path / 'out'}, 1 file(s)" in result.stdout
    assert "needed, " in result.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_dry_run_as_json_tells_programs_the_same(run, source: Path, tmp_path: Path):
    result = run(source, "-o", tmp_path / "out", "--dry-run", "--json")
    figures = json.loads(result.stdout)
    run(source, "-o", tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert figures["output_bytes"] == written
    assert figures["parameters"] == sum(part["parameters"] for part in figures["parts"])
    assert figures["quantization"] == {"bits": 4, "group_size": 64, "mode": "affine"}
    (disk,) = figures["disk"]
    assert disk["needed"] >= written
    assert disk["free"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "mxfp4", "--bits", "8"], "--mode mxfp4 means 4 bits and groups of 32"),
        (["--recipe", "4bit-plus", "--bits", "6"], "Give one of the two."),
        (["--tokenizer", "no/such/file"], "--tokenizer no/such/file is neither a file"),
        (["--upload", "not a name"], "'not a name' is not the name of a repository"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, source, tmp_path, arguments, message):
    result = run(source, "-o", tmp_path / "out", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    complaints = [line for line in result.stderr.splitlines() if line.startswith("magistral-mlx: ")]
    assert len(complaints) == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_option_outside_its_choices_is_refused(run, source: Path):
    result = run(source, "--bits", 7)
    assert result.returncode == 2
    assert "--bits is '7'; it must be one of 2, 3, 4, 5, 6, 8." in result.stderr


def test_an_existing_target_needs_force(run, source: Path, tmp_path: Path):
    run(source, "-o", tmp_path / "out", "--bits", 8)
    refused = run(source, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert "exists already. Give --force to replace it" in refused.stderr
    assert run(source, "-o", tmp_path / "out", "--force").returncode == 0
    schemes = Checkpoint.open(tmp_path / "out").quantized.values()
    assert {scheme.bits for scheme in schemes} == {4}


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(source: Path, tmp_path: Path):
    # The signal comes with the first report, from inside, so that it meets the work.
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run may ignore it
        "from magistral_mlx.cli import convert_progress, main\n"
        "interrupt = lambda self, report: os.kill(os.getpid(), signal.SIGINT)\n"
        "convert_progress._Lines.__call__ = interrupt\n"
        f"sys.argv = ['magistral-mlx', 'convert', {str(source)!r}, '-o', 'out']\n"
        "main.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == (
        "Interrupted. The same command goes on where this one was."
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "state.json").is_file()


def test_killed_from_outside_it_goes_on_and_says_so(run, source: Path, tmp_path: Path):
    program = (
        "import os, signal, sys\n"
        "from magistral_convert import convert, pipeline\n"
        "pipeline.COMMIT_BYTES = 1\n"
        "def die(report):\n"
        "    if report.tensors_done == 30: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"convert({str(source)!r}, {str(tmp_path / 'out')!r}, on_progress=die)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    result = run(source, "-o", tmp_path / "out")
    assert result.returncode == 0
    # The last commit may have been under way.
    assert re.search("going on after (29|30) of 99 tensors", result.stderr)


def test_a_log_gets_lines_that_tell_measuring_from_converting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(convert_progress, "_SECONDS_BETWEEN_LINES", 0)
    for report in (Measuring(1, 8, 10, 40), Converting(1, 8, 10, 40)):
        with convert_progress.conversion_progress() as on_progress:
            on_progress(report)
    measuring, *_, converting = capsys.readouterr().err.splitlines()
    assert measuring.startswith("measuring: 25%, 1/8 tensors")
    assert converting.startswith("converting: 25%, 1/8 tensors")


def test_a_terminal_gets_a_bar_with_tensors_and_speed(source: Path, tmp_path: Path):
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "magistral_mlx.cli.main", "convert", source, "-o", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    assert process.stdout is not None
    process.stdout.close()
    os.close(leader)
    text = shown.decode()
    assert "converting" in text
    assert "/99 tensors" in text


def test_a_mac_is_kept_awake_meanwhile(source: Path, tmp_path: Path):
    notes = tmp_path / "notes"
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "caffeinate"
    fake.write_text(f'#!/bin/sh\necho "$@" > {notes}\nexec cat\n')  # waits for its end
    fake.chmod(0o755)
    program = (
        "import os, pathlib, sys\n"
        "from magistral_mlx.cli.process import kept_awake\n"
        "sys.platform = 'darwin'\n"
        "with kept_awake():\n"
        f"    notes = pathlib.Path({str(notes)!r})\n"
        "    while not (notes.exists() and notes.stat().st_size): pass\n"
        "print(os.getpid())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert notes.read_text() == f"-i -w {result.stdout.strip()}\n"


def test_upload_follows_the_conversion(run, source: Path, tmp_path: Path):
    with FakeHub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "", "HF_TOKEN": hub.token}
        result = run(source, "-o", tmp_path / "out", "--upload", "me/magistral-4bit", **online)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{hub.url}/me/magistral-4bit\n"
        published = hub.files("me/magistral-4bit")
    for path in (tmp_path / "out").iterdir():
        if not path.name.startswith("."):
            assert published[path.name] == path.read_bytes()
    assert b"--model me/magistral-4bit" in published["README.md"]


def test_a_refused_upload_keeps_the_conversion_and_says_where_it_is(run, source, tmp_path: Path):
    with FakeHub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "", "HF_TOKEN": "hf_wrong"}
        result = run(source, "-o", tmp_path / "out", "--upload", "me/magistral-4bit", **online)
    assert result.returncode == 2
    assert f"hf upload me/magistral-4bit {tmp_path / 'out'}" in result.stderr
    assert (tmp_path / "out" / "config.json").is_file()


def test_help_is_quick_to_import(run):
    result = run("--help")
    assert "--quantize-vision" in result.stdout
    program = (
        "import sys; import magistral_mlx.cli.convert\n"
        "heavy = {'mlx', 'numpy', 'huggingface_hub', 'mistral_common', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert loaded.stdout == "[]\n"
