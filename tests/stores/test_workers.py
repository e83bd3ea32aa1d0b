from __future__ import annotations

import pytest

from askii_middleware.stores.base import DeadWorkerError

from .support import COUNTER, DAY_S, NOON_S, Client, budget

EIGHT_DAYS_S = 8 * DAY_S


async def test_holds_count_while_their_workers_heartbeat_lasts(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 100, worker="x")
    client.clock.advance(59.9)
    assert await client.spent_held() == (0, 100)
    assert await client.store.heartbeat("x", 60)
    client.clock.advance(59.9)
    assert (await client.reserve("b", 1)).candidate is None
    client.clock.advance(0.1)
    assert await client.spent_held() == (0, 0)
    assert (await client.reserve("b", 100)).candidate == 0


async def test_holds_count_until_their_own_deadline_heartbeats_or_not(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100, deadline_s=30.0)
    client.clock.advance(29.9)
    assert await client.spent_held() == (0, 100)
    client.clock.advance(0.1)
    assert await client.spent_held() == (0, 0)
    assert (await client.store.totals()).held_nano_usd == 0
    assert (await client.reserve("b", 100)).candidate == 0
    assert await client.spent_held() == (0, 100)


async def test_a_dead_workers_overdue_hold_is_not_taken_off_twice(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 40, worker="x", deadline_s=30.0)
    client.clock.advance(60)
    assert await client.spent_held() == (0, 0)
    assert (await client.reserve("b", 101)).candidate is None
    assert (await client.settle("a", 5)).late
    assert await client.spent_held() == (5, 0)


async def test_a_reserve_that_raises_lets_no_hold_expire(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100, deadline_s=30.0)
    client.clock.advance(31)
    with pytest.raises(ValueError, match="candidate"):
        await client.reserve("b", candidates=())
    client.clock.advance(-31)
    assert await client.spent_held() == (0, 100)


async def test_what_a_reserve_has_let_expire_stays_expired_when_the_clock_steps_back(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100, deadline_s=30.0)
    client.clock.advance(31)
    await client.reserve("b", 100)
    client.clock.advance(-31)
    assert await client.spent_held() == (0, 100)
    assert (await client.settle("a", 10)).late
    assert not (await client.settle("b", 10)).late


async def test_a_worker_whose_heartbeat_ran_out_is_told_to_go_on_under_a_new_name(client: Client) -> None:
    assert await client.store.heartbeat("x", 60)
    client.clock.advance(60)
    assert not await client.store.heartbeat("x", 60)
    assert not await client.store.heartbeat("x", 60)
    with pytest.raises(DeadWorkerError):
        await client.reserve("a", worker="x")
    assert await client.store.heartbeat("x2", 60)
    assert (await client.reserve("a", worker="x2")).candidate == 0


async def test_a_buried_worker_stays_dead_when_the_clock_steps_back(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 100, worker="x")
    client.clock.advance(60)
    await client.store.heartbeat("w", 60)
    client.clock.advance(-60)
    assert not await client.store.heartbeat("x", 60)
    assert await client.spent_held() == (0, 0)


async def test_a_dead_workers_open_calls_are_lost_and_sent_to_no_sink(client: Client) -> None:
    await client.store.register_sinks(["s"])
    await client.store.heartbeat("x", 60)
    for call_id in ("a", "b", "settled", "released"):
        await client.reserve(call_id, worker="x")
    await client.reserve("overdue", worker="x", deadline_s=1.0)
    client.clock.advance(2)
    await client.reserve("other")
    await client.settle("settled")
    await client.store.release("released")
    client.clock.advance(60)
    assert (await client.store.totals()).lost == 0
    await client.store.heartbeat("w", 60)
    totals = await client.store.totals()
    assert (totals.lost, totals.held_nano_usd) == (3, 100)
    assert await client.waiting("s") == ["settled"]


