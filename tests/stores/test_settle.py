from __future__ import annotations

import msgspec
import pytest

from askii_middleware.admission import BudgetState
from askii_middleware.currency import MAX_NANO_USD
from askii_middleware.records import UsageCounts, UsageRecord, decode_record, encode_settled_part
from askii_middleware.stores.base import AggregateRow, Settled, SpendRow, UnwritableError

from .support import DAY_S, NOON_S, Client, budget


async def last_record(client: Client) -> dict[str, object]:
    record: dict[str, object] = msgspec.json.decode((await client.store.records())[-1][1])
    return record


async def test_a_settlement_replaces_the_hold_by_the_charge(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300)
    assert await client.settle("a", 120) == Settled(coins=0, late=False, duplicate=False)
    assert await client.spent_held() == (120, 0)


async def test_a_charge_above_the_hold_and_the_limit_is_taken_in_full(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100)
    await client.settle("a", 5000)
    assert await client.spent_held() == (5000, 0)


async def test_every_counter_of_the_hold_is_charged(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000), budget("tenant=*,model=*", 1000))
    await client.reserve("a", 300)
    await client.settle("a", 120)
    assert [(s.spent_nano_usd, s.held_nano_usd) for s in await client.status()] == [(120, 0)] * 3


async def test_the_charge_goes_where_the_hold_was_whatever_budgets_are_now(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300)
    client.declare(budget("model=*", 1000))
    await client.settle("a", 120)
    client.declare(budget("tenant=*", 1000), budget("model=*", 1000))
    assert {s.scope: s.spent_nano_usd for s in await client.status()} == {"tenant=acme": 120, "model=m": 0}


async def test_the_charge_belongs_to_the_window_of_admission(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300, deadline_s=2.0 * DAY_S)
    client.clock.advance(DAY_S)
    await client.settle("a", 120, at_s=NOON_S)
    assert await client.spent_held() == (0, 0)
    client.clock.advance(-DAY_S)
    assert await client.spent_held() == (120, 0)


async def test_a_second_settlement_changes_nothing_and_gets_the_first_answer(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300)
    first = await client.settle("a", 1_999_999)
    assert first == Settled(1999, late=False, duplicate=False)
    assert await client.settle("a", 5) == Settled(1999, late=False, duplicate=True)
    assert await client.spent_held() == (1_999_999, 0)
    assert len(await client.store.records()) == 1
    assert (await client.store.totals()).cost_nano_usd == 1_999_999


async def test_a_duplicate_of_a_late_settlement_is_late(client: Client) -> None:
    await client.reserve("a", deadline_s=1.0)
    client.clock.advance(1)
    assert await client.settle("a") == Settled(0, late=True, duplicate=False)
    assert await client.settle("a") == Settled(0, late=True, duplicate=True)


