"""A conversation that keeps its history."""

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import (
    Assistant,
    ContextOverflow,
    Conversation,
    Image,
    InvalidOption,
    Magistral,
    PromptError,
    StorageError,
    System,
    Text,
    Thought,
    Tool,
    ToolCall,
    ToolResult,
    User,
    read_document,
)
from tests.unit.api.conftest import ANSWER, THOUGHT
from tests.unit.api.together import held

_ANSWERED = Assistant(ANSWER, THOUGHT)
_RED = PIL.Image.new("RGB", (60, 40), (200, 10, 10))


@pytest.fixture
def chat(talker: Magistral) -> Conversation:
    return talker.chat()


def text_of(magistral: Magistral, conversation: Conversation) -> str:
    tokenizer = magistral.tokenizer
    tokens = magistral.prompt(conversation.messages, options=conversation.options).tokens.tolist()
    return "".join(tokenizer.control_name(id) or tokenizer.decode([id]) for id in tokens)


# Turns


@pytest.mark.slow
def test_questions_and_answers_make_the_history(chat: Conversation):
    assert chat.messages == ()
    first = chat.send("One?")
    assert first.text == ANSWER
    assert chat.messages == (User("One?"), _ANSWERED)
    second = chat.send("Two?")
    assert chat.messages == (User("One?"), _ANSWERED, User("Two?"), _ANSWERED)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_the_history_is_read_without_waiting_for_an_answer(endless: Magistral):
    chat = endless.chat("Said before.")
    before = chat.messages, chat.tokens
    stream = chat.stream("One?", max_tokens=10_000)
    while not isinstance(next(stream), Text):
        pass
    assert (chat.messages, chat.tokens) == before and chat.dropped_turns == 0
    assert chat.fork().messages == before[0]
    stream.cancel()
    result = stream.result()
    assert chat.messages == (*before[0], User("One?"), result.message)


def test_the_history_cannot_change_while_an_answer_is_written(endless: Magistral, tmp_path: Path):
    chat = endless.chat()
    chat.send("Zero?", max_tokens=2)
    chat.save(tmp_path / "chat.json")
    stream = chat.stream("One?", max_tokens=10_000)
    next(stream)
    changes: list[Callable[[], Any]] = [
        chat.undo,
        lambda: chat.edit("Two?"),
        lambda: chat.append("Two?"),
        lambda: chat.load(tmp_path / "chat.json"),
    ]
    for change in changes:
        with pytest.raises(PromptError, match="cancel it"):
            change()
    chat.save(tmp_path / "meanwhile.json")
    assert (tmp_path / "meanwhile.json").read_text() == (tmp_path / "chat.json").read_text()
    stream.cancel()
    chat.edit("Two?")  # waits for the token that is under way
    assert chat.messages[-1] == User("Two?")


def test_resuming_does_not_block_the_event_loop(endless: Magistral):
    chat = endless.chat()

    async def ask() -> str:
        first = chat.astream("One?", max_tokens=10_000)
        while not isinstance(await anext(first), Text):
            pass
        second = chat.aresume(max_tokens=2)  # at once, although the first one goes on
        reading = asyncio.create_task(second.result())
        first.cancel()
        await first.result()
        return (await reading).text

    assert len(asyncio.run(ask())) == 2
    assert len(chat.messages) == 2


def test_questions_that_follow_at_once_see_the_answers_before(chat: Conversation):
    first, second = chat.stream("One?"), chat.stream("Two?")
    assert first.result().usage.prompt_tokens < second.result().usage.prompt_tokens
    assert len(chat.messages) == 4


def test_options_are_those_of_the_chat_unless_a_question_has_others(talker: Magistral):
    chat = talker.chat(max_tokens=3)
    assert chat.send("One?").usage.completion_tokens == 3
    assert chat.send("One?", max_tokens=4).usage.completion_tokens == 4
    with pytest.raises(InvalidOption, match="did you mean max_tokens"):
        chat.send("One?", max_token=3)  # type: ignore[call-arg]


