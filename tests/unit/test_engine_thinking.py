"""The thinking trace under control, as a consumer of the tokens sees it."""

from __future__ import annotations

from typing import Any

import pytest

from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.engine.vocabulary import Vocabulary
from tests.engine_models import TableModel, ids_of, start, tokens_of

OPEN, CLOSE, EOS, CALL = 60, 61, 62, 63
CLOSING = (50, 51, 52)
EXITS = frozenset((EOS, CALL))


def thinking(**options: Any) -> ThinkingRules:
    return ThinkingRules(OPEN, CLOSE, **{"exits": EXITS, "closing": CLOSING, **options})


def ask(model: TableModel, limits: ThinkingRules | None, **options: Any) -> Generation:
    return start(model, [0], **{"stop_tokens": {EOS}, "thinking": limits, **options})


# 0 [THINK] 1 2 3 ... 9 [/THINK] 20 21 22 </s>
WRITES = {0: OPEN, OPEN: 1, 9: CLOSE, CLOSE: 20, 22: EOS}


def test_a_trace_within_its_limits_is_left_alone() -> None:
    free = ids_of(ask(TableModel.successors(WRITES), None))
    generation = ask(TableModel.successors(WRITES), thinking(budget=20, minimum=5))
    assert ids_of(generation) == free == [OPEN, *range(1, 10), CLOSE, 20, 21, 22, EOS]
    assert (generation.thinking_end, generation.finish) == ("model", "stop")


def test_at_the_budget_the_phrase_and_the_mark_are_put_and_the_answer_follows() -> None:
    generation = ask(TableModel.successors(WRITES), thinking(budget=7))
    tokens = tokens_of(generation)
    trace = [OPEN, 1, 2, 3, 4, *CLOSING, CLOSE]
    assert [token.id for token in tokens] == [*trace, 20, 21, 22, EOS]
    assert [token.id for token in tokens if token.forced == "budget"] == [*CLOSING, CLOSE]
    assert generation.thinking_end == "budget"


@pytest.mark.parametrize("budget", range(1, 12))
def test_a_trace_is_never_longer_than_its_budget(budget: int) -> None:
    tokens = ids_of(ask(TableModel.successors(WRITES), thinking(budget=budget)))
    assert tokens.index(CLOSE) - 1 == budget


def test_a_budget_too_small_for_the_phrase_goes_without_it() -> None:
    tokens = ids_of(ask(TableModel.successors(WRITES), thinking(budget=3)))
    assert tokens[:5] == [OPEN, 1, 2, 3, CLOSE]


def test_near_the_budget_the_trace_is_cut_at_the_end_of_a_sentence() -> None:
    pieces = [b"x" for _ in range(60)] + [b""] * 4
    pieces[33] = b"end."
    vocabulary = Vocabulary(pieces, EOS, lambda text: [])
    writes = {0: OPEN, OPEN: 1, CLOSE: 55, 55: EOS}
    generation = ask(
        TableModel.successors(writes), thinking(budget=40), limit=60, vocabulary=vocabulary
    )
    assert ids_of(generation) == [OPEN, *range(1, 34), *CLOSING, CLOSE, 55, EOS]


def test_a_minimum_keeps_the_model_from_closing_its_trace() -> None:
    writes = {0: OPEN, OPEN: CLOSE, CLOSE: 20, 20: EOS}
    free = ids_of(ask(TableModel.successors(writes), thinking()))
    assert free == [OPEN, CLOSE, 20, EOS]
    tokens = ids_of(ask(TableModel.successors(writes), thinking(minimum=6), limit=60))
    assert tokens.index(CLOSE) == 7
    assert tokens[0] == OPEN


@pytest.mark.parametrize("exit_token", [EOS, CALL])
def test_a_minimum_keeps_the_model_from_leaving_its_trace_another_way(exit_token: int) -> None:
    writes = {0: OPEN, OPEN: exit_token, CALL: 30}
    tokens = ids_of(ask(TableModel.successors(writes), thinking(minimum=6)))
    assert exit_token not in tokens[:7]
    assert ids_of(ask(TableModel.successors(writes), thinking()))[:2] == [OPEN, exit_token]


def test_a_trace_that_ends_the_turn_was_ended_by_the_model() -> None:
    generation = ask(TableModel.successors({0: OPEN, OPEN: 1, 1: EOS}), thinking())
    assert ids_of(generation) == [OPEN, 1, EOS]
    assert generation.thinking_end == "model"


def test_thinking_that_is_off_opens_no_trace() -> None:
    tokens = ids_of(ask(TableModel.successors(WRITES), thinking(enabled=False)))
    assert OPEN not in tokens


def test_thinking_that_is_off_closes_none_either() -> None:
    writes = {0: 1, 1: CLOSE, CLOSE: 2, 2: EOS}
    tokens = ids_of(ask(TableModel.successors(writes), thinking(enabled=False)))
    assert CLOSE not in tokens


def test_a_model_that_opens_no_trace_is_left_alone() -> None:
    writes = {0: 1, 5: CLOSE, CLOSE: 6, 9: EOS}
    generation = ask(TableModel.successors(writes), thinking(budget=2, minimum=1))
    assert ids_of(generation) == [1, 2, 3, 4, 5, CLOSE, 6, 7, 8, 9, EOS]
    assert generation.thinking_end is None


def test_a_trace_that_the_prompt_has_opened_counts_from_there() -> None:
    writes = {CLOSE: 20, 20: EOS}
    generation = ask(TableModel.successors(writes), thinking(inside=True, budget=5))
    assert ids_of(generation) == [1, 2, *CLOSING, CLOSE, 20, EOS]


def test_a_trace_that_was_closed_for_the_model_is_not_opened_again() -> None:
    writes = {0: OPEN, OPEN: 1, CLOSE: OPEN}
    tokens = ids_of(ask(TableModel.successors(writes), thinking(budget=7)))
    assert tokens.count(OPEN) == 1


def test_a_budget_holds_for_all_traces_together() -> None:
    writes = {0: OPEN, OPEN: 1, 2: CLOSE, CLOSE: 30, 30: OPEN}
    tokens = ids_of(ask(TableModel.successors(writes), thinking(budget=7)))
    assert tokens[:12] == [OPEN, 1, 2, CLOSE, 30, OPEN, 1, 2, *CLOSING, CLOSE]


def test_a_trace_that_goes_round_is_closed_and_reported() -> None:
    writes = {0: OPEN, OPEN: 1, 19: 1, CLOSE: 20, 20: EOS}
    generation = ask(TableModel.successors(writes), thinking(), limit=1000)
    tokens = tokens_of(generation)
    assert 256 <= len(tokens) < 320
    assert [token.id for token in tokens[-6:]] == [*CLOSING, CLOSE, 20, EOS]
    assert {token.forced for token in tokens[-6:-2]} == {"loop"}
    assert generation.thinking_end == "loop"


def test_a_loop_is_let_be_where_the_detector_is_off() -> None:
    writes = {0: OPEN, OPEN: 1, 12: 1}
    generation = ask(TableModel.successors(writes), thinking(loops=None), limit=1000)
    assert len(ids_of(generation)) == 1000
    assert (generation.thinking_end, generation.finish) == (None, "length")


def test_the_limit_holds_inside_the_closing_phrase() -> None:
    generation = ask(TableModel.successors(WRITES), thinking(budget=7), limit=6)
    assert ids_of(generation) == [OPEN, 1, 2, 3, 4, CLOSING[0]]
    assert generation.finish == "length"
