"""What people type: words of other tools, wrong ones, and values out of range."""

import json
import shutil
from pathlib import Path

import pytest

from magistral_mlx.cli import hints
from magistral_mlx.paths import demo_dir
from tests.command_line import run
from tests.data import GGUF


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("run", "`generate` answers one prompt, `chat` is a conversation"),
        ("list", "`models` lists"),
        ("ls", "`models` lists"),
        ("ps", "`models` lists"),
        ("quantize", "`convert`"),
        ("download", "`pull`"),
        ("delete", "`rm`"),
        ("info", "`show`"),
        ("genrate", "`generate` is nearest"),
        ("modles", "`models` is nearest"),
        ("frobnicate", "`magistral-mlx --help` lists"),
    ],
)
def test_a_command_of_another_tool_is_told_with_the_right_word(word: str, right: str):
    refusal = run(word, "demo").refusal
    assert refusal.startswith(f"there is no command {word}")
    assert right in refusal


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (("generate", "Hi", "--temp", "0"), "give --temperature"),
        (("generate", "Hi", "--ctx-size", "4096"), "give --context"),
        (("generate", "Hi", "--max-kv-size", "4096"), "give --context"),
        (("generate", "Hi", "--kv-bits", "8"), "give --kv, as in --kv 8/8"),
        (("chat", "--draft-model", "x"), "give --draft"),
        (("chat", "--system-prompt", "x"), "give --system"),
        (("generate", "-p", "Hi"), "PROMPT"),
        (("chat", "--repeat-penalty", "1.1"), "give --repetition-penalty"),
        (("chat", "--nothink"), "give --thinking off"),
        (("serve", "--listen", "0.0.0.0"), "give --host"),
        (("convert", "x", "-q"), "none is needed: `convert` quantizes"),
        (("convert", "x", "--q-bits", "4"), "give --bits"),
        (("convert", "x", "--mlx-path", "y"), "give --output"),
        (("generate", "Hi", "--tempreature", "0"), "give --temperature"),
        (("generate", "Hi", "--xyzzy"), "`magistral-mlx generate --help` lists"),
    ],
)
def test_an_option_of_another_tool_is_told_with_the_right_word(words: tuple[str, ...], right: str):
    assert right in run(*words).refusal


def test_every_hint_names_words_that_there_are():
    """Of the options in a hint, those that some command has; of the commands, all."""
    helps = {name: run(name, "--help").stdout.decode() for name in COMMANDS}
    for hint in hints.OPTIONS.values():
        option = hint.split(",")[0].split(" ")[0]
        if option.startswith("--"):
            assert any(f"{option} " in text for text in helps.values()), option
    for hint in hints.COMMANDS.values():
        for quoted in hint.split("`")[1::2]:
            word = quoted.split()[0]
            assert word in (*COMMANDS, "cp", "hf", "magistral-mlx"), hint