def test_a_chat_may_begin_with_what_was_said_before(talker: Magistral):
    chat = talker.chat([{"role": "user", "content": "One?"}, Assistant("1")])
    assert chat.messages == (User("One?"), Assistant("1"))
    chat.append("Two?")
    assert chat.send().text == ANSWER
    assert chat.messages[2:] == (User("Two?"), _ANSWERED)


def test_a_question_that_cannot_be_asked_leaves_the_history_alone(chat: Conversation):
    chat.send("One?")
    before = chat.messages
    with pytest.raises(ContextOverflow):
        chat.send("word " * 5000)
    with pytest.raises(PromptError):
        chat.send()  # the history ends in an answer
    assert chat.messages == before


def test_a_stopped_answer_is_kept_as_far_as_it_got(endless: Magistral):
    chat = endless.chat()
    stream = chat.stream("Count")
    while not isinstance(next(stream), Text):
        pass
    stream.cancel()
    question, answer = chat.messages
    assert question == User("Count")
    assert isinstance(answer, Assistant) and answer.text.startswith("1") and answer.prefix


def test_an_answer_that_was_stopped_before_it_began_leaves_no_trace(endless: Magistral):
    chat = endless.chat()
    running = endless.stream("Hi")
    queued = chat.stream("Count")
    queued.cancel()
    running.cancel()
    assert chat.messages == ()


def test_a_stream_that_is_dropped_stops_and_is_kept_as_well(endless: Magistral):
    chat = endless.chat()
    for event in chat.stream("Count"):
        if isinstance(event, Text):
            break
    assert len(chat.messages) == 2
    answer = chat.messages[1]
    assert isinstance(answer, Assistant) and answer.prefix


def test_an_answer_that_was_cut_is_resumed_as_one(endless: Magistral):
    chat = endless.chat()
    chat.send("Count", max_tokens=4)
    assert chat.messages == (User("Count"), Assistant("1a2b", prefix=True))
    assert chat.resume(max_tokens=3).result().text == "3c1"
    assert chat.messages == (User("Count"), Assistant("1a2b3c1", prefix=True))


def test_thinking_that_was_cut_is_resumed(chat: Conversation):
    chat.send("What?", max_tokens=4)
    assert chat.resume().result().text == ANSWER
    assert chat.messages == (User("What?"), _ANSWERED)


def test_a_cut_answer_is_closed_by_the_next_question(talker: Magistral, chat: Conversation):
    chat.send("What?", max_tokens=len(talker.tokenizer.encode(THOUGHT)) + 4)
    chat.append("And?")
    assert "[/THINK]A re</s>[INST]And?[/INST]" in text_of(talker, chat)


def test_a_resumption_that_failed_or_said_nothing_leaves_the_history_alone(talker: Magistral):
    chat = talker.chat()
    chat.send("One?")
    before = chat.messages
    with pytest.raises(InvalidOption):
        chat.resume(temperature=-1)
    assert chat.messages == before
    with held(talker):
        chat.resume().cancel()
        assert chat.messages == before
    with pytest.raises(PromptError):
        chat.send()  # the history ends in an answer


def test_there_is_nothing_to_resume_before_the_first_answer(chat: Conversation):
    with pytest.raises(PromptError, match="no answer to go on with"):
        chat.resume()


# Changing what was said


@pytest.mark.slow
def test_undo_takes_the_last_turn_back(chat: Conversation):
    chat.send("One?")
    chat.send("Two?")
    assert chat.undo() == (User("Two?"), _ANSWERED)
    assert chat.messages == (User("One?"), _ANSWERED)
    assert chat.undo() and chat.undo() == ()


def test_editing_forgets_what_followed(chat: Conversation):
    chat.append([User("One?"), Assistant("1"), User("Two?"), Assistant("2")])
    chat.edit("Three?")
    assert chat.messages == (User("One?"), Assistant("1"), User("Three?"))
    assert chat.send().text == ANSWER
    chat.edit("Zero?", turn=0)
    assert chat.messages == (User("Zero?"),)
    for turn in (1, -2):
        with pytest.raises(PromptError, match="the conversation has 1"):
            chat.edit("?", turn=turn)


