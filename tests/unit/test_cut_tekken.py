"""The small tokenizer that the demo and the tests use is a v13 Tekken in mistral-common's eyes."""

import pytest
from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from training.tekken import NAMED_SPECIALS, cut_tekken, write_tekken

RANKS = 1024


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "tekken.json"
    write_tekken(path, RANKS)
    assert [p.name for p in path.parent.iterdir()] == ["tekken.json"]
    return MistralTokenizer.from_file(str(path))


def test_it_is_version_13_with_thinking_and_images(tokenizer):
    tekken = tokenizer.instruct_tokenizer.tokenizer
    assert tekken.version.value == "v13"
    assert tekken.n_words == 1000 + RANKS
    assert tekken.image.image_patch_size == 14
    assert tekken.image.spatial_merge_size == 2
    for rank, name in NAMED_SPECIALS.items():
        assert tekken.get_special_token(name) == rank


def test_text_in_any_script_survives(tokenizer):
    tekken = tokenizer.instruct_tokenizer.tokenizer
    text = "Grüße, नमस्ते, こんにちは, 한국어, שלום… 🙂 37 + 85"
    assert tekken.decode(tekken.encode(text, bos=False, eos=False)) == text


def test_a_thinking_system_prompt_becomes_control_tokens(tokenizer):
    thinking = ThinkChunk(thinking="Draft.", closed=True)
    system = SystemMessage(content=[TextChunk(text="Think:"), thinking])
    request = ChatCompletionRequest(messages=[system, UserMessage(content="Hi")])
    encoded = tokenizer.encode_chat_completion(request)
    expected = "<s>[SYSTEM_PROMPT]Think:[THINK]Draft.[/THINK][/SYSTEM_PROMPT][INST]Hi[/INST]"
    keep = SpecialTokenPolicy.KEEP
    assert tokenizer.decode(tokens=encoded.tokens, special_token_policy=keep) == expected


@pytest.mark.parametrize("ranks", [0, 255, 10_000_000])
def test_a_vocabulary_without_every_byte_or_beyond_the_source_is_refused(ranks):
    with pytest.raises(ValueError, match=str(ranks)):
        cut_tekken(ranks)
