from __future__ import annotations

import pytest

from askii_middleware.admission import BudgetState, Window
from askii_middleware.budgets import FOREVER_S, Budget
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.errors import StoreError
from askii_middleware.stores.base import DeadWorkerError, StaleFormsError

from .support import COUNTER, DAY_S, NOON_S, Client, budget

MIDNIGHT_S = int(NOON_S) + DAY_S // 2


async def test_a_call_without_budgets_is_admitted_and_meets_no_line(client: Client) -> None:
    admission = await client.reserve("a")
    assert admission.candidate == 0
    assert admission.admitted_at_s == NOON_S
    assert admission.states == ()
    assert (await client.store.totals()).held_nano_usd == 100


async def test_the_answer_shows_the_lines_as_they_were_before_the_hold(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300)
    await client.settle("a", 250)
    await client.reserve("b", 300)
    admission = await client.reserve("c", 450)
    assert admission.states == (
        BudgetState(
            counter=COUNTER,
            scope="tenant=acme",
            period="daily",
            limit_nano_usd=1000,
            spent_nano_usd=250,
            held_nano_usd=300,
            resets_at_s=MIDNIGHT_S,
        ),
    )


async def test_holds_fill_a_budget_to_the_last_nano_usd_and_not_beyond(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    assert (await client.reserve("a", 999)).candidate == 0
    refused = await client.reserve("b", 2)
    assert (refused.candidate, refused.reason) == (None, "held")
    assert refused.deciding is not None
    assert refused.deciding.counter == COUNTER
    assert (await client.reserve("c", 1)).candidate == 0
    assert await client.spent_held() == (0, 1000)


async def test_a_denial_holds_nothing_and_is_decided_anew(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100)
    assert (await client.reserve("b", 50)).candidate is None
    assert await client.spent_held() == (0, 100)
    await client.store.release("a")
    assert (await client.reserve("b", 50)).candidate == 0


async def test_spent_money_refuses_with_the_reason_spent(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100)
    await client.settle("a", 100)
    assert (await client.reserve("b", 1)).reason == "spent"


async def test_the_first_candidate_that_fits_is_held_for(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    admission = await client.reserve("a", 300, 200, 60, 10)
    assert admission.candidate == 2
    assert await client.spent_held() == (0, 60)


async def test_above_the_downgrade_mark_fallbacks_come_first(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60)
    assert (await client.reserve("b", 20, 10, downgrade_at_ppm=500_000)).candidate == 1


async def test_all_lines_are_held_or_none(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 150))
    await client.reserve("a", 100)
    assert (await client.reserve("b", 100)).candidate is None
    assert {state.scope: state.held_nano_usd for state in await client.status()} == {"tenant=acme": 100, "global": 100}


async def test_each_candidate_meets_its_own_lines(client: Client) -> None:
    client.declare(budget("model=big", 10), budget("model=small", 1000))
    request = client.request("a", 100, 100)
    big, small = (
        candidate._replace(matches=client.index.matches({"model": model}))
        for candidate, model in zip(request.candidates, ("big", "small"), strict=True)
    )
    request = client.request("a", candidates=(big, small))
    admission = await client.store.reserve(request)
    assert admission.candidate == 1
    assert [state.scope for state in admission.states] == ["model=small"]


async def test_a_repeated_reserve_gets_its_first_answer_and_holds_once(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("z", 50)
    first = await client.reserve("a", 100)
    client.clock.advance(5)
    assert await client.reserve("a", 700) == first
    assert await client.spent_held() == (0, 150)


async def test_a_repeated_reserve_is_answered_even_if_forms_and_worker_are_out_of_date(client: Client) -> None:
    first = await client.reserve("a")
    assert await client.reserve("a", forms_version=77, worker="nobody") == first


async def test_a_reserve_after_release_gets_the_first_answer_and_holds_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    first = await client.reserve("a")
    await client.store.release("a")
    assert await client.reserve("a") == first
    assert await client.spent_held() == (0, 0)


async def test_a_reserve_after_settlement_names_the_candidate_without_states_and_holds_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    first = await client.reserve("a", 2000, 100)
    client.clock.advance(3)
    await client.settle("a", 40)
    again = await client.reserve("a", 100)
    assert (again.candidate, again.admitted_at_s, again.states) == (1, first.admitted_at_s, ())
    assert await client.spent_held() == (40, 0)


async def test_a_reserve_built_from_other_forms_is_stale_and_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    for version in (-1, 1):
        with pytest.raises(StaleFormsError):
            await client.reserve("a", forms_version=version)
    assert (await client.store.totals()).held_nano_usd == 0


async def test_a_reserve_whose_windows_miss_the_stores_time_is_stale(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    past = (Window(0, 10), Window(10, 20))
    with pytest.raises(StaleFormsError):
        await client.reserve("a", windows={"daily|UTC": past})
    with pytest.raises(StaleFormsError):
        await client.reserve("a", windows={})
    assert (await client.store.totals()).held_nano_usd == 0


async def test_the_stores_clock_picks_between_the_windows_sent(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    request = client.request("a")
    client.clock.now_s = MIDNIGHT_S
    assert (await client.store.reserve(request)).states[0].counter == f"tenant=acme|daily|UTC|{MIDNIGHT_S}"
    request = client.request("b")
    client.clock.now_s = MIDNIGHT_S + DAY_S - 0.001
    assert (await client.store.reserve(request)).states[0].held_nano_usd == 0  # a's deadline has passed
    assert (await client.store.reserve(request)).states[0].resets_at_s == MIDNIGHT_S + DAY_S


async def test_a_new_window_starts_at_zero(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a")
    await client.settle("a", 100)
    assert (await client.reserve("b")).candidate is None
    client.clock.now_s = MIDNIGHT_S
    assert (await client.reserve("b")).candidate == 0


async def test_a_total_budget_never_resets(client: Client) -> None:
    client.declare(budget("tenant=*", 100, period="total"))
    (state,) = (await client.reserve("a")).states
    assert (state.counter, state.resets_at_s) == ("tenant=acme|total|UTC|0", FOREVER_S)


async def test_a_worker_without_a_live_heartbeat_cannot_hold(client: Client) -> None:
    with pytest.raises(DeadWorkerError):
        await client.reserve("a", worker="unknown")
    await client.store.heartbeat("x", 10)
    client.clock.advance(10)
    with pytest.raises(DeadWorkerError):
        await client.reserve("a", worker="x")
    assert (await client.store.totals()).held_nano_usd == 0


async def test_a_stored_budget_wins_over_the_declared_one(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.set(budget("tenant=*", 50))
    assert (await client.reserve("a", 60)).candidate is None
    await client.store.remove_budget("tenant=*|daily")
    await client.refresh()
    assert (await client.reserve("a", 60)).candidate == 0


async def test_a_changed_limit_keeps_the_spend(client: Client) -> None:
    await client.set(budget("tenant=acme", 100))
    await client.reserve("a", 100)
    await client.settle("a", 90)
    await client.set(budget("tenant=acme", 200))
    (state,) = (await client.reserve("b", 100)).states
    assert (state.limit_nano_usd, state.spent_nano_usd) == (200, 90)


async def test_exact_beats_star_and_a_disabled_one_falls_back(client: Client) -> None:
    await client.set(budget("tenant=*", 100), budget("tenant=acme", 500))
    assert (await client.reserve("a", 400)).candidate == 0
    await client.set(budget("tenant=acme", 500, enabled=False))
    assert (await client.reserve("b", 50)).candidate is None
    assert (await client.status())[0].limit_nano_usd == 100


async def test_an_exempt_tenant_has_no_limit_and_still_counts(client: Client) -> None:
    await client.set(budget("tenant=*", 100), budget("tenant=acme", None))
    admission = await client.reserve("a", 5000)
    assert admission.candidate == 0
    await client.settle("a", 4000)
    (state,) = await client.status()
    assert (state.limit_nano_usd, state.spent_nano_usd, state.held_nano_usd) == (None, 4000, 0)


async def test_a_limit_of_zero_refuses_free_calls_and_a_full_budget_does_not(client: Client) -> None:
    await client.set(budget("tenant=acme", 0), budget("tenant=other", 100))
    assert (await client.reserve("a", 0)).reason == "spent"
    await client.reserve("b", 100, tenant="other")
    assert (await client.reserve("c", 0, tenant="other")).candidate == 0


async def test_a_budget_in_coins_follows_the_rate_of_each_admission(client: Client) -> None:
    await client.set(Budget(scope="tenant=acme", limit_coins="0.5"))
    assert (await client.reserve("a", 500, rate="1000000")).candidate == 0
    assert (await client.reserve("b", 1, rate="1000000")).candidate is None
    (state,) = (await client.reserve("c", 1, rate="1000")).states
    assert state.limit_nano_usd == 500_000


async def test_tied_budgets_of_one_counter_share_it_and_the_lowest_limit_rules(client: Client) -> None:
    await client.set(budget("tenant=acme,model=*", 500), budget("tenant=*,model=m", 300))
    admission = await client.reserve("a", 200)
    assert [(s.counter, s.limit_nano_usd) for s in admission.states] == [
        ("tenant=acme,model=m|daily|UTC|1767225600", 300)
    ]
    assert (await client.reserve("b", 200)).candidate is None
    await client.settle("a", 200)
    assert await client.spent_held() == (200, 0)


async def test_different_zones_are_separate_lines(client: Client) -> None:
    await client.set(budget("tenant=acme,model=*", 500, zone="Asia/Tokyo"), budget("tenant=*,model=m", 300, zone="UTC"))
    admission = await client.reserve("a", 100)
    assert sorted((s.counter, s.limit_nano_usd) for s in admission.states) == [
        ("tenant=acme,model=m|daily|Asia/Tokyo|1767193200", 500),
        ("tenant=acme,model=m|daily|UTC|1767225600", 300),
    ]


async def test_a_repeated_tag_is_held_once(client: Client) -> None:
    client.declare(budget("tag=*", 1000))
    request = client.request("a")
    matches = client.index.matches({"tag": ("x", "x")})
    candidate = request.candidates[0]._replace(matches=matches)
    await client.store.reserve(client.request("a", candidates=(candidate,)))
    states = await client.store.status(matches, client.index.windows(NOON_S), (1, 1))
    assert [(s.counter, s.held_nano_usd) for s in states] == [("tag=x|daily|UTC|1767225600", 100)]


async def test_replacing_a_hold_looks_through_it_and_releases_it(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("request", 80)
    admission = await client.reserve("request.1", 90, replaces="request")
    assert admission.candidate == 0
    assert [state.held_nano_usd for state in admission.states] == [0]
    assert await client.spent_held() == (0, 90)
    assert (await client.settle("request", 5)).late


async def test_a_refused_replacement_leaves_the_old_hold_as_it_was(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("request", 80)
    assert (await client.reserve("request.1", 101, replaces="request")).candidate is None
    assert await client.spent_held() == (0, 80)
    assert not (await client.settle("request", 80)).late


async def test_replacing_an_expired_hold_frees_nothing_twice(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("old", 80, deadline_s=10.0)
    await client.reserve("other", 20)
    client.clock.advance(10)
    assert (await client.reserve("new", 81, replaces="old")).candidate is None
    assert (await client.reserve("new", 80, replaces="old")).candidate == 0
    assert await client.spent_held() == (0, 100)


async def test_replacing_an_unknown_or_settled_hold_just_holds(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("done", 10)
    await client.settle("done", 10)
    for replaces in ("unknown", "done"):
        assert (await client.reserve(f"for-{replaces}", 20, replaces=replaces)).candidate == 0
    assert await client.spent_held() == (10, 40)


async def test_a_hold_beyond_what_counters_hold_is_an_error(client: Client) -> None:
    client.declare(budget("tenant=*", None))
    for hold in (-1, MAX_NANO_USD + 1, 10**30):
        with pytest.raises(StoreError):
            await client.reserve("a", hold)
    assert (await client.reserve("b", MAX_NANO_USD)).candidate == 0
    with pytest.raises(StoreError):
        await client.reserve("c", 1)
    assert await client.spent_held() == (0, MAX_NANO_USD)


async def test_a_reserve_needs_a_candidate(client: Client) -> None:
    with pytest.raises(ValueError, match="candidate"):
        await client.reserve("a", candidates=())


async def test_a_changed_limit_binds_clients_that_do_not_know_of_it(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.store.set_budget(budget("tenant=*", 500))
    client.index.update(*await client.store.forms())
    assert (await client.reserve("a", 400)).states[0].limit_nano_usd == 500
    await client.store.set_budget(budget("tenant=*", 600))
    assert (await client.reserve("b", 200)).states[0].limit_nano_usd == 600
    await client.store.set_budget(budget("tenant=*", 700, enabled=False))
    assert (await client.reserve("c", 10_000)).states == ()
    await client.store.set_budget(budget("tenant=*", None, limit_coins="0.7"))
    assert (await client.reserve("d", 101)).deciding is not None
    assert (await client.reserve("d", 100)).candidate == 0
    await client.store.set_budget(budget("tenant=acme", 250))
    assert (await client.reserve("e", 100)).states[0].limit_nano_usd == 250
    await client.store.remove_budget("tenant=acme|daily")
    assert (await client.reserve("f", 100)).states[0].limit_nano_usd == 700