COMMANDS = (
    *("generate", "chat", "serve", "traces", "convert", "plan", "doctor", "bench", "models"),
    *("show", "pull", "rm"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str):
    done = run(name, "-h")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: magistral-mlx {name}".encode())


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("generate", "Hi", "--temperature", "-1"), "--temperature is -1.0; it must be 0"),
        (("generate", "Hi", "--top-k", "x"), "--top-k is 'x'; it must be a whole number."),
        (("generate", "Hi", "-n", "0"), "--max-tokens is 0; it must be 1 or more"),
        (("generate", "Hi", "-s", "-1"), "--seed is -1; it must be from 0 to 4294967295."),
        (("generate", "Hi", "--thinking", "5", "--min-thinking", "6"), "--min-thinking is 6, more"),
        (
            ("generate", "Hi", "--min-tokens", "5", "-n", "3"),
            "--min-tokens is 5, more than the 3 of --max-tokens.",
        ),
        (("eval", "foo"), "there is no task 'foo'. There are aime24, "),
        (("generate", "Hi", "--regex", "a", "--choice", "b"), "--regex and --choice exclude each"),
        (("generate", "Hi", "--cache-size", "5GB"), "--cache-size needs a --cache-dir"),
        (("generate", "Hi", "--cache-dir", ""), "--cache-dir is ''; it must be a name, not empty"),
        (
            ("generate", "Hi", "--memory-limit", "20xb"),
            "--memory-limit is '20xb'; it must be a size",
        ),
        (
            ("generate", "Hi", "--memory-limit", "1kb"),
            "--memory-limit is 1000; it must be 64 MB or",
        ),
        (
            ("generate", "Hi", "--kv", "7/4"),
            "--kv is '7/4'; it must be full, or bits of keys and values of 2, 3, 4, 5, 6 or 8 each",
        ),
        (("generate", "Hi", "--logit-bias", "5"), "--logit-bias is '5'; it must be a token id and"),
        (("generate", "Hi", "--dry-base", "0"), "--dry-base is 0.0; it must be 1 or more."),
        (
            ("generate", "Hi", "--logprobs"),
            "--logprobs, --top-logprobs and --prompt-logprobs need --json.",
        ),
        (("generate", "Hi", "--system", "x", "--no-system"), "give only one of --system"),
        (
            ("generate", "Hi", "--prompt-file", "x"),
            "give the prompt as PROMPT or with --prompt-file",
        ),
        (
            ("generate", "Hi", "-f", "/no/such.txt"),
            "there is no file /no/such.txt. Check the path.",
        ),
        (("generate", "Hi", "--pdf", "pages"), "--pdf is 'pages'; it must be 'text' or 'images'."),
        (("generate",), "the prompt is empty."),
        (("generate", "  "), "the prompt is empty."),
        (("serve", "--port", "70000"), "--port is 70000; it must be from 0 to 65535."),
        (("serve", "--parallel", "0"), "--parallel is 0; it must be 1 or more."),
        (("serve", "--max-queue", "0"), "--max-queue is 0; it must be 1 or more."),
        (("serve", "--keep-alive", "soon"), "--keep-alive is 'soon'; it must be a duration, as in"),
        (("serve", "--max-body", "0"), "--max-body is 0; it must be 1 or more."),
        (("serve", "--max-body", "64 sheep"), "--max-body is '64 sheep'; it must be a size, as in"),
        (("serve", "--max-time", "0"), "--max-time is 0.0; it must be above 0."),
        (("serve", "--grace", "-1s"), "--grace is '-1s'; it must be a duration, as in"),
        (
            ("generate", "Hi", "--image", "https://a.example/b.png"),
            "https://a.example/b.png is a",
        ),
        (("generate", "Hi", "--image", "HTTP://x"), "HTTP://x is a web address, and nothing is"),
        (("plan", "demo", "--model", "x"), "give the model once, as MODEL or with --model."),
        (("plan", "a", "b"), "got unexpected extra argument (b)."),
        (("bench", "--rounds", "0"), "--rounds is 0; it must be 1 or more."),
        (("rm",), "name the model to delete"),
        (("rm", "no-such-model"), "there is no model no-such-model on this machine"),
        (("pull",), "name a model, as in pull"),
    ],
)
def test_an_error_is_one_line_in_the_words_that_were_typed(words: tuple[str, ...], refusal: str):
    assert run(*words).refusal.startswith(refusal)


@pytest.mark.parametrize(
    ("words", "subject"),
    [
        (("generate", "Hi", "-m", ""), "--model"),
        (("generate", "Hi", "-f", "a", "-f", ""), "--file"),
        (("generate", "Hi", "--image", ""), "--image"),
        (("generate", "--prompt-file", ""), "--prompt-file"),
        (("generate", "Hi", "--json-schema", ""), "--json-schema"),
        (("generate", "Hi", "--tools", ""), "--tools"),
        (("generate", "Hi", "--system-file", ""), "--system-file"),
        (("generate", "Hi", "--machines", ""), "--machines"),
        (("chat", "--load", ""), "--load"),
        (("chat", "--mcp", ""), "--mcp"),
        (("serve", "demo", ""), "MODEL"),
        (("serve", "-m", ""), "--model"),
        (("serve", "demo", "--traces", ""), "--traces"),
        (("serve", "demo", "--adapter", ""), "--adapter"),
        (("serve", "demo", "--mcp", ""), "--mcp"),
        (("traces", ""), "DIR_OR_LOG"),
        (("traces", "a", "--plot", ""), "--plot"),
        (("plan", ""), "MODEL"),
        (("plan", "-m", ""), "--model"),
        (("doctor", "--check", ""), "MODEL"),
        (("bench", ""), "MODEL"),
        (("show", ""), "MODEL"),
        (("pull", ""), "MODEL"),
        (("rm", ""), "MODEL"),
        (("convert", ""), "SOURCE"),
        (("convert", "demo", "-o", ""), "--output"),
        (("convert", "demo", "--calibration", ""), "--calibration"),
        (("convert", "demo", "--imatrix", ""), "--imatrix"),
        (("eval", ""), "TASK"),
        (("eval", "aime24", "-m", ""), "--model"),
        (("eval", "aime24", "-m", "demo", "--logs", ""), "--logs"),
        (("eval", "aime24", "--plot", ""), "--plot"),
        (("eval", "quality", "", "demo"), "A"),
        (("eval", "quality", "demo", ""), "B"),
        (("eval", "quality", "demo", "demo", "--plot", ""), "--plot"),
    ],
)
def test_an_empty_name_is_refused_and_not_the_current_folder(
    words: tuple[str, ...], subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*words).refusal == f"{subject} is ''; it must be a name, not empty."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("plan", "demo", "--json"), ("plan", "-m", "demo", "--json")])