async def test_without_a_hold_the_matches_are_charged_and_it_is_not_late(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    assert await client.settle("a", 120) == Settled(0, late=False, duplicate=False)
    assert await client.spent_held() == (120, 0)


async def test_without_a_hold_stored_budgets_decide_where_to_charge(client: Client) -> None:
    await client.set(budget("tenant=acme", 1000, zone="Asia/Tokyo"))
    client.index.version = -1
    await client.settle("a", 120)
    assert [(s.counter, s.spent_nano_usd) for s in await client.status()] == [
        ("tenant=acme|daily|Asia/Tokyo|1767193200", 120)
    ]


async def test_a_missing_window_is_computed_so_that_a_charge_always_finds_its_counters(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    yesterday = NOON_S - DAY_S
    await client.settle("a", 120, at_s=yesterday, windows={})
    await client.settle("b", 7, at_s=yesterday, windows=client.index.windows(NOON_S))
    client.clock.now_s = yesterday
    assert await client.spent_held() == (127, 0)


async def test_an_expired_call_is_charged_in_full_and_flagged_late(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100, deadline_s=10.0)
    client.clock.advance(10)
    await client.reserve("b", 100)
    assert (await client.settle("a", 90)).late
    assert (await client.settle("b", 90)).late is False
    assert await client.spent_held() == (180, 0)


async def test_a_released_call_is_charged_where_its_hold_was_and_flagged_late(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100)
    await client.store.release("a")
    client.declare()
    assert (await client.settle("a", 90)).late
    client.declare(budget("tenant=*", 100))
    assert await client.spent_held() == (90, 0)


async def test_a_release_after_settlement_or_without_a_hold_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 100)
    await client.settle("a", 90)
    await client.store.release("a")
    await client.store.release("unknown")
    assert await client.spent_held() == (90, 0)


async def test_settling_at_once_does_the_same_or_nothing(client: Client) -> None:
    await client.reserve("a", 2000)
    settlement = client.settlement("a", 1500)
    settled = client.store.settle_at_once(settlement)
    assert settled in (None, Settled(1, late=False, duplicate=False))
    again = await client.store.settle(settlement)
    assert again == Settled(1, late=False, duplicate=settled is not None)
    assert (await client.store.totals())[:5] == (1, 1500, 1, 1500, 0)


async def test_releasing_twice_frees_once(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 40)
    await client.reserve("b", 40)
    await client.store.release("a")
    await client.store.release("a")
    assert await client.spent_held() == (0, 40)


async def test_the_record_ends_with_what_only_the_store_knows(client: Client) -> None:
    record = UsageRecord(
        call_id="a",
        timestamp="2026-01-01T12:00:00.000Z",
        tenant="acme",
        subscription="acme",
        api="openai.chat",
        provider="openai",
        requested_model="m",
        served_model="m",
        usage=UsageCounts(input_tokens=1),
        cost_nano_usd=2500,
        price_version="1",
        exchange_rate=1e6,
    )
    await client.reserve("a", deadline_s=1.0)
    client.clock.advance(2)
    await client.settle("a", 2500, record=encode_settled_part(record))
    ((seq, body),) = await client.store.records()
    assert seq == 1
    assert decode_record(body) == msgspec.structs.replace(record, late=True, askii_coins=2)


async def test_fractions_of_coins_are_carried_and_given_out_whole(client: Client) -> None:
    coins = [(await client.settle(f"c{n}", 600)).coins for n in range(10)]
    assert coins == [0, 1, 0, 1, 1, 0, 1, 0, 1, 1]
    assert (await last_record(client))["askii_coins"] == 1


async def test_each_subscription_has_its_own_carry(client: Client) -> None:
    for subscription in ("s1", "s2", ""):
        assert (await client.settle(f"a-{subscription}", 700, subscription=subscription)).coins == 0
    assert (await client.settle("b", 300, subscription="s1")).coins == 1


async def test_coins_beyond_64_bits_are_exact(client: Client) -> None:
    settled = await client.settle("a", 3, rate="1e30")
    assert settled.coins == 3 * 10**21
    assert (await client.settle("a", 3)).coins == 3 * 10**21
    assert (await last_record(client))["askii_coins"] == 3 * 10**21


async def test_aggregates_add_up_under_the_hour_of_admission(client: Client) -> None:
    rows = (AggregateRow("tenant=acme", "m", "p", 1, 10, 5, 100), AggregateRow("user=u", "m", "p", 1, 10, 5, 100))
    for n in range(3):
        await client.settle(f"c{n}", 100, aggregates=rows)
    await client.settle("late", 100, aggregates=rows, at_s=NOON_S + 3599)
    await client.settle("next", 100, aggregates=rows, at_s=NOON_S + 3600)
    for scope in ("tenant=acme", "user=u"):
        assert await client.store.spend(scope, NOON_S, NOON_S + 3600) == [SpendRow("m", "p", 4, 40, 20, 400)]


@pytest.mark.parametrize("cost", [MAX_NANO_USD + 1, -MAX_NANO_USD - 1, 10**30])
async def test_a_charge_no_counter_can_hold_is_refused_and_changes_nothing(client: Client, cost: int) -> None:
    client.declare(budget("tenant=*", 1000))
    await client.reserve("a", 300)
    before = await client.store.totals()
    with pytest.raises(UnwritableError):
        await client.settle("a", cost)
    assert await client.store.totals() == before
    assert await client.spent_held() == (0, 300)
    assert (await client.settle("a", 1)).duplicate is False


async def test_a_counter_never_leaves_its_range(client: Client) -> None:
    client.declare(budget("tenant=*", None), budget("global", None))
    await client.settle("a", MAX_NANO_USD)
    await client.reserve("b", 0)
    for call_id in ("b", "unheld"):
        with pytest.raises(UnwritableError):
            await client.settle(call_id, 1)
    assert [s.spent_nano_usd for s in await client.status()] == [MAX_NANO_USD] * 2
    assert (await client.store.totals()).records == 1


async def test_a_credit_gives_money_back_and_its_coins_with_the_next_charges(client: Client) -> None:
    client.declare(budget("tenant=*", 10_000))
    await client.settle("a", 4700)
    assert (await client.settle("credit", -2500)).coins == 0
    assert await client.spent_held() == (2200, 0)
    assert (await client.store.totals()).records_nano_usd == 2200


async def test_a_free_call_holds_charges_and_is_recorded(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    assert (await client.reserve("a", 0)).candidate == 0
    assert await client.settle("a", 0) == Settled(0, late=False, duplicate=False)
    assert await client.spent_held() == (0, 0)
    assert (await client.store.totals()).records == 1


async def test_remaining_is_never_negative(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.settle("a", 250)
    (state,) = await client.status()
    assert isinstance(state, BudgetState)
    assert state.remaining_nano_usd == 0


async def test_counts_no_ledger_can_hold_are_unwritable_and_change_nothing(client: Client) -> None:
    await client.set(budget("tenant=*", 1000))
    await client.reserve("a", 100)
    rows = (
        AggregateRow("tenant=acme", "m", "p", 1, 10, 5, 100),
        AggregateRow("key=k", "m", "p", 1, 1 << 64, 5, 100),
    )
    with pytest.raises(UnwritableError):
        await client.settle("a", 100, aggregates=rows)
    assert await client.spent_held() == (0, 100)
    assert (await client.store.totals())[:4] == (0, 0, 0, 0)
    await client.settle("a", 100)
    assert await client.spent_held() == (100, 0)
