"""Log-probabilities of a prompt's own tokens, compared with those of a pass over all of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_mlx import (
    Assistant,
    Finished,
    InvalidOption,
    Magistral,
    Prefill,
    PromptLogprobs,
    User,
)
from magistral_mlx.backend import mx
from magistral_mlx.chat.messages import RawPrompt
from tests.engine_models import start, tiny_model

PROMPT = [int(id) for id in np.random.default_rng(5).integers(40, 1280, 53)]


def expected(prompt: list[int]) -> NDArray[np.float64]:
    """(L, vocab_size) log-softmax of one pass's logits."""
    model = tiny_model()
    h = model(model.embed(mx.array([prompt])), model.make_caches())
    logits = np.array(model.logits(h)[0], np.float64)
    highest = logits.max(-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))


@pytest.mark.parametrize("top", [0, 1, 4])
@pytest.mark.parametrize(("chunk", "rows"), [(7, 3), (16, 5), (1, 1), (53, 128), (52, 2)])
def test_they_are_those_of_a_pass_over_the_whole_prompt(chunk: int, rows: int, top: int):
    sequence = start(tiny_model(), PROMPT, chunk=chunk, prompt_logprobs=top, head_rows=rows)
    while sequence.prefilling:
        sequence.prefill()
    assert sequence.prompt_logprobs is not None
    found = sequence.prompt_logprobs.read()
    wanted = expected(PROMPT)[:-1]
    assert len(found) == len(PROMPT) - 1
    chosen = [logprob for logprob, _ in found]
    np.testing.assert_allclose(chosen, wanted[range(52), PROMPT[1:]], atol=1e-4)
    for row, (_, likeliest) in zip(wanted, found, strict=True):
        values = [value for _, value in likeliest]
        np.testing.assert_allclose(values, np.sort(row)[::-1][:top], atol=1e-4)
        np.testing.assert_allclose(values, row[[id for id, _ in likeliest]], atol=1e-4)


def test_cached_tokens_have_theirs_too_and_the_answer_stays_the_same(endless: Magistral):
    raw = RawPrompt("1, 2, 3, and so on to the end of a prompt that is cached.")
    options = {"max_tokens": 6, "temperature": 0.0}
    plain = endless.generate(raw, **options)  # type: ignore[arg-type]
    scored = endless.generate(raw, prompt_logprobs=2, **options)  # type: ignore[arg-type]
    assert (scored.text, plain.prompt_logprobs) == (plain.text, ())
    first, *rest = scored.prompt_logprobs
    ids = endless.prompt(raw).tokens.tolist()
    assert [first.id, *(token.id for token in rest)] == ids
    assert first.logprob is None and first.top == ()
    assert all(token.logprob is not None and len(token.top) == 2 for token in rest)
    assert scored.stats.cached_tokens == 0
    assert endless.generate(raw, **options).stats.cached_tokens > 0  # type: ignore[arg-type]


def test_an_answer_that_becomes_a_prompt_keeps_its_log_probabilities(endless: Magistral):
    raw = RawPrompt("1, 2")
    answer = endless.generate(raw, max_tokens=12, temperature=5.0, top_p=1.0, top_logprobs=3)
    ids = (*endless.prompt(raw).tokens.tolist(), *(token.id for token in answer.logprobs))
    scored = endless.generate(RawPrompt(ids), max_tokens=0, prompt_logprobs=3)
    for token, again in zip(
        answer.logprobs, scored.prompt_logprobs[-len(answer.logprobs) :], strict=True
    ):
        assert (token.id, token.token) == (again.id, again.token)
        assert token.logprob == pytest.approx(again.logprob, abs=1e-4)
        assert [p for *_, p in token.top] == pytest.approx([p for *_, p in again.top], abs=1e-4)


def test_no_token_need_be_generated(endless: Magistral):
    raw = RawPrompt("Only the prompt")
    events = list(endless.stream(raw, max_tokens=0, prompt_logprobs=0))
    after = [type(event) for event in events if not isinstance(event, Prefill)]
    assert after == [PromptLogprobs, Finished]
    result = endless.generate(raw, max_tokens=0, prompt_logprobs=0, n=2)
    assert [(one.text, one.usage.completion_tokens) for one in result.samples] == [("", 0)] * 2
    assert result.finish_reason == "length"
    assert result.samples[0].prompt_logprobs == result.samples[1].prompt_logprobs != ()
    with pytest.raises(InvalidOption, match="max_tokens is 0; it must be 1 or more"):
        endless.generate(raw, max_tokens=0)


def test_requests_beside_it_are_answered_as_alone(endless: Magistral):
    raw = RawPrompt("1, 2, 3 beside another")
    alone = endless.generate(raw, prompt_logprobs=1, max_tokens=0)
    talking = endless.stream("Count", max_tokens=300, temperature=0)
    next(iter(talking))
    beside = endless.generate(raw, prompt_logprobs=1, max_tokens=0)
    talking.cancel()
    for one, other in zip(alone.prompt_logprobs[1:], beside.prompt_logprobs[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_no_turn_is_dropped_for_an_answer_that_will_not_come(talker_folder: Path):
    messages = [User("word " * 100), Assistant("Yes."), User("word " * 70)]
    options: dict[str, Any] = {"max_tokens": 0, "prompt_logprobs": 0, "overflow": "drop"}
    with Magistral.load(talker_folder, context=400) as magistral:
        prompt = len(magistral.prompt(messages, system=None))
        assert 300 < prompt <= 400  # less is left than an answer is given room for
        scored = magistral.generate(messages, system=None, **options)
    assert scored.dropped is None
    assert len(scored.prompt_logprobs) == prompt
