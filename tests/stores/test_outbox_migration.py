"""The outbox of a ledger from before there were partitions."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS, DeadLetter, Lease, partition_of
from askii_middleware.stores.sqlite_schema import APPLICATION_ID
from askii_middleware.stores.sqlite_sql import STEPS

from .support import NOON_S, Client, Clock, delivered

VERSION = 3
TENANTS = ["acme", "other", "acme", "t0", "other", "acme", "t0", "acme"]
"""Of the records c1 to c8."""
POSITION = 4
ASIDE = [(2, "again", NOON_S + 5, "busy"), (3, "dead", NOON_S, "bad"), (6, "delivered", NOON_S, "")]


def old_ledger(path: Path) -> None:
    """A sink `s` that has come to the fourth of eight records, and one `t` that has come to none."""
    with contextlib.closing(sqlite3.connect(path)) as old:
        for step in STEPS[:VERSION]:
            old.executescript(step)
        old.executescript(f"PRAGMA user_version = {VERSION}; PRAGMA application_id = {APPLICATION_ID}")
        for n, tenant in enumerate(TENANTS, 1):
            old.execute("INSERT INTO records VALUES (?, ?, ?, 0, 0, ?)", (n, f"c{n}", tenant, b"{}"))
        old.execute("INSERT INTO sinks VALUES ('s', ?, 7, 'one', ?, ?, 2)", (POSITION, NOON_S + 600, NOON_S + 90))
        old.execute("INSERT INTO sinks (sink, position) VALUES ('t', 0)")
        for seq, state, due_s, reason in ASIDE:
            old.execute("INSERT INTO aside VALUES ('s', ?, ?, ?, 3, ?, 1.5, 2.5)", (seq, state, due_s, reason))
        old.commit()


async def test_every_sink_goes_on_where_it_was(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    old_ledger(path)
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    store = client.store
    await store.open()
    assert await store.pending() == {"s": 4, "t": 8}
    assert await client.waiting("t") == [f"c{n}" for n in range(1, 9)]
    assert await client.waiting("s") == ["c5", "c7", "c8"]
    places: Counter[int] = Counter()
    for entry in await store.fetch("t", range(PARTITIONS), 100):
        places[partition_of(entry.tenant)] += 1
        assert (entry.partition, entry.seq) == (partition_of(entry.tenant), places[entry.partition])
    acme = partition_of("acme")
    assert await store.dead_letters("s") == [DeadLetter(acme, 2, "c3", "acme", "bad", 3, 1.5, 2.5, b"{}")]
    assert await store.lease("s", "two", 60) == [Lease(n, 8, NOON_S + 90, 2) for n in range(PARTITIONS)]
    clock.advance(5)
    assert await client.waiting("s") == ["c2", "c5", "c7", "c8"]
    await store.heartbeat("w", 60)
    await client.settle("c9")
    left = await store.fetch("s", range(PARTITIONS), 100)
    assert (left[-1].call_id, left[-1].seq) == ("c9", 5)
    await client.deliver("s", *(delivered(entry.seq, entry.partition) for entry in left), owner="two")
    assert await store.pending() == {"s": 0, "t": 9}
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert new.execute("SELECT state FROM aside").fetchall() == [("dead",)]
        tables = {name for (name,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert not {"old_sinks", "old_aside"} & tables