async def test_a_late_settlement_replaces_the_lost_row(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 100, worker="x")
    client.clock.advance(60)
    await client.store.heartbeat("w", 60)
    assert (await client.settle("a", 70)).late
    totals = await client.store.totals()
    assert (totals.lost, totals.calls) == (0, 1)
    assert await client.spent_held() == (70, 0)


async def test_a_settlement_before_the_burial_is_late_too_and_frees_the_hold(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 100, worker="x")
    await client.reserve("b", 0, worker="x")
    client.clock.advance(60)
    assert (await client.settle("a", 70)).late
    await client.store.heartbeat("w", 60)
    assert (await client.store.totals()).lost == 1
    assert await client.spent_held() == (70, 0)


async def test_a_released_lost_call_is_lost_no_more(client: Client) -> None:
    await client.store.heartbeat("x", 60)
    await client.reserve("a", worker="x")
    client.clock.advance(60)
    await client.store.heartbeat("w", 60)
    await client.store.release("a")
    assert (await client.store.totals()).lost == 0


async def test_a_heartbeat_of_no_length_gives_the_worker_up(client: Client) -> None:
    await client.store.heartbeat("x", 60)
    await client.reserve("a", worker="x")
    await client.store.heartbeat("x", 0)
    assert (await client.store.totals()).lost == 1


async def test_one_workers_end_leaves_the_others_holds(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 40, worker="x")
    await client.reserve("b", 30)
    client.clock.advance(60)
    await client.store.heartbeat("w", 60)
    assert await client.spent_held() == (0, 30)


async def test_released_calls_are_remembered_for_a_day(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    first = await client.reserve("a", 40)
    await client.store.release("a")
    client.clock.advance(DAY_S - 1)
    await client.store.heartbeat("w", EIGHT_DAYS_S)
    assert await client.reserve("a", 50) == first
    client.clock.advance(1)
    await client.store.heartbeat("w", EIGHT_DAYS_S)
    assert await client.reserve("a", 50) != first


async def test_settled_calls_are_remembered_for_a_day_at_least(client: Client) -> None:
    await client.settle("a", 40)
    client.clock.advance(DAY_S - 1)
    await client.store.heartbeat("w", EIGHT_DAYS_S)
    assert (await client.settle("a", 40)).duplicate


async def test_lost_calls_stay_in_the_audit_for_eight_days(client: Client) -> None:
    await client.store.heartbeat("x", 60)
    await client.reserve("a", worker="x")
    client.clock.advance(60)
    await client.store.heartbeat("w", 30 * DAY_S)
    client.clock.advance(EIGHT_DAYS_S - 1)
    await client.store.heartbeat("w", 30 * DAY_S)
    assert (await client.store.totals()).lost == 1
    client.clock.advance(1)
    await client.store.heartbeat("w", 30 * DAY_S)
    assert (await client.store.totals()).lost == 0


async def test_counters_live_until_eight_days_after_their_window(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a")
    await client.settle("a", 40)
    for days, spent in ((8.4, 40), (8.5, 0)):
        client.clock.now_s = NOON_S + days * DAY_S
        await client.store.heartbeat("w", 30 * DAY_S)
        client.clock.now_s = NOON_S
        (state,) = await client.status()
        assert (state.counter, state.spent_nano_usd) == (COUNTER, spent)


async def test_a_hold_that_outlives_its_counter_still_settles(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", deadline_s=20.0 * DAY_S)
    client.clock.advance(10 * DAY_S)
    await client.store.heartbeat("w", 30 * DAY_S)
    assert await client.settle("a", 40, at_s=NOON_S) == (0, False, False)
    client.clock.now_s = NOON_S
    assert await client.spent_held() == (40, 0)


async def test_a_dead_workers_name_is_free_again_after_eight_days_and_holds_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000, period="total"))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 100, worker="x", deadline_s=30.0 * DAY_S)
    client.clock.advance(60)
    await client.store.heartbeat("w", 30 * DAY_S)
    client.clock.advance(EIGHT_DAYS_S)
    await client.store.heartbeat("w", 30 * DAY_S)
    assert await client.store.heartbeat("x", 60)
    assert await client.spent_held() == (0, 0)
