"""What leases save and cost: store calls per request with 100 concurrent calls, and the CPU time they add to a call.

Run: `python -m benchmarks.leases` (SQLite in a temporary directory), `--store URL` for another ledger, `--simulate` for
the long simulation of 1 to 512 workers with crashes, losses and skewed clocks. Prints tables with their targets.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from statistics import quantiles
from typing import Any

from askii_middleware.admission import Admission, ReserveRequest
from askii_middleware.budgets import Budget
from askii_middleware.leased import LeasedStore
from askii_middleware.leased.delegating import DelegatingStore
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Drawn, DrawRequest, Settled, Settlement, Store, UnwritableError
from tests.stores.support import Client, Clock, budget

CONCURRENT = 100
CALLS = 20_000
HOLD = 20_000
WORKER = "bench"


class Counted(DelegatingStore):
    """Counts what reaches the store, and takes its own CPU time out of the account."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.calls = 0
        self.inside_s = 0.0

    async def _count(self, work: Awaitable[Any]) -> Any:
        self.calls += 1
        began = time.thread_time()
        try:
            return await work
        finally:
            self.inside_s += time.thread_time() - began

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        return await self._store.heartbeat(worker, ttl_s)

    async def reserve(self, request: ReserveRequest) -> Admission:
        return await self._count(self._store.reserve(request))  # type: ignore[no-any-return]

    async def settle(self, settlement: Settlement) -> Settled:
        return await self._count(self._store.settle(settlement))  # type: ignore[no-any-return]

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        return await self._count(self._store.settle_many(settlements))  # type: ignore[no-any-return]

    async def draw(self, request: DrawRequest) -> Drawn:
        return await self._count(self._store.draw(request))  # type: ignore[no-any-return]

    async def extend(self, request: Any) -> Any:
        return await self._count(self._store.extend(request))

    async def release(self, call_id: str) -> None:
        await self._count(self._store.release(call_id))

    async def defer(self, operation: Any) -> bool:
        return await self._count(self._store.defer(operation))  # type: ignore[no-any-return]


class Null(DelegatingStore):
    """Answers at once and writes nothing: what is left is the leases' own time."""

    url = "null://"

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        return await self._store.heartbeat(worker, ttl_s)

    async def reserve(self, request: ReserveRequest) -> Admission:
        return await self._store.reserve(request)

    async def settle(self, settlement: Settlement) -> Settled:
        del settlement
        return ANSWER

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        return [ANSWER] * len(settlements)

    async def release(self, call_id: str) -> None:
        await self._store.release(call_id)

    async def extend(self, request: Any) -> Any:
        return await self._store.extend(request)

    async def defer(self, operation: Any) -> bool:
        return await self._store.defer(operation)


ANSWER = Settled(1, late=False, duplicate=False)


