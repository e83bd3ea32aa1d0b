from __future__ import annotations

import msgspec
import pytest

from askii_middleware.stores import memory_holds, memory_outbox
from askii_middleware.stores.base import AggregateRow, SpendRow, Totals
from askii_middleware.stores.memory import MemoryStore

from .support import DAY_S, NOON_S, Client, Clock, budget, delivered


async def test_spend_takes_whole_hours_that_begin_in_the_range(client: Client) -> None:
    for hour in range(5):
        await client.settle(f"c{hour}", 10**hour, at_s=NOON_S + 3600 * hour + 1800)

    async def cost(start_s: float, end_s: float) -> int:
        return sum(row.cost_nano_usd for row in await client.store.spend("tenant=acme", start_s, end_s))

    assert await cost(NOON_S, NOON_S + 5 * 3600) == 11111
    assert await cost(NOON_S + 3600, NOON_S + 3 * 3600) == 110
    assert await cost(NOON_S + 1, NOON_S + 3 * 3600 + 1) == 1110
    assert await cost(NOON_S, NOON_S) == 0
    assert await cost(0, 4e9) == 11111
    assert await cost(NOON_S - DAY_S, NOON_S) == 0


async def test_spend_is_broken_down_by_model_and_provider(client: Client) -> None:
    await client.settle("a", 5, model="m2", provider="p")
    await client.settle("b", 7, model="m1", provider="q")
    await client.settle("c", 9, model="m1", provider="p")
    await client.settle("d", 1, model="m1", provider="p", at_s=NOON_S + 3600)
    await client.settle("e", 1, tenant="other")
    assert await client.store.spend("tenant=acme", NOON_S, NOON_S + 7200) == [
        SpendRow("m1", "p", 2, 20, 10, 10),
        SpendRow("m1", "q", 1, 10, 5, 7),
        SpendRow("m2", "p", 1, 10, 5, 5),
    ]
    assert await client.store.spend("tenant=nobody", NOON_S, NOON_S + 7200) == []


async def test_totals_sum_tenants_once_and_records_from_themselves(client: Client) -> None:
    rows = (
        AggregateRow("tenant=acme", "m", "p", 1, 10, 5, 100),
        AggregateRow("tenant=acme,model=m", "m", "p", 1, 10, 5, 100),
        AggregateRow("global", "m", "p", 1, 10, 5, 100),
    )
    await client.settle("a", 100, aggregates=rows)
    await client.settle("b", 40, record=msgspec.json.encode({"cost_nano_usd": 41}))
    await client.reserve("c", 7)
    assert await client.store.totals() == Totals(
        calls=2, cost_nano_usd=140, records=2, records_nano_usd=141, held_nano_usd=7, lost=0
    )


async def test_a_hold_on_several_counters_counts_once_in_the_totals(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 1000))
    await client.reserve("a", 70)
    assert (await client.store.totals()).held_nano_usd == 70


async def test_an_empty_ledger_totals_zero(client: Client) -> None:
    assert await client.store.totals() == Totals(0, 0, 0, 0, 0, 0)
    assert await client.store.records() == []
    assert await client.store.spend("tenant=acme", 0, 4e9) == []


async def test_records_are_read_on_in_the_order_of_settlement(client: Client) -> None:
    for n in range(5):
        await client.settle(f"c{n}", n)
    first = await client.store.records(limit=3)
    rest = await client.store.records(after_seq=first[-1][0])
    assert [msgspec.json.decode(body)["call_id"] for _, body in first + rest] == ["c0", "c1", "c2", "c3", "c4"]
    assert await client.store.records(after_seq=rest[-1][0]) == []
    assert await client.store.records(limit=0) == []


async def test_memory_forgets_passed_records_beyond_its_bound_but_not_their_sum(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_outbox, "KEPT_RECORDS", 3)
    client = Client(MemoryStore(clock=clock), clock)
    await client.store.register_sinks(["s"])
    for n in range(6):
        await client.settle(f"c{n}", 10)
    assert len(await client.store.records()) == 6
    await client.deliver("s", *(delivered(seq) for seq in (1, 2, 3, 4)))
    await client.settle("c6", 10)
    assert [seq for seq, _ in await client.store.records()] == [5, 6, 7]
    assert await client.waiting("s") == ["c4", "c5", "c6"]
    totals = await client.store.totals()
    assert (totals.records, totals.records_nano_usd) == (7, 70)


async def test_memory_forgets_the_deadlines_of_settled_calls(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_holds, "PRUNED_AT_ONCE", 10)
    store = MemoryStore(clock=clock)
    client = Client(store, clock)
    await store.heartbeat("w", DAY_S)
    await client.reserve("open", deadline_s=3600.0)
    for n in range(100):
        await client.reserve(f"c{n}", deadline_s=3600.0)
        await client.settle(f"c{n}")
    await store.heartbeat("w", DAY_S)
    assert store._book._deadlines == [(NOON_S + 3600, "open")]


async def test_memory_forgets_the_markers_of_settled_calls_after_a_day(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    client = Client(store, clock)
    await client.settle("old")
    clock.advance(DAY_S / 2)
    await client.settle("new")
    clock.advance(DAY_S / 2)
    await store.heartbeat("w", 60)
    assert list(store._done) == ["new"]
