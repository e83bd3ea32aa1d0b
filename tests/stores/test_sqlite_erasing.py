"""An erasure on SQLite takes several transactions: what happens between them?"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import msgspec
import pytest

from askii_middleware.budgets import Budget
from askii_middleware.errors import StoreError
from askii_middleware.stores import sqlite_forgetting
from askii_middleware.stores.base import AggregateRow, KeyRow, Store, partition_of
from askii_middleware.stores.sqlite_database import Database
from askii_middleware.stores.sqlite_sql import SQL

from .support import DAY_S, NOON_S, Client, Clock, delivered

KEY = KeyRow(id="k", sha256="a" * 64, tenant="acme")


@pytest.fixture
async def caller(sqlite: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Of a ledger that has delivered ten calls of acme, in ten hours, and erases one row at a time."""
    monkeypatch.setattr(sqlite_forgetting, "PIECE", 1)
    monkeypatch.setattr(sqlite_forgetting, "_HOURS", 3)
    client = Client(sqlite, clock)
    await sqlite.register_sinks(["s"])
    await sqlite.put_key(KEY)
    for n in range(10):
        rows = tuple(AggregateRow(scope, "m", "p", 1, 10, 5, 100) for scope in ("tenant=acme", "key=k"))
        await client.settle(f"c{n}", at_s=NOON_S + 3600 * n, aggregates=rows)
    await client.deliver("s", *map(delivered, range(1, 11)))
    return client


async def tenants(store: Store) -> list[str]:
    leases = await store.lease("s", "me", 60)
    return [entry.tenant for entry in await store.fetch("s", [lease.partition for lease in leases], 99)]


async def test_what_is_settled_meanwhile_is_delivered_as_it_was_written(
    caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, loop, looked = caller.store, asyncio.get_running_loop(), asyncio.Event()
    look = sqlite_forgetting._look

    def seen(*arguments: Any) -> Any:
        found = look(*arguments)
        loop.call_soon_threadsafe(looked.set)
        return found

    async def settle() -> None:
        await looked.wait()
        await caller.settle("meanwhile", 7, record=b'{"tenant":"acme","cost_nano_usd":7}')

    monkeypatch.setattr(sqlite_forgetting, "_look", seen)
    erased, _ = await asyncio.gather(store.erase("acme"), settle())
    assert (erased.records, erased.keys) == (10, 1)
    assert await tenants(store) == ["acme"]
    assert msgspec.json.decode(await store.record("meanwhile") or b"")["tenant"] == "acme"
    assert (await store.totals())[:4] == (11, 1007, 11, 1007)
    with pytest.raises(StoreError, match="has not got all of its records"):
        await store.erase("acme")
    await caller.deliver("s", delivered(11))
    assert (await store.erase("acme")).records == 1
    assert (await store.totals())[:4] == (11, 1007, 11, 1007)


@pytest.mark.parametrize("step", ["_anonymise", "_move", "_forget"])
async def test_an_erasure_that_was_cut_short_keeps_the_sums_and_is_repeated(
    caller: Client, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store, work = caller.store, getattr(sqlite_forgetting, step)
    before = await store.totals()
    calls = 0

    def cut(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if step == "_forget" or calls == 4:
            raise StoreError("the disk is full")
        return work(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_forgetting, step, cut)
        with pytest.raises(StoreError, match="the disk is full"):
            await store.erase("acme")
    assert await store.totals() == before
    assert await store.keys() == [KEY]
    assert (await store.erase("acme")).keys == 1
    assert await store.totals() == before
    for scope, cost in (("tenant=acme", 0), ("key=k", 0), ("tenant=deleted", 1000)):
        assert sum(row.cost_nano_usd for row in await store.spend(scope, 0, NOON_S + DAY_S)) == cost, scope
    assert await store.latest("acme", 9) == []


async def test_pruning_looks_at_no_more_rows_than_may_go_at_once(sqlite: Store, clock: Clock) -> None:
    """Others who write wait for it, however many young records a ledger has."""
    client = Client(sqlite, clock)
    await sqlite.settle_many([client.settlement(f"c{n}", 1) for n in range(1000)])
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    with contextlib.closing(sqlite3.connect(sqlite.url.removeprefix("sqlite:///"))) as db:
        db.set_progress_handler(step, 1)
        asked = (partition_of("acme"), clock(), 5)
        assert db.execute(SQL["free_records"], asked).fetchall() == []
        assert steps < 1000
        assert len(db.execute(SQL["free_records"], (*asked[:1], clock() + 1, 5)).fetchall()) == 5


async def test_a_tenant_of_many_keys_is_erased_a_few_rows_at_a_time(
    sqlite: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_forgetting, "PIECE", 5)
    monkeypatch.setattr(sqlite_forgetting, "_LOOKS", 100)
    for n in range(40):
        await sqlite.put_key(KeyRow(id=f"k{n}", sha256=f"{n:064d}", tenant="acme"))
        await sqlite.set_budget(Budget(scope=f"key=k{n}", limit_usd=1))
    hours: list[int] = []
    changes: list[int] = []
    transact, encode = Database._transact, sqlite_forgetting._encode

    def watched(self: Database, connection: sqlite3.Connection, begin: str, work: Any) -> Any:
        before = connection.total_changes
        result = transact(self, connection, begin, work)
        changes.append(connection.total_changes - before)
        return result

    def encoded(what: list[Any]) -> bytes:
        hours.append(len(what))
        return encode(what)

    client = Client(sqlite, Clock())
    for n in range(9):
        await client.settle(f"c{n}", at_s=NOON_S + 3600 * n, aggregates=(AggregateRow("key=k1", "m", "p", 1, 1, 1, 1),))
    monkeypatch.setattr(Database, "_transact", watched)
    monkeypatch.setattr(sqlite_forgetting, "_encode", encoded)
    erased = await sqlite.erase("acme")
    assert (erased.aggregates, erased.keys, erased.budgets) == (9, 40, 40)
    assert max(changes) <= 20
    assert max(hours[::2]) == 2  # of 41 looks each
    assert [await sqlite.budgets(), await sqlite.keys(tenant="acme"), len(await sqlite.keys())] == [[], [], 40]