def test_a_model_is_an_argument_or_an_option(words: tuple[str, ...]):
    done = run(*words)
    assert done.status == 0
    assert b'"model": "demo"' in done.stdout


def test_a_table_of_machines_has_those_that_are_smaller_than_the_limit():
    lines = run("plan", "--all-machines", "--memory-limit", "20gb").stdout.decode().splitlines()
    rows = [line for line in lines if " Mac " in line]
    assert [row.split(" GB")[0] for row in rows] == ["16", "24", "32", "48", "64", "128"]
    assert rows[-1].split("  ")[1].strip() == "18.6 GiB"


def test_figures_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COLUMNS", "40")
    for words in (("plan", "demo"), ("plan", "--all-machines"), ("models",)):
        assert "…" not in run(*words, terminal=True).stdout.decode()
    sizes = run("convert", "demo", "-o", str(tmp_path / "out"), "--dry-run", terminal=True)
    rows = [line.split() for line in sizes.stdout.decode().splitlines()]
    assert ["embedding", "388,608", "0.8", "MB", "0.2", "MB", "4.50"] in rows


def test_show_describes_a_model_without_loading_it():
    lines = dict(line.split("  ", 1) for line in run("show", "demo").stdout.decode().splitlines())
    assert lines["images"].strip() == "yes"
    assert lines["thinking"].strip() == "yes"
    assert int(lines["layers"].replace(",", "")) > 0


def test_show_describes_a_gguf_file_whose_tokenizer_is_missing_or_named(home: Path):
    model = str(shutil.copy(GGUF / "small.Q4_K_M.gguf", home))

    def lines(*words: str) -> dict[str, str]:
        shown = run("show", model, *words).stdout.decode().splitlines()
        return {name: value.strip() for name, value in (line.split("  ", 1) for line in shown)}

    without = lines()
    assert without["tokenizer"] == "none found (--tokenizer names one)"
    assert without["thinking"] == without["system prompt"] == "unknown"
    assert int(without["layers"]) > 0
    assert json.loads(run("show", model, "--json").stdout)["tokenizer"] is None
    tekken = demo_dir() / "tekken.json"
    named = lines("--tokenizer", str(tekken))
    assert named["tokenizer"].startswith(f"{tekken} (") and named["thinking"] == "yes"
    assert "no-such" in run("show", model, "--tokenizer", str(home / "no-such.json")).refusal


def test_no_arguments_show_the_commands():
    done = run()
    assert done.status == 2
    assert "generate  Answer a prompt" in done.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_rm_deletes_a_conversion_and_nothing_beside_it(home: Path):
    models = home / "home" / "models"
    for name in ("mine-4bit", "other-4bit"):
        shutil.copytree(demo_dir(), models / name)
    assert "give --yes to delete" in run("rm", "mine-4bit").refusal
    assert (models / "mine-4bit").exists()
    done = run("rm", "mine-4bit", "--yes")
    assert (done.status, done.stdout) == (0, b"")
    assert "mine-4bit is deleted" in done.stderr
    assert [path.name for path in models.iterdir()] == ["other-4bit"]


def test_rm_deletes_a_whole_download(home: Path):
    repo = home / "hub" / "models--someone--thing"
    shutil.copytree(demo_dir(), repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    assert run("rm", "-y", "-m", "someone/thing").status == 0
    assert not repo.exists()


def test_rm_leaves_models_of_others_alone(home: Path):
    theirs = home / ".lmstudio" / "models" / "someone" / "thing"
    shutil.copytree(demo_dir(), theirs)
    assert "belongs to LM Studio" in run("rm", "someone/thing", "-y").refusal
    assert theirs.exists()


def test_pull_prints_the_folder_of_a_model_that_is_here(home: Path):
    shutil.copytree(demo_dir(), home / "home" / "models" / "mine-4bit")
    assert run("pull", "mine-4bit").stdout.decode().strip().endswith("models/mine-4bit")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("generate --kv ", ["full", "8/8", "6/6", "6/4", "5/4", "4/4"]),
        ("serve --kv 6", ["6/6", "6/4"]),
        ("convert x --recipe 4bit-", ["4bit-plus"]),
        ("chat --thinking o", ["on", "off"]),
        ("plan --model dem", ["demo"]),
        ("bench dem", ["demo"]),
        ("pu", ["pull"]),
        ("generate --repetition-", ["--repetition-penalty", "--repetition-window"]),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    words: str, completions: list[str], monkeypatch: pytest.MonkeyPatch
):
    typed = f"magistral-mlx {words}"
    monkeypatch.setenv("_MAGISTRAL_MLX_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    found = [line.split(",")[1] for line in run().stdout.decode().splitlines()]
    assert found == completions


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_MAGISTRAL_MLX_COMPLETE", f"{shell}_source")
    assert b"_MAGISTRAL_MLX_COMPLETE" in run().stdout
