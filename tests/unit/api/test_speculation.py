"""The option `speculation` and the load option `draft`, as an app meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from magistral_mlx import Magistral
from magistral_mlx.engine.speculate.costs import PassCosts
from magistral_mlx.engine.speculate.measured import pass_costs, store
from magistral_mlx.errors import InvalidOption, OutOfMemory, TokenizerError
from magistral_mlx.events import Stats, Text
from tests.checkpoints import tiny_config, write_hf_checkpoint
from training.tekken import write_tekken


@pytest.mark.slow
def test_text_that_repeats_itself_takes_fewer_passes_and_is_the_same(endless: Magistral) -> None:
    plain = endless.generate("Hi", max_tokens=300, speculation="off")
    guessed = endless.generate("Hi", max_tokens=300)
    assert guessed.text == plain.text
    assert (plain.stats.tokens_per_pass, plain.stats.drafted) == (1, 0)
    assert guessed.stats.tokens_per_pass > 3
    assert guessed.stats.accepted > 200
    assert guessed.stats.as_dict()["tokens_per_pass"] == guessed.stats.tokens_per_pass


@pytest.mark.slow
def test_an_answer_that_a_text_ends_is_cut_there_however_far_the_guesses_went(
    endless: Magistral,
) -> None:
    settings = {"max_tokens": 300, "stop": "1a2b3c" * 20, "seed": 1}
    plain = endless.generate("Hi", **settings, speculation="off")
    guessed = endless.generate("Hi", **settings, speculation="ngram")
    assert guessed.finish_reason == "stop"
    assert (guessed.text, guessed.stats.answer_tokens) == (plain.text, plain.stats.answer_tokens)
    # What was guessed beyond is not held: the next answer goes on from what was given out.
    again = endless.generate("Hi", max_tokens=100, seed=1)
    assert again.text == endless.generate("Hi", max_tokens=100, seed=1, speculation="off").text


def test_an_answer_that_is_stopped_by_hand_has_no_token_twice(endless: Magistral) -> None:
    stream = endless.stream("Hi", max_tokens=500)
    text = ""
    for event in stream:
        text += event.text if isinstance(event, Text) else ""
        if len(text) > 100:
            stream.cancel()
    assert text == ("1a2b3c" * len(text))[: len(text)]


@pytest.mark.parametrize("option", ["fast", None, 3])
def test_an_unknown_way_to_guess_is_refused(talker: Magistral, option: object) -> None:
    with pytest.raises(
        InvalidOption, match=r"speculation is .*; it must be one of auto, off, ngram, draft\."
    ):
        talker.generate("Hi", speculation=option)  # type: ignore[arg-type]


def test_a_draft_model_that_was_not_loaded_is_told_how_to_load(talker: Magistral) -> None:
    with pytest.raises(InvalidOption, match=r"no draft model was loaded.*--draft NAME"):
        talker.generate("Hi", speculation="draft")


@pytest.mark.slow
def test_a_draft_model_guesses_and_changes_nothing(
    endless_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = PassCosts(((1, 1.0), (8, 1.0)))
    monkeypatch.setattr("magistral_mlx.runtime.speculation.pass_costs", lambda *_: free)
    with Magistral.load(endless_folder, draft=endless_folder, context=2000) as magistral:
        plain = magistral.generate("Hi", max_tokens=80, speculation="off", seed=1)
        # As large as the model that it guesses for, it does not pay but is tried now and then.
        drafted = magistral.generate("Hi", max_tokens=200, speculation="draft", seed=1)
        assert drafted.text.startswith(plain.text)
        assert 0 < drafted.stats.accepted == drafted.stats.drafted < 20
        together = magistral.plan.peak.weights
    with Magistral.load(endless_folder, context=2000) as magistral:
        assert together > 2 * magistral.plan.peak.weights  # its caches were planned for as well


def test_a_draft_model_with_another_vocabulary_is_refused(
    endless_folder: Path, tmp_path: Path
) -> None:
    larger = write_hf_checkpoint(tmp_path / "larger", config=tiny_config(vision=False))
    with pytest.raises(TokenizerError, match=r"it has 1,280 tokens, not 2,048\. Name one of"):
        Magistral.load(endless_folder, draft=larger)
    other = write_hf_checkpoint(
        tmp_path / "other", config=tiny_config(vision=False, vocab_size=2048)
    )
    write_tekken(other / "tekken.json", 900)
    with pytest.raises(TokenizerError, match=r"its token 1900 is b'', not b'"):
        Magistral.load(endless_folder, draft=other)


def test_a_draft_model_that_does_not_fit_is_refused(endless_folder: Path) -> None:
    request = {"context": 90_000, "kv": "full", "memory_limit": 250 << 20}
    with Magistral.load(endless_folder, **request) as magistral:
        assert magistral.plan.headroom > 0
    with pytest.raises(OutOfMemory):
        Magistral.load(endless_folder, **request, draft=endless_folder)


def test_tokens_a_pass_leave_the_first_token_out() -> None:
    assert Stats(5, 0, 9, 1, 1, 1, 0, passes=4).tokens_per_pass == 2
    assert Stats(5, 0, 1, 1, 1, 1, 0).tokens_per_pass == 1


def test_costs_that_were_measured_are_those_of_their_model_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    built_in = pass_costs("this", 100)
    measured = PassCosts(((1, 1.0), (4, 1.5)), long=((1, 1.0), (4, 2.5)))
    path = store("this", 100, measured)
    store("this", 200, PassCosts(((1, 1.0), (2, 3.0))))
    assert pass_costs("this", 100) == measured
    assert pass_costs("this", 300) == pass_costs("that", 100) == built_in
    for damage in (
        "{",
        "[]",
        path.read_text().replace("1.5", '"x"'),
        path.read_text()[:40],
        path.read_text().replace("2.5", "0.5"),
    ):
        path.write_text(damage)
        assert pass_costs("this", 100) == built_in
    store("this", 100, measured)
    assert pass_costs("this", 100) == measured
