"""Several processes on one file, some of them killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from askii_middleware.currency import PICO, split_coins
from askii_middleware.stores import open_store
from askii_middleware.stores.base import PARTITIONS

from .processes import LIMIT, RATE, SHARES, TENANTS
from .support import Client, Clock, budget, delivered

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stores.processes", *arguments, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def tell(process: Process, line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def hear(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


def audit(path: Path) -> None:
    """Every invariant of the file, on one snapshot, whoever may be writing at this moment."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("BEGIN")

        def value(query: str, *arguments: str) -> int:
            found: int = db.execute(query, arguments).fetchone()[0] or 0
            return found

        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        records = value("SELECT count(*) FROM records")
        assert value("SELECT max(seq) FROM records") == records
        charged = value("SELECT sum(json_extract(CAST(record AS TEXT), '$.cost_nano_usd')) FROM records")
        assert value("SELECT sum(cost_nano_usd) FROM aggregates") == charged
        assert value("SELECT sum(requests) FROM aggregates") == records
        assert value("SELECT sum(nano_usd) FROM counters WHERE worker = ''") == charged
        assert value("SELECT max(nano_usd) FROM counters WHERE worker = ''") <= LIMIT
        assert value("SELECT count(*) FROM holds JOIN records USING (call_id)") == 0
        assert value("SELECT count(*) FROM operations JOIN records USING (call_id)") == 0
        elsewhere = "SELECT call_id FROM holds WHERE state = 'held' AND worker = '~elsewhere'"
        assert value(f"SELECT count(*) FROM ({elsewhere}) WHERE call_id NOT IN (SELECT call_id FROM operations)") == 0
        held = "SELECT {} FROM holds, json_each(holds.counters) AS j WHERE state = 'held' GROUP BY 1, 2"
        assert set(db.execute(held.format("json_extract(j.value, '$[0]'), worker, sum(nano_usd)"))) == set(
            db.execute("SELECT counter, worker, nano_usd FROM counters WHERE worker <> '' AND nano_usd > 0")
        )
        due = sum(
            spent >= LIMIT * share
            for (spent,) in db.execute("SELECT nano_usd FROM counters WHERE worker = ''")
            for share in SHARES
        )
        assert value("SELECT count(*) FROM alerts") == due
        for tenant in TENANTS:
            mine = "FROM records WHERE tenant = ?"
            costs = [
                row[0]
                for row in db.execute(f"SELECT json_extract(CAST(record AS TEXT), '$.cost_nano_usd') {mine}", (tenant,))
            ]
            coins = value(f"SELECT sum(json_extract(CAST(record AS TEXT), '$.askii_coins')) {mine}", tenant)
            carried = value("SELECT sum(pico_coins) FROM carries WHERE subscription = ?", tenant)
            exact = sum(whole * PICO + pico for whole, pico in (split_coins(cost, RATE) for cost in costs))
            assert coins * PICO + carried == exact
        gaps = "SELECT count(*) FROM (SELECT max(place) - count(*) AS gaps FROM records GROUP BY partition)"
        assert value(f"{gaps} WHERE gaps <> 0") == 0
        known = "SELECT 1 FROM records WHERE (partition, place) = (aside.partition, aside.place)"
        assert value(f"SELECT count(*) FROM aside WHERE NOT EXISTS ({known})") == 0
        passed = "aside JOIN sinks USING (sink, partition) WHERE state = 'delivered' AND place <= position"
        assert value(f"SELECT count(*) FROM {passed}") == 0
    finally:
        db.close()


async def test_streams_of_4_processes_grow_until_the_last_nano_usd_and_report_each_share_once(tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    clock = Clock(time.time())
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.set(budget("tenant=acme", 2000, alert_at=(0.5, 0.8, 1.0)))
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(running("grow", str(path), f"p{n}")) for n in range(4)]
        assert [await hear(process) for process in streams] == ["ready"] * 4
        for process in streams:
            await tell(process)
        held = [json.loads(await hear(process)) for process in streams]
        assert sum(map(sum, held)) == 2000
        assert await client.spent_held() == (0, 2000)
        for process in streams:
            await tell(process)
        assert [json.loads(await hear(process)) for process in streams] == [[False] * 10] * 4
    assert await client.spent_held() == (2000, 0)
    assert [alert.share_ppm for alert in await client.alerts()] == [500_000, 800_000, 1_000_000]
    await client.store.close()


async def test_fifty_kills_at_random_moments_leave_ledger_records_and_outbox_equal(tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    clock = Clock(time.time())
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.set(budget("tenant=*", LIMIT, alert_at=SHARES))
    await client.store.register_sinks(["s", "all"])
    rng = random.Random(7)
    async with running("breed", str(path)) as breeder:
        assert await hear(breeder) == "ready"

        async def spawn(seed: int) -> str:
            await tell(breeder, f"spawn {seed}")
            return await hear(breeder)

        async def kill(pid: str) -> None:
            await tell(breeder, f"kill {pid}")
            assert await hear(breeder) == "dead"

        survivor = await spawn(0)
        for seed in range(1, 51):
            victim = await spawn(seed)
            await asyncio.sleep(rng.uniform(0, 0.25))
            await kill(victim)
            await asyncio.to_thread(audit, path)
        await kill(survivor)
    await client.store.close()

    await client.store.open()
    audit(path)
    clock.now_s = time.time()
    before = await client.store.totals()
    assert before.calls == before.records > 0
    assert before.cost_nano_usd == before.records_nano_usd > 0
    assert before.held_nano_usd > 0
    clock.advance(3600)
    expired = await client.store.totals()
    assert (expired.held_nano_usd, expired.lost) == (0, 0)
    await client.store.heartbeat("heir", 60)
    after = await client.store.totals()
    assert after.lost > 0
    assert after[:4] == before[:4]
    assert await client.alerts()
    assert {scope: held for scope, (_, held) in (await client.spent_held_of("acme")).items()} == {"tenant=acme": 0}

    entries = await client.store.fetch("all", range(PARTITIONS), 10**6)
    assert [entry.record for entry in entries] == [body for _, body in await client.store.records(limit=10**6)]
    left = await client.store.fetch("s", range(PARTITIONS), 10**6)
    assert (await client.store.pending())["s"] == len(left)
    await client.deliver("s", *(delivered(entry.seq, entry.partition) for entry in left))
    assert await client.store.pending() == {"s": 0, "all": after.records}
    audit(path)
    await client.store.close()
