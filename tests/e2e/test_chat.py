"""`magistral-mlx chat` on a real pseudo-terminal."""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from tests.mcp_servers import SILENT, http_server, write_servers
from tests.pdf_files import pdf_of
from tests.scripted import RANKS, separable_tokens, write_scripted_checkpoint
from tests.terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_T, ENTER, UP, Terminal
from training.tekken import write_tekken

THOUGHT, ANSWER = "Let me see: it is", "A big farm."


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks THOUGHT, then answers ANSWER as a heading in Markdown; has a tower."""
    return write_scripted_checkpoint(
        tmp_path_factory.mktemp("chat") / "talker",
        ["[/INST]", "[THINK]", THOUGHT, "[/THINK]", "## ", ANSWER, "</s>"],
        vision=True,
    )


@pytest.fixture(scope="module")
def ponderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks for 600 tokens, then answers "OK"; a trace that is cut anywhere goes on there."""
    folder = tmp_path_factory.mktemp("chat")
    write_tekken(folder / "tekken.json", RANKS)
    trace = separable_tokens(folder / "tekken.json")[:600]
    return write_scripted_checkpoint(
        folder / "ponderer", ["[/INST]", "[THINK]", *trace, "[/THINK]", "OK", "</s>"]
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def chat(talker: Path, home: Path) -> Iterator[Terminal]:
    with start(talker, home) as terminal:
        yield terminal


def start(model: Path, home: Path, *words: str, columns: int = 80) -> Terminal:
    terminal = Terminal(
        "chat",
        "--model",
        str(model),
        *words,
        env={"MAGISTRAL_MLX_HOME": str(home)},
        columns=columns,
    )
    terminal.wait_for("❯")
    return terminal


def ask(terminal: Terminal, question: str, answer: str = ANSWER) -> None:
    type_command(terminal, question, answer)


def wait_for_prompt(terminal: Terminal) -> None:
    """Wait until the next line may be typed: keys alone reach the chat only then."""
    while terminal.last_line_with("❯").strip() != "❯":
        terminal.read_on("❯")


def type_command(terminal: Terminal, line: str, shows: str) -> None:
    """Send a line, and wait until what it shows has come once more."""
    before = terminal.everything.count(shows)
    terminal.send(line + ENTER)
    while terminal.everything.count(shows) <= before:
        terminal.read_on(shows)


def wait_for_input(terminal: Terminal, text: str) -> None:
    """Read until the last line with a prompt is the input, and holds `text`."""
    while terminal.last_line_with("❯") != f"❯ {text}".rstrip():
        terminal.read_on(text)


# Answers


def test_an_answer_is_rendered_and_its_thinking_folded(chat: Terminal):
    ask(chat, "What?")
    chat.wait_for("thought for 9 tokens")
    assert "##" not in chat.everything and THOUGHT not in chat.everything
    type_command(chat, "/think", THOUGHT)
    wait_for_prompt(chat)
    chat.send(CTRL_D)
    assert chat.end() == 0


def test_a_key_shows_the_thinking(chat: Terminal):
    ask(chat, "What?")
    chat.wait_for("of 4,096 tokens")
    chat.send(CTRL_T)
    chat.wait_for(THOUGHT)


def test_the_live_line_counts_the_thinking_and_ctrl_c_keeps_the_chat(ponderer: Path, home: Path):
    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        assert "thinking · " in terminal.screen and " tokens · " in terminal.screen
        terminal.send(CTRL_C)
        terminal.wait_for("Stopped. /continue goes on with it.")
        assert "OK" not in terminal.everything
        type_command(terminal, "/continue", "OK")
        type_command(terminal, "/stats", "2 answers")
        terminal.send("/quit" + ENTER)
        assert terminal.end() == 0


def test_the_thinking_is_unfolded_while_it_comes(ponderer: Path, home: Path):
    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        lines = len(terminal.screen.strip().splitlines())
        terminal.send(CTRL_T)
        terminal.wait_for("ctrl-t hides it")
        while len(terminal.screen.strip().splitlines()) <= lines + 3:
            terminal.read_on()
        terminal.send(CTRL_T)
        terminal.wait_for("ctrl-t shows it", gone="ctrl-t hides it")
        terminal.send(CTRL_C)
        terminal.wait_for("Stopped.")


def test_what_is_typed_during_an_answer_waits_for_its_end(ponderer: Path, home: Path):
    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        terminal.send("and then?")
        terminal.send(CTRL_C)
        terminal.wait_for("❯ and then?")


def test_a_command_that_is_sent_during_an_answer_is_done_after_it(ponderer: Path, home: Path):
    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        terminal.send("/stats" + ENTER + CTRL_C)
        terminal.wait_for("1 answers")


PASTE = "first line\rsecond line\rthird"


@pytest.mark.parametrize("paste", [f"\x1b[200~{PASTE}\x1b[201~", PASTE], ids=["marked", "plain"])
def test_a_paste_during_an_answer_is_one_draft(ponderer: Path, home: Path, paste: str):
    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        terminal.send(paste)
        terminal.send(CTRL_C)
        terminal.wait_for("third")
        lines = [line.strip() for line in terminal.screen.splitlines()]
        at = lines.index("❯ first line")
        assert lines[at + 1 : at + 3] == ["second line", "third"]


def test_an_interrupt_from_outside_stops_the_answer_alone(ponderer: Path, home: Path):
    import signal

    with start(ponderer, home) as terminal:
        terminal.send("Ponder" + ENTER)
        terminal.wait_for("ctrl-t shows it")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Stopped.")
        type_command(terminal, "/help", "Ctrl-D leaves")


# Input


def test_several_lines_are_one_message(chat: Terminal, tmp_path: Path):
    chat.send("one" + ALT_ENTER + "two\\" + ENTER + "three")
    ask(chat, "")
    file = tmp_path / "chat.json"
    type_command(chat, f"/save {file}", "Saved to")
    assert json.loads(file.read_text())["messages"][0]["content"] == "one\ntwo\nthree"


def test_a_pasted_text_is_one_message(chat: Terminal, tmp_path: Path):
    chat.send("\x1b[200~one\ntwo\x1b[201~")
    ask(chat, "")
    file = tmp_path / "chat.json"
    type_command(chat, f"/save {file}", "Saved to")
    assert json.loads(file.read_text())["messages"][0]["content"] == "one\ntwo"


def test_what_was_typed_is_remembered_for_the_next_time(talker: Path, home: Path):
    with start(talker, home) as terminal:
        ask(terminal, "Where is the zoo?")
        wait_for_prompt(terminal)
        terminal.send(CTRL_D)
        assert terminal.end() == 0
    assert stat.S_IMODE((home / "chat_history").stat().st_mode) == 0o600
    with start(talker, home) as terminal:
        terminal.send(UP)
        terminal.wait_for("❯ Where is the zoo?")


def test_ctrl_c_in_the_input_gives_the_line_up(chat: Terminal):
    chat.send("never mind")
    chat.wait_for("❯ never mind")
    chat.send(CTRL_C)
    ask(chat, "What?")
    type_command(chat, "/stats", "1 answers")


def test_a_text_that_begins_with_a_slash(chat: Terminal, tmp_path: Path):
    ask(chat, "//etc/hosts")
    file = tmp_path / "chat.json"
    type_command(chat, f"/save {file}", "Saved to")
    assert json.loads(file.read_text())["messages"][0]["content"] == "/etc/hosts"


# Commands


def test_help_lists_every_command(chat: Terminal):
    from magistral_mlx.cli.chatting.commands import COMMANDS

    type_command(chat, "/help", "Ctrl-D leaves")
    for name in COMMANDS:
        assert f"/{name}" in chat.everything


def test_an_unknown_command_names_the_nearest(chat: Terminal):
    type_command(chat, "/sistem", "there is no command /sistem. Did you mean /system?")


def test_images_go_with_the_next_message(chat: Terminal, tmp_path: Path):
    image = tmp_path / "a red one.png"
    PIL.Image.new("RGB", (60, 40), (200, 10, 10)).save(image)
    type_command(chat, f"/image '{image}'", "1 image will go with your next message")
    chat.wait_for("· 1 image")
    ask(chat, "What is it?")
    chat.wait_for("of 4,096 tokens", gone="· 1 image")
    file = tmp_path / "chat.json"
    type_command(chat, f"/save {file}", "Saved to")
    kinds = [part["type"] for part in json.loads(file.read_text())["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    type_command(chat, "/image /no/such.png", "there is no image /no/such.png")


def test_files_go_with_the_next_message(chat: Terminal, tmp_path: Path):
    notes, report, saved = tmp_path / "notes.py", tmp_path / "a b.pdf", tmp_path / "chat.json"
    notes.write_text("x = 1\n")
    report.write_bytes(pdf_of(["Page one"]))
    type_command(chat, f"/file --images '{report}'", "· 1 image · 1 file")
    type_command(chat, "/file", "Nothing goes with your next message.")
    type_command(chat, f"/file {notes} '{report}'", "· 2 files")
    type_command(chat, "/file /no/such.pdf", "there is no file /no/such.pdf")
    ask(chat, "What is x?")
    type_command(chat, "/undo", "is taken back")
    chat.wait_for("· 2 files")
    ask(chat, " Tell.")
    assert "❯ What is x? Tell." in chat.everything
    type_command(chat, f"/save {saved}", "Saved to")
    content = json.loads(saved.read_text())["messages"][0]["content"]
    kinds = [part["type"] for part in content]
    assert kinds == ["text", "text", "text"]
    assert content[0]["text"].endswith("notes.py\n```py\nx = 1\n```")


def test_tools_of_mcp_servers_ask_before_they_are_called(tmp_path: Path, home: Path):
    caller = write_scripted_checkpoint(
        tmp_path / "caller",
        ["[/INST]", "[TOOL_CALLS]", "own_now", "[ARGS]", "{}", "</s>"],
        ["[/TOOL_RESULTS]", ANSWER, "</s>"],
    )
    with http_server() as url:
        file = write_servers(tmp_path / "mcp.json", own={"url": url})
        with start(caller, home, "--mcp", str(file), "--temperature", "0") as terminal:
            type_command(terminal, "/tools", "own_now · asks first · Tell the time.")
            type_command(terminal, "What time is it?", "Allow it?")
            type_command(terminal, "no", ANSWER)
            type_command(terminal, "/result", "The user did not allow this call.")
            type_command(terminal, "And now?", "Allow it?")
            type_command(terminal, "t", "own_now: done, 7 characters")
            type_command(terminal, "/result", "It is 5")
            type_command(terminal, "/tools", "own_now · without asking")
            assert terminal.everything.count("calls own_now({})") == 2
            type_command(terminal, "And again?", "own_now: done")


def test_ctrl_c_ends_the_wait_for_a_server_that_does_not_answer(talker: Path, tmp_path: Path):
    file = write_servers(tmp_path / "mcp.json", slow=SILENT)
    with Terminal("chat", "--model", str(talker), "--mcp", str(file)) as terminal:
        terminal.wait_for("waiting for the MCP server slow")
        terminal.send(CTRL_C)
        assert terminal.end() == 130, terminal.everything
        assert "Traceback" not in terminal.everything


def test_the_system_prompt_is_shown_and_changed(chat: Terminal):
    type_command(chat, "/system", "Think first.")
    type_command(chat, "/system Be a pirate.", "Be a pirate.")
    type_command(chat, "/system none", "No system prompt is sent.")
    ask(chat, "What?")
    type_command(chat, "/stats", "prompt 7 tokens")
    type_command(chat, "/system default", "Then answer.")


def test_undo_puts_the_message_back_into_the_input(chat: Terminal):
    ask(chat, "What a typo?")
    type_command(chat, "/undo", "is taken back")
    ask(chat, " No.")
    assert "❯ What a typo? No." in chat.everything
    type_command(chat, "/undo", "is taken back")
    wait_for_input(chat, "What a typo? No.")
    chat.send(CTRL_C)
    wait_for_input(chat, "")
    type_command(chat, "/undo", "there is nothing to take back")


def test_retry_answers_again(chat: Terminal):
    type_command(chat, "/retry", "there is no answer to replace")
    ask(chat, "What?")
    ask(chat, "/retry")
    type_command(chat, "/stats", "2 answers")


def test_thinking_is_switched(chat: Terminal):
    type_command(chat, "/thinking 5", "at most 5 tokens")
    type_command(chat, "/thinking off", "Thinking is off.")
    chat.wait_for("· thinking off")
    type_command(chat, "/thinking perhaps", 'it must be "on", "off"')


def test_a_saved_conversation_goes_on_in_another_chat(talker: Path, home: Path, tmp_path: Path):
    file = tmp_path / "my chat.json"
    with start(talker, home, "--system", "Be a pirate.") as terminal:
        ask(terminal, "Where to?")
        type_command(terminal, f'/save "{file}"', "Saved to")
    with start(talker, home, "--load", str(file), "--no-system") as terminal:
        terminal.wait_for(ANSWER)
        assert "❯ Where to?" in terminal.everything
        type_command(terminal, "/system", "No system prompt is sent.")
        type_command(terminal, "/think", THOUGHT)
        type_command(terminal, "/new", "A new conversation")
        type_command(terminal, "/undo", "there is nothing to take back")
        type_command(terminal, f'/load "{file}"', "❯ Where to?")
        type_command(terminal, "/system", "Be a pirate.")
        type_command(terminal, "/load /no/such.json", "there is no conversation /no/such.json")


def test_save_overwrites_only_its_own_file(chat: Terminal, tmp_path: Path):
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    ask(chat, "Where to?")
    type_command(chat, f"/save {other}", "--force FILE overwrites")
    assert other.read_text() == "mine"
    file = tmp_path / "chat.json"
    type_command(chat, f"/save {file}", "Saved to")
    type_command(chat, f"/save {file}", "Saved to")
    type_command(chat, f"/save --force {other}", "Saved to")
    assert json.loads(other.read_text())["messages"]
    # A path that cannot be written is told, and the conversation is still there.
    long = "a" * 300
    type_command(chat, f"/save {long}", "the conversation cannot be saved to")
    type_command(chat, f"/save --force {long}", "the conversation cannot be saved to")
    type_command(chat, f"/load {long}", "cannot be read")
    type_command(chat, "/save --force", "one file is expected")
    type_command(chat, "/stats", "1 answers")


def test_a_path_with_blanks_is_completed_as_one(talker: Path, home: Path, tmp_path: Path):
    (tmp_path / "my long name.json").write_text("{}")
    with start(talker, home, columns=300) as chat:  # a path of any length stands on one line
        chat.send(f"/load {tmp_path}/my")
        chat.wait_for("my long name.json")
        chat.send("\t")
        chat.wait_for("my\\ long\\")
        chat.send(ENTER)
        chat.wait_for("is not a conversation that was saved")


@pytest.mark.parametrize("word", ["/bye", "/exit", "exit", "quit"])
def test_words_of_other_chats_leave(talker: Path, home: Path, word: str):
    with start(talker, home) as terminal:
        type_command(terminal, "/?", "Ctrl-D leaves")
        type_command(terminal, "/clear", "A new conversation")
        terminal.send(word + ENTER)
        assert terminal.end() == 0


def test_a_model_of_the_hub_has_the_name_of_its_repository(
    talker: Path, home: Path, tmp_path: Path
):
    folder = tmp_path / "models--someone--talker" / "snapshots" / ("a" * 40)
    shutil.copytree(talker, folder)
    file = tmp_path / "chat.json"
    with start(folder, home) as terminal:
        terminal.wait_for("someone/talker · /help")
        ask(terminal, "Where to?")
        type_command(terminal, f"/save {file}", "Saved to")
    assert json.loads(file.read_text())["model"] == "someone/talker"


def test_the_demo_says_why_a_second_turn_makes_no_sense(home: Path):
    with Terminal(
        "chat", "demo", "--temperature", "0", env={"MAGISTRAL_MLX_HOME": str(home)}
    ) as it:
        it.wait_for("❯")
        ask(it, "What is 1 + 2?", "3")
        type_command(it, "What is 3 + 4?", "trained to answer single questions")


def test_the_plan_is_shown(chat: Terminal):
    type_command(chat, "/plan", "longest context")


def test_memory_is_planned_for_as_many_images_as_are_asked_for(talker: Path, home: Path):
    with start(talker, home, "--images", "3") as terminal:
        type_command(terminal, "/plan", "3 image(s)")


def test_a_message_that_is_too_long_is_refused_and_kept(talker: Path, home: Path):
    with start(talker, home, "--context", "64") as terminal:
        terminal.send("word " * 40 + "end" + ENTER)
        terminal.wait_for("and the context holds 64")
        while terminal.everything.count("word end") < 2:  # it is in the input again
            terminal.read_on()


# Not a chat


def test_a_pipe_is_no_terminal(talker: Path):
    done = subprocess.run(
        [sys.executable, "-m", "magistral_mlx.cli.main", "chat", "--model", str(talker)],
        input="Hi\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "chat needs a terminal" in done.stderr and "generate" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "/no/such"], "there is no folder /no/such"),
        (["--thinking", "perhaps"], 'it must be "on", "off"'),
        (["--system", "x", "--no-system"], "give only one of --system"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--model", "/no/such", "--load", "/no/such.json"], "there is no conversation /no/such"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], message: str):
    with Terminal("chat", *words) as terminal:
        assert terminal.end() == 2
        assert message in " ".join(terminal.everything.split())
        assert "Traceback" not in terminal.everything
