"""Three processes with a hundred calls each on one ledger in PostgreSQL: exact to the last nano-USD, and nobody waits
in a circle.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import psycopg

from askii_middleware.stores import open_store
from askii_middleware.stores.base import Settled
from askii_middleware.stores.postgres import PostgresStore, wire

from .postgres_rush import COST, HOLD, SCOPES
from .support import Client, Clock, budget

ROOT = Path(__file__).parents[2]


async def start(url: str, name: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stores.postgres_rush", url, name, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )


async def heard(process: Process) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 60))


def say(*processes: Process) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")


def deadlocks(server: str) -> int:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


async def test_300_concurrent_calls_of_3_processes_on_six_counters_are_exact_and_never_deadlock(
    postgres_server: str, postgres_url: str
) -> None:
    store = open_store(postgres_url)
    await store.open()
    client = Client(store, Clock())
    await client.set(*(budget(scope, None, max_values=3 if scope == "end_user=*" else None) for scope in SCOPES))
    await client.set(budget("global", 100 * HOLD + 9))
    before = deadlocks(postgres_server)
    processes = [await start(postgres_url, name) for name in ("p1", "p2", "p3")]
    assert [await heard(process) for process in processes] == ["ready"] * 3

    say(*processes)
    admitted = {call for process in processes for call in await heard(process)}
    assert len(admitted) == 100
    assert (await store.totals()).held_nano_usd == 100 * HOLD

    say(*processes)
    assert sum([await heard(process) for process in processes]) == 100
    totals = await store.totals()
    assert (totals.calls, totals.cost_nano_usd, totals.records_nano_usd, totals.held_nano_usd) == (
        *(100, 100 * COST, 100 * COST),
        0,
    )

    await client.set(budget("global", None, alert_at=()), budget("user=*", 10**9))
    say(*processes)
    charged = sum([await heard(process) for process in processes])
    say(*processes)
    assert [await process.wait() for process in processes] == [0, 0, 0]
    totals = await store.totals()
    assert (totals.cost_nano_usd, totals.held_nano_usd) == (100 * COST + charged, 0)
    assert deadlocks(postgres_server) == before

    client.clock.now_s = time.time()
    windows = client.index.windows(client.clock.now_s)
    matches = client.index.matches({"tenant": "acme", "user": "u"})
    states = {state.scope: state for state in await store.status(matches, windows, (1, 1))}
    spent = {scope: state.spent_nano_usd for scope, state in states.items()}
    assert spent == dict.fromkeys(("global", "tenant=acme", "user=u"), 100 * COST + charged)
    left = sum(row.granted_nano_usd for row in await store.credits() if row.counter.startswith("user=u|"))
    assert states["user=u"].held_nano_usd == left
    await store.close()


async def test_one_call_sent_many_times_at_once_is_admitted_and_settled_once(postgres_url: str) -> None:
    store = open_store(postgres_url, clock=Clock())
    await store.open()
    await store.heartbeat("w", 600)
    client = Client(store, Clock(), [budget("tenant=*", 100), budget("global", 100)])
    answers = await asyncio.gather(*(client.reserve("a", 100) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].candidate == 0
    settled = await asyncio.gather(*(client.settle("a", 60) for _ in range(20)))
    assert sorted(answer.duplicate for answer in settled) == [False] + [True] * 19
    several = await store.settle_many([client.settlement("b", 5)] * 3)
    assert several == [Settled(0, late=False, duplicate=again) for again in (False, True, True)]
    assert {state.spent_nano_usd for state in await client.status()} == {65}
    await store.close()


async def test_several_reserves_of_one_transaction_are_decided_in_order_and_by_themselves(postgres_url: str) -> None:
    clock = Clock()
    store = PostgresStore(postgres_url, clock=clock)
    await store.open()
    await store.heartbeat("w", 600)
    client = Client(store, clock, [budget("tenant=*", 100), budget("end_user=*", 100, max_values=1)])
    await store.load_terms()
    users = ("ann", "bob", "ann", "cyn", "ann")
    requests = [
        client.request(f"c{n}", 40, values={"end_user": user}, worker="dead" if n == 1 else "w")
        for n, user in enumerate(users)
    ]
    asked = b"[%b]" % b",".join(wire.reserve(request, store._terms) for request in requests)
    answers = wire.decode_answers(await store._call("reserve", clock(), asked))
    assert [kind for kind, _ in answers] == [None, "worker", None, None, None]
    admissions = [wire.decode_admission(answer) for kind, answer in answers if kind is None]
    assert [admission.candidate for admission in admissions] == [0, 0, None, None]
    assert [[s.scope for s in a.states] for a in admissions] == [
        *[["end_user=ann", "tenant=acme"]] * 2,
        ["end_user=*", "tenant=acme"],
        ["end_user=ann", "tenant=acme"],
    ]
    assert await store.reserve(requests[0]) == admissions[0]
    await store.close()
