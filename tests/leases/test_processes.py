"""Real processes with leases on one ledger, one of them killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from askii_middleware.stores import open_store
from tests.stores.support import Client, budget

from .processes import CONCURRENT, TTL_S, RealClock

ROOT = Path(__file__).parents[2]
LIMIT = 10_000_000
HOLD = 2_000


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.leases.processes", *arguments, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def hear(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def start(processes: list[Process]) -> None:
    assert [await hear(process) for process in processes] == ["ready"] * len(processes)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        await process.stdin.drain()


async def opened(url: str) -> Client:
    client = Client(open_store(url), RealClock(time.time()))
    await client.store.open()
    await client.store.set_budget(budget("tenant=*", LIMIT, period="total"))
    await client.refresh()
    return client


async def test_3_processes_of_100_callers_spend_a_limit_to_its_last_call_and_not_beyond(shared_url: str) -> None:
    client = await opened(shared_url)
    async with contextlib.AsyncExitStack() as stack:
        spenders = [await stack.enter_async_context(running("spend", shared_url, f"p{n}", str(HOLD))) for n in range(3)]
        await start(spenders)
        told = [json.loads(await hear(process)) for process in spenders]
    charged = sum(one["charged"] for one in told)
    assert LIMIT - HOLD < charged <= LIMIT
    assert await client.spent_held() == (charged, 0)
    totals = await client.store.totals()
    assert totals.calls == totals.records == sum(one["admitted"] for one in told)
    assert totals.cost_nano_usd == totals.records_nano_usd == charged
    assert await client.store.credits() == []
    await client.store.close()


async def test_what_a_killed_process_loses_counts_as_spent_until_it_is_reclaimed(shared_url: str) -> None:
    client = await opened(shared_url)
    async with contextlib.AsyncExitStack() as stack:
        spenders = [await stack.enter_async_context(running("spend", shared_url, f"p{n}", str(HOLD))) for n in range(3)]
        await start(spenders)
        while (await client.spent_held())[0] < LIMIT // 4:
            await asyncio.sleep(0.005)
        os.kill(spenders[0].pid, signal.SIGKILL)
        for process in spenders[1:]:
            process.stdin.close() if process.stdin is not None else None
        # Its credit and its running calls keep the others from ever seeing "spent": they are stopped at a standstill.
        before = -1
        while before != (before := (await client.spent_held())[0]):
            assert before <= LIMIT
            await asyncio.sleep(0.3)
        for process in spenders[1:]:
            process.kill()
            await process.wait()
        died_s = time.monotonic()
    spent, held = await client.spent_held()
    assert spent + held <= LIMIT
    lost = [row for row in await client.store.credits() if row.holder == "p0"]
    left = sum(row.granted_nano_usd - row.used_nano_usd for row in lost)
    # The bound that docs/leases.md states: what its calls held, and twice the share of one worker.
    assert 0 <= left <= CONCURRENT * HOLD + 2 * LIMIT * 4 // 100
    # Every heartbeat was for a few seconds, as nobody wants to wait for a minute here.
    await asyncio.sleep(max(0.0, died_s + TTL_S + 0.2 - time.monotonic()))
    await client.store.heartbeat("heir", 60)
    rows = await client.store.credits()
    assert (await client.spent_held())[1] == sum(row.granted_nano_usd - row.used_nano_usd for row in rows)
    assert not any(row.alive for row in rows)
    await client.store.reclaim()
    assert await client.spent_held() == (spent, 0)
    totals = await client.store.totals()
    assert totals.cost_nano_usd == totals.records_nano_usd == spent
    await client.store.close()
