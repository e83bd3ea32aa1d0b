"""Records, aggregates and alerts of a ledger in PostgreSQL while many write at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import psycopg
import pytest

from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS, AggregateRow, Store, partition_of

from .support import NOON_S, Client, Clock, budget

ALL = range(PARTITIONS)


@pytest.fixture
async def clients(postgres_url: str, clock: Clock) -> AsyncIterator[list[Client]]:
    """Three workers of one ledger."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(3):
            store: Store = open_store(postgres_url, clock=clock)
            await store.open()
            stack.push_async_callback(store.close)
            found.append(Client(store, clock))
        await found[0].store.heartbeat("w", 86_400)
        yield found


async def test_a_reader_never_passes_a_record_that_is_not_committed_yet(
    clients: list[Client], postgres_url: str
) -> None:
    url, _, namespace = postgres_url.partition("?namespace=")
    with psycopg.connect(url) as other:
        other.execute(f"SET search_path = {namespace}".encode())
        other.execute("SELECT settling()")
        record = b'{"call_id":"slow","cost_nano_usd":1}'
        other.execute("SELECT append_record(0, 'slow', 'other', 0, 1.5, %s, 0, false, 1.5)", (record,))
        await clients[0].settle("quick", 1)
        reading = asyncio.ensure_future(clients[1].store.records())
        await asyncio.sleep(0.2)
        assert not reading.done()
        other.commit()
        found = [msgspec.json.decode(body)["call_id"] for _, body in await reading]
        assert found == ["slow", "quick"]


async def test_settlements_at_once_are_numbered_without_gaps_and_each_is_there_once(clients: list[Client]) -> None:
    store = clients[0].store
    await store.register_sinks(["s"])
    tenants = [f"t{n}" for n in range(10)]
    await asyncio.gather(
        *(
            client.settle(f"{tenant}-{n}", 10, tenant=tenant)
            for n in range(12)
            for tenant in tenants
            for client in clients  # all three settle each call
        )
    )
    entries = await store.fetch("s", ALL, 1000)
    seqs = defaultdict(list)
    for entry in entries:
        assert entry.partition == partition_of(entry.tenant)
        seqs[entry.partition].append(entry.seq)
    assert sum(map(len, seqs.values())) == 120
    assert all(found == list(range(1, len(found) + 1)) for found in seqs.values())
    read: list[bytes] = []
    after = 0
    while page := await store.records(after, 50):
        read += [body for _, body in page]
        after = page[-1][0]
    assert read == [entry.record for entry in entries]
    totals = await store.totals()
    assert (totals.calls, totals.cost_nano_usd, totals.records, totals.records_nano_usd) == (120, 1200, 120, 1200)


async def test_aggregates_added_at_once_in_any_order_lose_nothing(clients: list[Client]) -> None:
    scopes = [f"tenant=a,model=m{n}" for n in range(8)]

    async def settle(n: int) -> None:
        order = scopes[n % 8 :] + scopes[: n % 8]
        rows = tuple(AggregateRow(scope, "m", "p", 1, n, 2, 3) for scope in order[:: 1 if n % 2 else -1])
        await clients[n % 3].settle(f"c{n}", 1, tenant=f"t{n}", aggregates=rows)

    await asyncio.gather(*(settle(n) for n in range(60)))
    for scope in scopes:
        (row,) = await clients[0].store.spend(scope, NOON_S, NOON_S + 3600)
        assert row[2:] == (60, sum(range(60)), 120, 180)


async def test_alerts_written_at_once_ascend_and_none_is_missed_by_who_reads_on(clients: list[Client]) -> None:
    await clients[0].set(budget("tenant=*", 100, alert_at=(0.5, 1.0)))
    for client in clients:
        await client.refresh()
    store = clients[0].store
    await store.register_channels(["alert:log"])
    (lease,) = await store.lease("alert:log", "me", 600)
    seen: list[str] = []
    writing = asyncio.gather(
        *(clients[n % 3].settle(f"c{n}", 60, tenant=f"t{n // 2}") for n in range(60)),
    )
    while len(seen) < 60:
        alerts = await store.fetch_alerts("alert:log", 7)
        seen += [alert.id for alert in alerts]
        if alerts:
            assert await store.acknowledge_alerts("alert:log", lease.token, alerts[-1].seq)
    await writing
    assert len(set(seen)) == 60
    assert [alert.seq for alert in reversed(await store.recent_alerts(100))] == list(range(1, 61))


@pytest.mark.parametrize(
    "text",
    ["\\u0000", "\\\\u0000", '\\\\\\u0000\\"', '\\"cost_nano_usd\\":5', "zürich", "\\u00fc\\n"],
)
async def test_a_records_cost_is_read_whatever_else_it_says(clients: list[Client], text: str) -> None:
    record = f'{{"a":"{text}","metadata":{{"cost_nano_usd":7}},"cost_nano_usd":41,"b":"{text}"}}'.encode()
    client = clients[0]
    await client.store.register_sinks(["s"])
    await client.settle("a", 41, record=record)
    assert (await client.store.totals()).records_nano_usd == 41
    (entry,) = await client.store.fetch("s", ALL, 1)
    assert entry.record == record[:-1] + b',"late":false,"askii_coins":0}'
    assert await client.store.record("a") == entry.record
    assert await client.store.records() == [(1, entry.record)]


async def test_sums_beyond_64_bits_are_exact(clients: list[Client]) -> None:
    for n in range(3):
        row = AggregateRow("tenant=acme", "m", "p", 1, 2**62, 5, 2**53)
        await clients[0].settle(f"c{n}", 1, at_s=NOON_S + 3600 * n, aggregates=(row,))
    (found,) = await clients[0].store.spend("tenant=acme", NOON_S, NOON_S + 3 * 3600)
    assert (found.input_tokens, found.cost_nano_usd) == (3 * 2**62, 3 * 2**53)
