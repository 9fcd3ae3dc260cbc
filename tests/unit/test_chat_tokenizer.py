"""Loading tokenizers, and text that comes out of ids token by token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_mlx.chat.tokenizer import Detokenizer, Tokenizer
from magistral_mlx.errors import TokenizerError
from tests.languages import TEXTS
from tests.tekken import (
    full_tokenizer,
    older_tokenizer,
    small_tokenizer,
    tekken_content,
    tekken_folder,
)

REPLACEMENT = "\ufffd"


def stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """The pieces that a reader sees, the last one from flush."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(token) for token in tokens), detokenizer.flush()]


def test_a_folder_and_the_file_in_it_load_the_same():
    folder = tekken_folder()
    by_folder, by_file = Tokenizer.load(folder), Tokenizer.load(str(folder / "tekken.json"))
    assert by_folder.encode("Good morning") == by_file.encode("Good morning")
    assert by_folder.version == "v13"
    assert by_folder.vocab_size == 2024


def test_control_tokens_are_read_from_the_file_not_assumed(tmp_path: Path):
    content = tekken_content()
    names = {"[THINK]": "<SPECIAL_34>", "<SPECIAL_500>": "[THINK]"}
    content["special_tokens"] = [
        dict(token, token_str=names.get(token["token_str"], token["token_str"]))
        for token in content["special_tokens"]
    ]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special.think == 500
    assert tokenizer.control_name(500) == "[THINK]"
    assert tokenizer.special.end_think == 35


def test_a_file_reached_by_a_link_loads(tmp_path: Path):
    blob = tmp_path / "0123abcd"
    blob.write_bytes((tekken_folder() / "tekken.json").read_bytes())
    (tmp_path / "tekken.json").symlink_to(blob)
    assert Tokenizer.load(tmp_path).version == "v13"


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_older_models_have_no_thinking_tokens(version: str):
    tokenizer = older_tokenizer(version)
    assert tokenizer.special.think is None
    assert tokenizer.special.end_think is None
    assert not tokenizer.has_thinking_tokens
    assert tokenizer.has_image_tokens


def test_control_tokens_spelled_in_text_stay_text():
    tokenizer = full_tokenizer()
    tokens = tokenizer.encode("[THINK]a[/THINK]</s>[IMG]")
    assert not any(tokenizer.is_control(token) for token in tokens)
    assert tokenizer.decode(tokens) == "[THINK]a[/THINK]</s>[IMG]"


def test_control_tokens_and_ids_past_the_vocabulary_are_no_text():
    tokenizer = small_tokenizer()
    tokens = [tokenizer.special.bos, *tokenizer.encode("ok"), 2024, 131071, tokenizer.special.eos]
    assert tokenizer.decode(tokens) == "ok"
    assert "".join(stream(tokenizer, tokens)) == "ok"


# Streaming


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("tokenizer", [small_tokenizer, full_tokenizer])
def test_every_language_survives_token_by_token(name: str, tokenizer):
    tokens = tokenizer().encode(TEXTS[name])
    pieces = stream(tokenizer(), tokens)
    assert "".join(pieces) == TEXTS[name]
    assert not any(REPLACEMENT in piece for piece in pieces)


@settings(max_examples=300)
@given(st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT)))
def test_streaming_equals_the_whole_and_never_breaks_a_character(text: str):
    tokenizer = small_tokenizer()
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_streaming_any_bytes_equals_decoding_them_at_once(data: bytes):
    tokenizer = small_tokenizer()
    bytes_as_tokens = [1000 + byte for byte in data]  # the first 256 ranks are the bytes
    assert "".join(stream(tokenizer, bytes_as_tokens)) == data.decode("utf-8", "replace")
    assert tokenizer.decode(bytes_as_tokens) == data.decode("utf-8", "replace")


def test_a_character_cut_off_at_the_end_shows_only_when_flushed():
    tokenizer = small_tokenizer()
    first_two_bytes = [1000 + byte for byte in "🚀".encode()[:2]]
    assert stream(tokenizer, first_two_bytes) == ["", "", REPLACEMENT]