async def load(store: Store, client: Client, calls: int, tag: str) -> tuple[float, list[float]]:
    """`calls` calls by `CONCURRENT` callers. Returns wall seconds and the waits for an admission."""
    waits: list[float] = []
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            call_id = f"{tag}-{number}"
            began = time.perf_counter()
            admission = await client.reserve(call_id, HOLD, worker=WORKER)
            waits.append(time.perf_counter() - began)
            assert admission.candidate == 0
            await store.settle(client.settlement(call_id, HOLD // 2))

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return time.perf_counter() - began, waits


def budgets(count: int) -> list[Budget]:
    scopes = ("tenant=*", "global", "model=*", "tenant=*,model=*", "user=*", "team=*")
    return [Budget(scope=scope, limit_usd=Decimal(1_000_000)) for scope in scopes[:count]]


async def against(url: str, lines: int) -> None:
    print(f"\n{url.partition('://')[0]}, {lines} budget(s) per call, {CONCURRENT} concurrent")
    for leased in (False, True):
        counted = Counted(open_store(url))
        store: Store = LeasedStore(counted) if leased else counted
        await store.open()
        await store.heartbeat(WORKER, 60)
        client = Client(store, Clock(time.time()), budgets(lines))
        client.index.update(*await store.forms())
        await load(store, client, 2000, f"warm{leased}{lines}{time.time()}")
        counted.calls = 0
        cpu = time.process_time()
        took, waits = await load(store, client, CALLS, f"c{leased}{lines}{time.time()}")
        cpu = time.process_time() - cpu
        marks = quantiles(waits, n=100)
        print(
            f"  {'leased' if leased else 'direct'}: {CALLS / took:8.0f} calls/s, {counted.calls / CALLS:.4f} store "
            f"calls per call, admission p50 {marks[49] * 1e6:.1f} us, p99 {marks[98] * 1e6:.1f} us, "
            f"CPU {cpu / CALLS * 1e6:.1f} us per call"
        )
        await store.close()


async def own_time(lines: int) -> None:
    """CPU time that leases add to a call, over a ledger that answers at once: one call's reserve alone, and a whole
    call with its share of settling, against the same loop without leases.
    """
    from askii_middleware.stores.memory import MemoryStore  # noqa: PLC0415 - only here

    memory = MemoryStore()
    null = Null(memory)
    null.url = "null://"
    store = LeasedStore(null)
    await store.open()
    await store.heartbeat(WORKER, 3600)
    client = Client(store, Clock(time.time()), budgets(lines))
    values = {"user": "ann", "team": "red"}
    reserves: list[float] = []
    whole: list[float] = []
    for round_number in range(200):
        requests = [
            client.request(f"o{lines}-{round_number}-{n}", HOLD, worker=WORKER, values=values)
            for n in range(CONCURRENT)
        ]
        settlements = [client.settlement(request.call_id, HOLD // 2, values=values) for request in requests]
        began = time.thread_time()
        for request in requests:
            one = time.perf_counter()
            await store.reserve(request)
            reserves.append(time.perf_counter() - one)
        await asyncio.gather(*(store.settle(settlement) for settlement in settlements))
        leased = time.thread_time() - began
        began = time.thread_time()
        await asyncio.gather(*(null.settle(settlement) for settlement in settlements))
        plain = time.thread_time() - began
        whole.append((leased - plain) / CONCURRENT)
    await store.close()
    late = quantiles(reserves[CONCURRENT * 50 :], n=100)
    marks = quantiles(whole[50:], n=100)
    print(
        f"  {lines} budget(s): reserve p50 {late[49] * 1e6:.1f} us, p99 {late[98] * 1e6:.1f} us; whole call "
        f"p50 {marks[49] * 1e6:.1f} us, p99 {marks[98] * 1e6:.1f} us   (at most 30 us)"
    )


def simulate_all() -> None:
    from tests.leases.simulation import World, simulate  # noqa: PLC0415 - only here

    limit = 1_000_000_000
    print("A limit of about 5,000 calls, asked for more than that; and store calls per call while 1,000 times as much")
    print(
        "is there. Faults: 2 % of messages lost, late or unanswered, delays up to 50 ms, a quarter of workers killed."
    )
    print("workers  faults   spent   held  lost credit  above limit  idle at a refusal (most)  store calls/call, ample")
    for workers, rate in ((1, 1000.0), (3, 400.0), (16, 100.0), (64, 25.0), (512, 4.0)):
        for faults in (False, True):
            world = World(
                workers=workers,
                budgets=[budget("tenant=*", limit)],
                calls_a_second=rate,
                lost=0.02 if faults else 0.0,
                crashes=workers // 4 if faults else 0,
                most_delay_s=0.05 if faults else 0.004,
                for_s=20.0,
            )
            seen = simulate(world)
            ample = simulate(replace(world, budgets=[budget("tenant=*", limit * 1000)], for_s=5.0))
            print(
                f"{workers:7d}  {'yes' if faults else 'no ':6s}  {sum(seen.spent.values()) / limit:6.2%} "
                f"{seen.held / limit:6.2%}  {sum(seen.dead_credit.values()) / limit:10.2%}  "
                f"{max(seen.over, seen.committed_over):11d}  {max(seen.idle_at_refusals, default=0) / limit:24.2%}  "
                f"{ample.operations_per_call:23.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store")
    parser.add_argument("--simulate", action="store_true")
    asked = parser.parse_args()
    gc.freeze()
    if asked.simulate:
        simulate_all()
        return
    with tempfile.TemporaryDirectory() as folder:
        url = asked.store or f"sqlite:///{Path(folder) / 'askii.db'}"
        for lines in (1, 4):
            asyncio.run(against(url, lines))
    print("\nCPU time that leases add to a call")
    for lines in (1, 2, 6):
        asyncio.run(own_time(lines))


if __name__ == "__main__":
    main()