def test_text_that_could_not_be_saved_does_not_enter_the_history(chat: Conversation):
    chat.append([User("One?"), Assistant("1")])
    before = chat.messages
    for change in (chat.edit, chat.append, chat.send):
        with pytest.raises(PromptError, match="not Unicode text: U\\+D800 at 1"):
            change("a\ud800b")
    with pytest.raises(InvalidOption, match="system is not Unicode text"):
        chat.send("Two?", system=System("a\ud800b"))
    assert chat.messages == before


def test_editing_keeps_the_files_that_stand_before_the_text(chat: Conversation):
    (document,) = read_document(b"x = 1", "a.py")
    chat.append(User((document, "What is x?")))
    chat.edit("What is a.py?")
    assert chat.messages == (User((document, "What is a.py?")),)


def test_editing_keeps_the_images_unless_there_are_others(chat: Conversation):
    chat.append("What?", _RED)
    chat.edit("Which?")
    (message,) = chat.messages
    assert isinstance(message, User) and len(message.content) == 2
    assert message.content[1] == "Which?" and isinstance(message.content[0], Image)
    chat.edit("None?", images=())
    assert chat.messages == (User("None?"),)


def test_a_fork_goes_its_own_way(chat: Conversation):
    chat.send("One?")
    other = chat.fork()
    other.send("Two?")
    assert len(chat.messages) == 2 and len(other.messages) == 4
    chat.undo()
    assert len(other.messages) == 4


# Tools


def test_a_tools_result_goes_back_into_the_conversation(talker: Magistral):
    schema = {"enum": [{}]}
    chat = talker.chat(tools=[Tool("now", parameters=schema)], tool_choice="required")
    result = chat.send("When?", thinking="off", max_tokens=100)
    assert result.tool_calls and result.tool_calls[0].name == "now"
    chat.append([ToolResult("noon", call.id) for call in result.tool_calls])
    assert chat.send(tool_choice="auto").text == "Zero"
    kinds = [type(message) for message in chat.messages]
    assert kinds[:2] == [User, Assistant] and kinds[-1] is Assistant and ToolResult in kinds


# The context


def test_the_tokens_of_a_conversation_are_counted(talker: Magistral, chat: Conversation):
    assert chat.tokens == 0
    result = chat.send("One?")
    assert chat.tokens == result.usage.total_tokens - 1  # the end mark of the answer
    chat.append(Assistant(tool_calls=(ToolCall("f", "{}"),)))
    assert chat.tokens > result.usage.total_tokens
    chat.append(ToolResult("x"))
    assert chat.tokens == len(talker.prompt(chat.messages))


@pytest.mark.slow
def test_dropped_turns_stay_in_the_history_and_are_not_sent_again(talker_folder: Path):
    with Magistral.load(talker_folder, context=400) as magistral:
        chat = magistral.chat(overflow="drop")
        dropped = 0
        for n in range(12):
            result = chat.send(f"Number {n}? " + "word " * 20)
            assert result.text == ANSWER
            dropped += result.dropped.turns if result.dropped else 0
            assert chat.dropped_turns == dropped
        assert 0 < dropped < 11
        assert len(chat.messages) == 24
        assert chat.tokens < 400
        for _ in range(12):
            chat.undo()
        assert chat.dropped_turns == 0


def test_a_conversation_that_outgrows_its_context_says_so(talker_folder: Path):
    with Magistral.load(talker_folder, context=400) as magistral:
        chat = magistral.chat()
        chat.append(
            [User("word " * 100), Assistant("Yes."), User("word " * 100), Assistant("Yes.")]
        )
        with pytest.raises(ContextOverflow, match=r'oldest 2 turns \(overflow="drop" does so'):
            chat.send("word " * 100)
        assert chat.send("word " * 100, overflow="drop").dropped is not None


# Files


def full_history() -> list[Any]:
    return [
        User(("See:", Image(_RED), "What?")),
        Assistant("", "hm", (ToolCall("look", '{"at": 1}', "abcdefgh1"),)),
        ToolResult("red", "abcdefgh1"),
        Assistant("Röd 🟥", "ha", prefix=True),
    ]


