"""Which answers fit into memory together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_mlx.memory.admission import Budget, Reservation
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.machine import GIB, named_machine
from magistral_mlx.memory.peak import GPU
from magistral_mlx.memory.plan import Plan, PlanRequest


def plan(machine: str = "32GB", **request: object) -> Plan:
    return make_plan(magistral_small(), named_machine(machine), GPU, PlanRequest(**request))  # type: ignore[arg-type]


PLANS = [plan("24GB"), plan("32GB"), plan("64GB"), plan("32GB", context=131_072)]


def filled(budget: Budget, prompt: int, limit: int, *, asked: bool = True) -> Reservation:
    return budget.reservation(prompt, limit, asked=asked).prefilled()


def most(budget: Budget, prompt: int, limit: int, *, asked: bool) -> int:
    """Such answers that fit at once."""
    one = filled(budget, prompt, limit, asked=asked)
    count = 1
    while budget.fits([one] * (count + 1)):
        count += 1
    return count


def room(plan: Plan) -> int:
    """Bytes for caches and work."""
    return plan.total - plan.peak.weights - plan.peak.vision


# What fits


def test_one_answer_that_fills_the_context_fits() -> None:
    for each in PLANS:
        assert Budget(each).fits([filled(Budget(each), each.context - 1, 1)])


def test_two_answers_that_fill_the_context_do_not_fit_where_one_hardly_does() -> None:
    budget = Budget(PLANS[0])
    context = PLANS[0].context
    whole = filled(budget, context // 2, context // 2)
    assert budget.fits([whole])
    assert not budget.fits([whole.holding(context), whole.holding(context)])


def test_a_32_gb_mac_answers_many_short_questions_at_once() -> None:
    budget = Budget(plan("32GB"))
    assert most(budget, 500, 1000, asked=True) >= 16
    assert most(budget, 500, 40_000, asked=False) >= 16


def test_an_answer_without_a_length_is_promised_some_thousand_tokens() -> None:
    reservation = Budget(plan("32GB")).reservation(500, 40_000, asked=False)
    assert (reservation.held, reservation.promised, reservation.most) == (1524, 4596, 40_500)


def test_one_with_a_length_is_promised_all_of_it() -> None:
    reservation = Budget(plan("32GB")).reservation(500, 8000, asked=True)
    assert (reservation.held, reservation.promised, reservation.most) == (1524, 8500, 8500)


def test_reading_a_prompt_takes_memory_until_it_has_been_read() -> None:
    budget = Budget(plan("32GB"))
    reservation = budget.reservation(20_000, 100, [(1540, 1540)], asked=True)
    assert reservation.prefill > 0.1 * GIB and reservation.features > 0.01 * GIB
    assert budget.active_bytes([reservation, reservation]) > budget.active_bytes(
        [reservation.prefilled(), reservation.prefilled()]
    )


def test_a_tower_that_is_not_in_the_plan_takes_memory_until_the_prompt_has_been_read() -> None:
    """Beside the work of whatever else runs."""
    plans = plan(), plan(images=0)
    budgets = [Budget(each) for each in plans]
    planned, unplanned = (b.reservation(100, 100, [(56, 56)], asked=True) for b in budgets)
    assert planned.tower == 0 < unplanned.tower == plans[1].model.weights.vision
    busy = replace(unplanned, prefill=plans[1].peak.workspace)
    more = budgets[1].active_bytes([busy]) - budgets[1].active_bytes([busy.prefilled()])
    assert more == busy.tower + busy.features


# How caches grow


def test_caches_grow_shortly_before_they_must() -> None:
    reservation = filled(Budget(plan("32GB")), 1000, 8000)
    assert reservation.held == 2024
    assert not reservation.short(1900)
    assert reservation.short(2000)
    grown = reservation.grown()
    assert grown.held == 2304 and not grown.short(2000)


def test_a_cache_with_room_for_the_whole_answer_grows_no_more() -> None:
    reservation = filled(Budget(plan("32GB")), 100, 500)
    assert reservation.held == reservation.most and not reservation.short(600)


def test_room_is_told_from_bytes() -> None:
    for each in PLANS:
        budget = Budget(each)
        for tokens in (100, 5000, each.context):
            assert budget.cache(budget.tokens(budget.cache(tokens))) == budget.cache(tokens)


# What holds for any of them

reservations = st.lists(
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000), st.booleans()),
    min_size=1,
    max_size=12,
)
plans = st.sampled_from(PLANS)


def admitted(budget: Budget, wanted: list[tuple[int, int, bool]]) -> list[Reservation]:
    """Those that are let in, in order."""
    running: list[Reservation] = []
    for prompt, limit, asked in wanted:
        reservation = filled(budget, prompt, limit, asked=asked)
        if not running or budget.fits([*running, reservation]):
            running.append(reservation)
    return running


@settings(max_examples=60)
@given(plans, reservations)
def test_caches_of_all_that_run_stay_within_the_plan(
    plan: Plan, wanted: list[tuple[int, int, bool]]
) -> None:
    budget = Budget(plan)
    running = admitted(budget, wanted)
    held = sum(budget.cache(reservation.held) for reservation in running)
    kept = max(0, plan.caches - budget.active_bytes(running))  # what earlier prompts may still take
    assert held + kept <= room(plan)


@settings(max_examples=40)
@given(plans, reservations, st.randoms(use_true_random=False))
def test_everybody_comes_to_the_promised_end(
    plan: Plan, wanted: list[tuple[int, int, bool]], rng: object
) -> None:
    """Whoever may grow does, in any order; those that reached their promise end."""
    budget = Budget(plan)
    running = admitted(budget, wanted)
    while running:
        running = [
            reservation for reservation in running if reservation.held < reservation.promised
        ]
        order = list(range(len(running)))
        rng.shuffle(order)  # type: ignore[attr-defined]
        moved = not running
        for n in order:
            held = min(running[n].grown().held, running[n].promised)
            grown = replace(running[n], held=held)
            tried = [*running[:n], grown, *running[n + 1 :]]
            if len(tried) == 1 or budget.fits(tried):
                running, moved = tried, True
        assert moved, "somebody must be able to go on"


@settings(max_examples=40)
@given(plans, reservations, st.integers(0, 11))
def test_what_fits_still_does_when_one_has_ended(
    plan: Plan, wanted: list[tuple[int, int, bool]], gone: int
) -> None:
    budget = Budget(plan)
    running = admitted(budget, wanted)
    rest = [reservation for n, reservation in enumerate(running) if n != gone]
    assert len(running) < 2 or budget.fits(rest)


@pytest.mark.parametrize("name", ["24GB", "32GB", "64GB"])
def test_one_that_runs_alone_leaves_what_it_does_not_hold_to_earlier_prompts(name: str) -> None:
    budget = Budget(plan(name))
    reservation = filled(budget, 1000, 500)
    assert budget.active_bytes([reservation]) == budget.cache(1500)