def test_after_a_flush_the_next_character_starts_afresh():
    tokenizer = small_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    detokenizer.feed(1000 + 0xF0)
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""
    assert "".join(detokenizer.feed(t) for t in tokenizer.encode("né")) == "né"


# Errors


def load_error(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_tekken_json_says_where_to_get_it(tmp_path: Path):
    message = load_error(tmp_path)
    assert f"{tmp_path} has no tekken.json" in message
    assert "original model's repository" in message


def test_a_path_that_does_not_exist_is_named(tmp_path: Path):
    assert f"there is no file {tmp_path / 'nowhere'}" in load_error(tmp_path / "nowhere")


def test_another_kind_of_tokenizer_file_is_refused_by_name(tmp_path: Path):
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    assert f"{other} is not a Tekken tokenizer" in load_error(other)


def test_an_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "tekken.json").touch()
    assert "it is empty" in load_error(tmp_path)


def test_a_truncated_file_is_called_damaged(tmp_path: Path):
    whole = (tekken_folder() / "tekken.json").read_text()
    (tmp_path / "tekken.json").write_text(whole[: len(whole) // 2])
    assert "damaged or cut short" in load_error(tmp_path)


def test_bytes_that_are_no_text_are_called_damaged(tmp_path: Path):
    (tmp_path / "tekken.json").write_bytes(b"\xff\xfe\x00garbage")
    assert "damaged or cut short" in load_error(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"config": {}}'])
def test_json_that_is_no_vocabulary_is_refused(tmp_path: Path, content: str):
    (tmp_path / "tekken.json").write_text(content)
    assert "not a Tekken vocabulary" in load_error(tmp_path)


def test_an_unknown_version_is_named(tmp_path: Path):
    (tmp_path / "tekken.json").write_text(json.dumps(tekken_content(version="v99")))
    assert "v99" in load_error(tmp_path)


def test_a_vocabulary_with_missing_ranks_is_refused(tmp_path: Path):
    content = tekken_content(ranks=300)
    content["vocab"] = content["vocab"][:280]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert "not a Tekken vocabulary" in load_error(tmp_path)


def test_a_vocabulary_without_end_of_turn_is_refused(tmp_path: Path):
    content = tekken_content()
    content["special_tokens"][2] = dict(content["special_tokens"][2], token_str="<SPECIAL_2>")
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert "</s>" in load_error(tmp_path)


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tekken.json").write_text("{}")

    def refuse(*args: object, **kwargs: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mistral_common.tokens.tokenizers.tekken.open", refuse, raising=False)
    assert "cannot be read: Permission denied" in load_error(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("config", "default_num_special_tokens", 10**12),
        ("config", "default_num_special_tokens", 10**30),
        ("config", "default_num_special_tokens", 1e12),
        ("config", "default_vocab_size", 10**12),
        ("image", "image_patch_size", 10**9),
        ("image", "image_patch_size", 0),
        ("image", "image_patch_size", 14.5),
        ("image", "spatial_merge_size", 10**9),
        ("image", "spatial_merge_size", -2),
        ("image", "spatial_merge_size", "2"),
        ("image", "max_image_size", 10**9),
        ("image", "max_image_size", None),
    ],
)
def test_a_number_beyond_reason_is_refused_at_once(
    tmp_path: Path, part: str, field: str, value: object
):
    content = tekken_content()
    content[part] = dict(content[part]) | {field: value}
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert f"{tmp_path}/tekken.json is not a Tekken vocabulary" in load_error(tmp_path)


@pytest.mark.parametrize("rank", [10**12, -1, 2**31])
def test_a_control_token_outside_of_the_vocabulary_is_refused(tmp_path: Path, rank: int):
    content = tekken_content()
    content["special_tokens"] = [
        dict(token, rank=rank) if token["token_str"] == "</s>" else token
        for token in content["special_tokens"]
    ]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert f"</s> has the id {rank}" in load_error(tmp_path)


@pytest.mark.parametrize("nested", ['{"config":' * 100_000, "[" * 100_000])
def test_a_file_nested_too_deeply_is_refused(tmp_path: Path, nested: str):
    (tmp_path / "tekken.json").write_text(nested)
    assert "damaged or cut short" in load_error(tmp_path)
