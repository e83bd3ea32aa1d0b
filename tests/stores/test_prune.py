"""Old rows go, their sums stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from askii_middleware.stores.base import AggregateRow, Store

from .support import ACME, DAY_S, NOON_S, Client, dead, delivered

MIDNIGHT_S = NOON_S - DAY_S / 2


# A ledger in Redis expires by itself: test_redis_retention.py.
pytestmark = pytest.mark.parametrize("store", ["memory", "sqlite", "sqlite-full", "postgres"], indirect=True)


async def ids(store: Store) -> list[str]:
    return [msgspec.json.decode(record)["call_id"] for _, record in await store.records()]


async def settle(client: Client, names: Sequence[str], **options: Any) -> None:
    await client.store.settle_many([client.settlement(name, 10, **options) for name in names])


async def prune(client: Client, records_s: float | None = None, hours_s: float | None = None, limit: int = 1000) -> int:
    """What was settled, and what was over, so long ago."""
    now_s = client.clock.now_s
    return await client.store.prune(
        records_before_s=None if records_s is None else now_s - records_s,
        aggregates_before_s=None if hours_s is None else now_s - hours_s,
        limit=limit,
    )


async def test_old_records_go_except_the_newest_of_each_partition_and_their_sums_stay(client: Client) -> None:
    await settle(client, ["a0", "a1", "a2"])
    await settle(client, ["o0", "o1"], tenant="other")
    client.clock.advance(9 * DAY_S)
    await settle(client, ["new"], tenant="third")
    before = await client.store.totals()
    assert await prune(client, 8 * DAY_S) == 3
    assert await ids(client.store) == ["a2", "o1", "new"]
    assert [await client.store.record(name) is None for name in ("a0", "a2")] == [True, False]
    assert await client.store.totals() == before
    assert before[:4] == (6, 60, 6, 60)
    assert await prune(client, 8 * DAY_S) == 0
    await settle(client, ["a3"])
    assert await prune(client, 8 * DAY_S) == 1
    assert [seq for seq, _ in await client.store.records()] == [5, 6, 7]
    assert (await client.store.totals()).records == 7


async def test_what_is_younger_stays(client: Client) -> None:
    await settle(client, ["a0"])
    client.clock.advance(2 * DAY_S)
    await settle(client, ["a1", "a2"])
    client.clock.advance(7 * DAY_S)
    assert await prune(client, 9 * DAY_S) == 0
    assert await prune(client, 8 * DAY_S) == 1
    assert await ids(client.store) == ["a1", "a2"]


async def test_what_a_sink_has_not_got_stays_be_it_dead(client: Client) -> None:
    store = client.store
    await store.register_sinks(["fast", "slow"])
    await settle(client, [f"a{n}" for n in range(8)])
    await client.deliver("fast", *(delivered(n) for n in range(1, 9)))
    await client.deliver("slow", delivered(1), dead(2), delivered(3), delivered(4), delivered(6))
    client.clock.advance(9 * DAY_S)
    assert await prune(client, 8 * DAY_S) == 3
    assert await ids(store) == ["a1", "a4", "a5", "a6", "a7"]
    assert [letter.call_id for letter in await store.dead_letters("slow")] == ["a1"]
    assert await client.waiting("slow") == ["a4", "a6", "a7"]
    assert await store.pending() == {"fast": 0, "slow": 3}
    await client.deliver("slow", delivered(2), delivered(5), delivered(7))
    assert await prune(client, 8 * DAY_S) == 4
    assert await ids(store) == ["a7"]
    assert await client.waiting("slow") == ["a7"]
    await client.deliver("slow", delivered(8))
    await settle(client, ["next"])
    (entry,) = await store.fetch("slow", range(16), 9)
    assert (entry.partition, entry.seq, entry.call_id) == (ACME, 9, "next")
    assert await store.pending() == {"fast": 1, "slow": 1}
    await store.register_sinks(["late"])
    assert (await store.pending())["late"] == 0


async def test_reading_on_steps_over_what_is_gone(client: Client) -> None:
    await settle(client, ["a0", "a1"])
    await settle(client, ["o0"], tenant="other")
    client.clock.advance(9 * DAY_S)
    await settle(client, ["a2"])
    assert await prune(client, 8 * DAY_S) == 2
    (first,) = await client.store.records(limit=1)
    assert first[0] == 3
    assert [seq for seq, _ in await client.store.records(after_seq=1)] == [3, 4]
    assert [seq for seq, _ in await client.store.latest(None, 9)] == [4, 3]
    assert await client.store.latest("acme", 9, before_seq=4) == []


async def test_no_more_than_the_limit_goes_at_once(client: Client) -> None:
    await settle(client, [f"a{n}" for n in range(10)])
    client.clock.advance(9 * DAY_S)
    assert await prune(client, 8 * DAY_S, 8 * DAY_S, limit=4) == 4
    assert await prune(client, 8 * DAY_S, 8 * DAY_S, limit=4) == 4
    assert await prune(client, 8 * DAY_S, 8 * DAY_S, limit=4) == 2
    assert await ids(client.store) == ["a9"]
    assert await client.store.spend("tenant=acme", 0, client.clock.now_s) == []
    assert (await client.store.totals())[:4] == (10, 100, 10, 100)
    assert await prune(client, 8 * DAY_S, 8 * DAY_S, limit=4) == 0


async def test_a_call_that_was_settled_within_a_day_is_never_charged_again(client: Client) -> None:
    """Whatever the bound, and however long ago the call was admitted."""
    await client.settle("old", at_s=NOON_S - 90 * DAY_S)
    await settle(client, ["a0", "a1"])
    client.clock.advance(24.5 * 3600)
    assert await prune(client, 0.0) == 0
    assert (await client.settle("old")).duplicate
    assert (await client.settle("a0")).duplicate


async def test_aggregates_of_hours_that_were_over_go_and_their_sums_stay(client: Client) -> None:
    for hour in range(4):
        rows = [AggregateRow(f"tenant=t{n}", "m", "p", 1, 10, 5, 10**hour) for n in range(2)]
        rows += [AggregateRow(s, "m", "p", 1, 10, 5, 10**hour) for s in ("tenant=t0,user=u", "global/0")]
        await client.settle(f"c{hour}", 2 * 10**hour, at_s=MIDNIGHT_S + 3600 * hour, aggregates=tuple(rows))
    before = await client.store.totals()
    assert await prune(client, None, client.clock.now_s - (MIDNIGHT_S + 2 * 3600 + 1800)) == 8
    for scope in ("tenant=t0", "tenant=t1", "tenant=t0,user=u", "global/0"):
        (row,) = await client.store.spend(scope, 0, NOON_S)
        assert (row.requests, row.cost_nano_usd) == (2, 1100), scope
    assert await client.store.totals() == before
    assert before[:2] == (8, 2222)
    assert len(await client.store.records()) == 4
    await client.settle("late", 5, at_s=MIDNIGHT_S)
    assert (await client.store.totals())[:2] == (9, 2227)


async def test_without_a_bound_everything_stays(client: Client) -> None:
    await settle(client, ["a0", "a1"])
    client.clock.advance(1000 * DAY_S)
    assert await prune(client) == 0
    assert len(await client.store.records()) == 2
    assert len(await client.store.spend("tenant=acme", 0, NOON_S + DAY_S)) == 1
