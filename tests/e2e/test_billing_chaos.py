"""Nothing lost, nothing doubled: workers that record and deliver are killed again and again, and so is the receiver,
while the ledger, the network and the receiver fail at random. Repeat a run with its seed, ASKII_CHAOS_SEED.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from random import Random

import msgspec
import pytest

from askii_middleware.stores import open_store
from tests.support.lago_books import Books
from tests.support.lago_server import Faults

from .billing_worker import TENANTS, Plan, planned

RECORDS = int(os.environ.get("ASKII_CHAOS_RECORDS", "10000"))
KILLS = int(os.environ.get("ASKII_CHAOS_KILLS", "50"))
SEED = int(os.environ.get("ASKII_CHAOS_SEED", "2026"))
STORES = os.environ.get("ASKII_CHAOS_STORES", "sqlite,redis,postgres").split(",")
WORKERS = 3
SERVER_KILLS = 5
ROOT = Path(__file__).parents[2]
CHANCES = {
    fault: chance
    for chance, faults in {
        0.02: ("reset", "reset after", "500", "429"),
        0.01: ("hang", "hang after", "half", "half after", "500 after", "502", "502 after", "503", "413"),
        0.005: ("401", "403", "404", "408", "web"),
    }.items()
    for fault in faults
}


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger that nobody has used; for a server's, the fixture `<kind>_url` names it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'askii.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


class Program:
    """A process that does one thing for each line it gets, and answers with a line."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, line: str = "") -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await self.hear()

    async def hear(self) -> str:
        assert self._process.stdout is not None
        heard = (await self._process.stdout.readline()).decode().strip()
        assert heard, "the program ended by itself"
        return heard


@asynccontextmanager
async def program(module: str, *arguments: str) -> AsyncIterator[Program]:
    """Run a module; its children die with its standard input."""
    command = (sys.executable, "-m", module, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        yield Program(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to restart quickly")
async def test_whatever_fails_and_whoever_is_killed_every_record_is_billed_once_and_every_coin(
    store_url: str, tmp_path: Path
) -> None:
    chance = Random(SEED)
    store = open_store(store_url)
    await store.open()
    await store.register_sinks(["lago"])
    faults = Faults(chances=CHANCES, seed=SEED, hang_s=0.4, reset_s=0.1, delay_s=0.001)
    books_path = str(tmp_path / "lago.db")
    books = Books(books_path, clock=time.time)
    async with (
        asyncio.timeout(180),
        program("tests.support.lago_server", books_path, msgspec.json.encode(faults).decode()) as lago,
    ):
        plan = Plan(store_url, await lago.hear(), str(tmp_path / "journal"), RECORDS, WORKERS, fault=0.02)
        async with program("tests.e2e.billing_worker", msgspec.json.encode(plan).decode()) as workers:
            assert await workers.hear() == "ready"
            for slot in range(WORKERS):
                await workers.ask(f"{slot} {chance.randrange(10**9)}")
            for kill in range(KILLS):
                while books.count < RECORDS * 0.95 * kill // KILLS:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(chance.uniform(0, 0.03))
                await workers.ask(f"{chance.randrange(WORKERS)} {chance.randrange(10**9)}")
                if (kill + 1) % max(KILLS // SERVER_KILLS, 1) == 0:
                    assert await lago.ask() == "dead"
            while (await store.pending())["lago"] or (await store.totals()).records < RECORDS:
                await asyncio.sleep(0.05)
    totals = await store.totals()
    letters = await store.dead_letters("lago")
    await store.close()
    assert letters == []
    assert totals.records == totals.calls == RECORDS
    assert totals.records_nano_usd == totals.cost_nano_usd == sum(planned(n).nano_usd for n in range(RECORDS))
    events = books.events()
    assert sorted(event.transaction_id for event in events) == [f"call-{n:06d}" for n in range(RECORDS)]
    assert books.unbilled() == []
    assert books.billed() == owed()
    for n in range(RECORDS):
        call = planned(n)
        event = books.event(call.call_id, TENANTS[call.tenant])
        assert event is not None
        assert event.properties["input_tokens"] == str(call.input_tokens)
    sent = books.sent()
    assert len(sent) == RECORDS
    assert all(len(forms) == 1 for forms in sent.values()), "a repetition had other bytes"
    assert max(times for (times,) in sent.values()) > 1, "nothing was sent twice: the test shows nothing"
    books.close()


def owed() -> dict[str, int]:
    """Whole coins of each subscription: what all its calls come to exactly, rounded down once."""
    exact = dict.fromkeys(TENANTS.values(), Fraction(0))
    for call in map(planned, range(RECORDS)):
        exact[TENANTS[call.tenant]] += Fraction(call.nano_usd, 10**9) * Fraction(call.rate)
    return {subscription: math.floor(coins) for subscription, coins in exact.items()}