def test_a_saved_conversation_comes_back_with_its_images(talker: Magistral, tmp_path: Path):
    file = tmp_path / "chat.json"
    system = System(("Draft:", Thought("hm"), "Answer."))
    chat = talker.chat(full_history(), system=system)
    chat.save(file)
    other = talker.chat("something else")
    other.load(file)
    assert other.options.system == system
    assert other.messages[1:] == chat.messages[1:]
    first, same = chat.messages[0], other.messages[0]
    assert isinstance(first, User) and isinstance(same, User)
    image, copy = first.content[1], same.content[1]
    assert isinstance(image, Image) and isinstance(copy, Image)
    assert image.image.tobytes() == copy.image.tobytes()
    assert (same.content[0], same.content[2]) == ("See:", "What?")
    assert len(talker.prompt(other.messages[:1])) == len(talker.prompt(chat.messages[:1]))


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_the_system_prompt_is_saved(talker: Magistral, tmp_path: Path, system: str | None):
    chat = talker.chat("Hi", system=system)
    chat.save(tmp_path / "chat.json")
    other = talker.chat()
    other.load(tmp_path / "chat.json")
    assert other.options.system == chat.options.system


def test_the_checkpoints_own_system_prompt_is_not_frozen_into_the_file(
    talker: Magistral, tmp_path: Path
):
    talker.chat("Hi").save(tmp_path / "chat.json")
    assert "Think first" not in (tmp_path / "chat.json").read_text()
    other = talker.chat(system=None)
    other.load(tmp_path / "chat.json")
    assert "[SYSTEM_PROMPT]Think first." in text_of(talker, other)


def test_a_file_is_readable_by_others_programs_and_nobody_else(talker: Magistral, tmp_path: Path):
    file = tmp_path / "chat.json"
    talker.chat([User("Hi"), Assistant("Ho", "hm")]).save(file)
    content = json.loads(file.read_text())
    assert content["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho", "reasoning_content": "hm"},
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    talker: Magistral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "chat.json"
    talker.chat("Old").save(file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"cannot be saved to .*: No space left on device"):
        talker.chat("New").save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there_is_named(talker: Magistral, tmp_path: Path):
    with pytest.raises(StorageError, match="No such file or directory"):
        talker.chat("Hi").save(tmp_path / "none" / "chat.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no conversation"),
        ("", "is not JSON"),
        ("{}", "is not a conversation that was saved by magistral-mlx"),
        ("[]", "is not a conversation"),
        ('{"format": "magistral-mlx conversation", "version": 99}', "has version 99"),
        ('{"format": "magistral-mlx conversation", "version": 1}', "no list of messages"),
        (
            '{"format": "magistral-mlx conversation", "version": 1, "messages": [{"role": "x"}]}',
            r"messages\[0\].role is 'x'",
        ),
        (
            '{"format": "magistral-mlx conversation", "version": 1, "messages": [1]}',
            r"messages\[0\] is no message",
        ),
        (
            '{"format": "magistral-mlx conversation", "version": 1, "messages": '
            r'[{"role": "user", "content": "a\ud800"}]}',
            r"messages\[0\].content is not Unicode text",
        ),
    ],
)
def test_another_file_is_refused_and_the_chat_stays(
    talker: Magistral, tmp_path: Path, content: str | None, message: str
):
    file = tmp_path / "chat.json"
    if content is not None:
        file.write_text(content)
    chat = talker.chat("Hi")
    with pytest.raises(PromptError, match=message):
        chat.load(file)
    assert chat.messages == (User("Hi"),)


def test_a_file_cannot_make_us_open_others(talker: Magistral, tmp_path: Path):
    file = tmp_path / "chat.json"
    image = {"type": "image_url", "image_url": {"url": "/etc/passwd"}}
    messages = [{"role": "user", "content": [image]}]
    content = {"format": "magistral-mlx conversation", "version": 1, "messages": messages}
    file.write_text(json.dumps(content))
    with pytest.raises(Exception, match="must be a data URL"):
        talker.chat().load(file)


# asyncio


def test_a_conversation_for_asyncio(chat: Conversation):
    import asyncio

    async def talk() -> None:
        assert (await chat.asend("One?")).text == ANSWER
        events = [event async for event in chat.astream("Two?")]
        assert any(isinstance(event, Text) for event in events)

    asyncio.run(talk())
    assert len(chat.messages) == 4
