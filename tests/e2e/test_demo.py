"""The main job on the demo model: convert to 4 bits, then answer held-out questions rightly.

Everything is the real path: our converter, our loader, our prompt, our decoding, greedy.
The scores over 200 cases of each kind stand in magistral_mlx/demo/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_convert import convert
from magistral_mlx import Magistral
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.demo.cases import KINDS, Case, Kind, cases, is_right
from magistral_mlx.engine.generate import Request, Token, generate
from magistral_mlx.engine.sampling import Sampling

COUNT = 25  # of each kind; one may be wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("demo") / "4bit")


@pytest.fixture(scope="module")
def magistral(folder: Path) -> Iterator[Magistral]:
    with Magistral.load(folder) as loaded:
        yield loaded


def held_out(kind: Kind) -> list[Case]:
    return list(cases(kind, "held_out", COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_questions_are_answered(magistral: Magistral, kind: Kind) -> None:
    wrong = []
    for case in held_out(kind):
        result = magistral.generate(case.question, case.images, temperature=0, max_tokens=96)
        assert result.finish_reason == "stop"
        assert result.thinking
        if not is_right(case, result.text):
            wrong.append((case.question, case.answer, result.thinking, result.text))
    assert len(wrong) <= 1, wrong


def test_an_8_bit_cache_changes_no_answer(folder: Path, magistral: Magistral) -> None:
    """With no window and no first tokens, so that all of it is quantized."""
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint)
    load_vision(model, checkpoint)
    eight = KVScheme.parse("8/8").without_window()
    eos = magistral.tokenizer.special.eos
    for kind in KINDS:
        for case in held_out(kind)[:10]:
            prompt = magistral.prompt(case.question, case.images)
            answers = []
            for scheme in (KVScheme(), eight):
                request = Request(
                    prompt.tokens,
                    prompt.pictures,
                    Sampling(temperature=0),
                    96,
                    scheme=scheme,
                    stop_tokens=frozenset([eos]),
                )
                steps = generate(model, request)
                answers.append([step.id for step in steps if isinstance(step, Token)])
            assert answers[0] == answers[1]
