"""Many workers in virtual time, with everything that can go wrong between them. `simulation` says how."""

from __future__ import annotations

import pytest

from tests.stores.support import DAY_S, NOON_S, budget

from .simulation import World, simulate

LIMIT = 1_000_000_000
MIDNIGHT_S = NOON_S + DAY_S / 2


@pytest.mark.parametrize(
    ("workers", "calls_a_second", "for_s"), [(1, 600.0, 6.0), (3, 200.0, 6.0), (16, 40.0, 6.0), (64, 10.0, 6.0)]
)
def test_workers_spend_the_limit_to_its_end_and_never_pass_it(
    workers: int, calls_a_second: float, for_s: float
) -> None:
    seen = simulate(
        World(
            workers=workers,
            budgets=[budget("tenant=*", LIMIT)],
            calls_a_second=calls_a_second,
            for_s=for_s,
            hold_nano_usd=600_000,
        )
    )
    assert seen.refused > 100
    assert (seen.over, seen.committed_over) == (0, 0)
    assert 0.99 * LIMIT < sum(seen.spent.values()) == seen.charged_nano_usd <= LIMIT
    assert seen.held == sum(seen.idle_credit.values()) == 0
    assert max(seen.idle_at_refusals) < 0.01 * LIMIT


def test_512_workers_on_one_budget_spend_it_to_its_end_and_never_pass_it() -> None:
    world = World(
        workers=512,
        budgets=[budget("tenant=*", LIMIT)],
        calls_a_second=4.0,
        for_s=2.2,
        hold_nano_usd=1_500_000,
        extended=0.0,
        deferred=0.0,
    )
    seen = simulate(world)
    assert seen.refused > 100
    assert (seen.over, seen.committed_over) == (0, 0)
    assert 0.99 * LIMIT < sum(seen.spent.values()) == seen.charged_nano_usd <= LIMIT
    assert seen.held == 0


@pytest.mark.parametrize("seed", range(2))
def test_with_losses_delays_and_crashes_nothing_is_spent_twice_and_what_the_dead_had_stays_held(seed: int) -> None:
    seen = simulate(
        World(
            workers=12,
            budgets=[budget("tenant=*", LIMIT), budget("global", 2 * LIMIT)],
            calls_a_second=60.0,
            for_s=6.0,
            hold_nano_usd=600_000,
            seed=seed,
            lost=0.03,
            crashes=4,
            most_delay_s=0.1,
        )
    )
    assert seen.refused > 100
    assert (seen.over, seen.committed_over) == (0, 0)
    mine = {counter: spent for counter, spent in seen.spent.items() if counter.startswith("tenant")}
    lost = sum(credit for counter, credit in seen.dead_credit.items() if counter.startswith("tenant"))
    assert 0 < lost < 0.15 * LIMIT
    assert sum(mine.values()) + lost + seen.held >= 0.99 * LIMIT


@pytest.mark.parametrize("lost", [0.0, 0.03])
def test_a_limit_is_passed_by_no_more_than_what_calls_cost_above_their_holds(lost: float) -> None:
    seen = simulate(
        World(
            workers=8,
            budgets=[budget("tenant=*", LIMIT)],
            calls_a_second=60.0,
            for_s=6.0,
            hold_nano_usd=600_000,
            dearer=0.1,
            lost=lost,
        )
    )
    assert seen.refused > 100
    assert seen.excess_nano_usd > 0.05 * LIMIT
    # Only what comes when nothing is left any more is above the limit, whatever was before has refused others.
    assert max(seen.over, seen.committed_over) < 0.02 * seen.excess_nano_usd


def test_at_a_windows_end_each_window_is_charged_its_own_calls_and_none_passes_its_limit() -> None:
    seen = simulate(
        World(
            workers=8,
            budgets=[budget("tenant=*", LIMIT // 4)],
            calls_a_second=40.0,
            for_s=6.0,
            hold_nano_usd=500_000,
            start_s=MIDNIGHT_S - 3.0,
            lost=0.01,
        )
    )
    assert (seen.over, seen.committed_over) == (0, 0)
    assert len(seen.spent) == 2
    assert min(seen.spent.values()) > 0.9 * LIMIT // 4
    assert max(seen.spent.values()) <= LIMIT // 4


def test_leases_need_a_tenth_of_the_store_calls_even_of_calls_that_take_their_time() -> None:
    world = World(
        workers=1,
        budgets=[budget("tenant=*", LIMIT * 100)],
        calls_a_second=1500.0,
        for_s=1.5,
        extended=0.0,
        deferred=0.0,
    )
    leased = simulate(world)
    world.lease = False
    direct = simulate(world)
    assert direct.operations_per_call == pytest.approx(2.0, abs=0.01)
    assert leased.operations_per_call < 0.25
    assert leased.waited_s / leased.admitted < 0.1 * direct.waited_s / direct.admitted
