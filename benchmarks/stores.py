"""What a shared ledger carries: calls admitted and settled per second, and how long each waits, against the store's
own ping in the same run.

    uv run python benchmarks/stores.py                        # SQLite, Valkey and PostgreSQL, started here
    uv run python benchmarks/stores.py --store sqlite --processes 4 --concurrent 25

A call is one `reserve` and one `settle` of the store, with nothing in between; every process keeps `--concurrent` of
them going. `CPU` is our own processor time per call in the calling processes, the network and the engine apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from askii_middleware.admission import Candidate, ReserveRequest
from askii_middleware.budgets import Budget, BudgetIndex
from askii_middleware.currency import parse_rate
from askii_middleware.stores import open_store
from askii_middleware.stores.base import AggregateRow, Settlement, Store

HOLD, COST = 1000, 700
SCOPES = ("tenant=*", "key=*", "user=*", "team=*", "tenant=*,model=*", "")
"""The first so many are the budgets of a call."""
TENANTS = 50
RATE = parse_rate("1000000").ratio
STORES = ("sqlite", "redis", "postgres")


class Caller:
    """One process's calls."""

    def __init__(self, store: Store, index: BudgetIndex, name: str) -> None:
        self._store = store
        self._index = index
        self._name = name
        self.admit_s: list[float] = []
        self.settle_s: list[float] = []
        self.refused = 0

    async def call(self, number: int) -> None:
        tenant = f"t{number % TENANTS}"
        values = {"tenant": tenant, "key": f"k{tenant}", "user": f"u{tenant}", "team": f"m{tenant}", "model": "gpt-4o"}
        matches = self._index.matches(values)
        windows = self._index.windows(time.time())
        call_id = f"{self._name}-{number}"
        started_s = time.perf_counter()
        admission = await self._store.reserve(
            ReserveRequest(
                call_id=call_id,
                worker=self._name,
                candidates=(Candidate("gpt-4o", HOLD, matches),),
                windows=windows,
                rate=RATE,
                deadline_s=600.0,
                forms_version=self._index.version,
            )
        )
        admitted_s = time.perf_counter()
        self.admit_s.append(admitted_s - started_s)
        if admission.candidate is None:
            self.refused += 1
            return
        settlement = Settlement(
            call_id=call_id,
            admitted_at_s=admission.admitted_at_s,
            cost_nano_usd=COST,
            matches=matches,
            windows=windows,
            rate=RATE,
            subscription=tenant,
            coins=0,
            pico_coins=700_000_000_000,
            tenant=tenant,
            aggregates=(AggregateRow(f"tenant={tenant}", "gpt-4o", "openai", 1, 420, 95, COST),),
            record=msgspec.json.encode(
                {"call_id": call_id, "tenant": tenant, "cost_nano_usd": COST, "metadata": {"filler": "x" * 700}}
            ),
        )
        began_s = time.perf_counter()
        settled = self._store.settle_at_once(settlement)
        if settled is None:
            await self._store.settle(settlement)
        self.settle_s.append(time.perf_counter() - began_s)


async def child(url: str, name: str, budgets: int, calls: int, concurrent: int) -> None:
    """Wait for the word, make the calls, print what was measured."""
    store = open_store(url)
    await store.open()
    await store.heartbeat(name, 600)
    limit = Decimal(1_000_000)
    index = BudgetIndex(Budget(scope=scope or "global", limit_usd=limit) for scope in SCOPES[:budgets])
    index.update(*await store.forms())
    warm, caller = Caller(store, index, f"{name}-w"), Caller(store, index, name)
    await store.heartbeat(f"{name}-w", 600)
    for number in range(20):
        await warm.call(number)
    pings = []
    for _ in range(200):
        began_s = time.perf_counter()
        await store.ping()
        pings.append(time.perf_counter() - began_s)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    numbers = iter(range(calls))

    async def lane() -> None:
        for number in numbers:
            await caller.call(number)
            await asyncio.sleep(0)  # as a request would, between two of its awaits

    began_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(lane() for _ in range(concurrent)))
    print(
        json.dumps(
            {
                "elapsed_s": time.perf_counter() - began_s,
                "cpu_s": time.process_time() - cpu_s,
                "admit_s": caller.admit_s,
                "settle_s": caller.settle_s,
                "ping_s": pings,
                "refused": caller.refused,
            }
        ),
        flush=True,
    )
    await store.close()


def run(url: str, *, processes: int, concurrent: int, calls: int, budgets: int) -> dict[str, Any]:
    """Calls per second over all processes, and percentiles in milliseconds."""
    each = calls // processes
    command = [sys.executable, __file__, "--child", url, str(budgets), str(each), str(concurrent)]
    workers = [
        subprocess.Popen([*command, f"p{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(processes)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [json.loads(worker.communicate()[0]) for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
    return {
        "calls_per_s": each * processes / max(one["elapsed_s"] for one in found),
        "cpu_us": sum(one["cpu_s"] for one in found) / (each * processes) * 1e6,
        "ping_ms": percentiles([s for one in found for s in one["ping_s"]]),
        "admit_ms": percentiles([s for one in found for s in one["admit_s"]]),
        "settle_ms": percentiles([s for one in found for s in one["settle_s"]]),
        "refused": sum(one["refused"] for one in found),
    }


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    cut = statistics.quantiles(seconds, n=100)
    return cut[49] * 1e3, cut[98] * 1e3


@contextlib.contextmanager
def started(kind: str) -> Iterator[Callable[[], str]]:
    """A server of this kind; gives a fresh ledger's URL at each call."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests import servers  # noqa: PLC0415 - the engines come with the development extra

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        numbers = iter(range(1000))
        if kind == "sqlite":
            yield lambda: f"sqlite:///{folder}/askii-{next(numbers)}.db"
            return
        if kind == "redis":
            valkey = servers.Valkey(Path(folder) / "valkey", "--appendonly", "yes")
            (server,) = stack.enter_context(servers.running(valkey))
            yield lambda: f"{server.url}?namespace=bench{next(numbers)}"
            return
        postgres = servers.Postgres()
        stack.callback(postgres.close)
        postgres.start()
        yield lambda: f"{postgres.url}?namespace=bench{next(numbers)}"


async def _created(url: str) -> None:
    store = open_store(url)
    await store.open()
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORES, action="append", help="default: all of them")
    parser.add_argument("--processes", type=int, action="append", help="default: 1 and 4")
    parser.add_argument("--concurrent", type=int, default=100, help="calls at a time over all processes")
    parser.add_argument("--budgets", type=int, action="append", choices=range(1, 7), help="default: 1 and 6")
    parser.add_argument("--calls", type=int, default=20_000)
    options = parser.parse_args()
    print(f"{'store':9} {'procs':>5} {'budgets':>7} {'calls/s':>9} {'CPU µs':>7}", end="")
    print(f"  {'ping p50/p99 ms':>16} {'admit p50/p99 ms':>18} {'settle p50/p99 ms':>18}")
    for kind in options.store or STORES:
        with started(kind) as fresh:
            for processes in options.processes or (1, 4):
                for budgets in options.budgets or (1, 6):
                    url = fresh()
                    asyncio.run(_created(url))
                    row = run(
                        url,
                        processes=processes,
                        concurrent=max(options.concurrent // processes, 1),
                        calls=options.calls,
                        budgets=budgets,
                    )
                    print(f"{kind:9} {processes:5} {budgets:7} {row['calls_per_s']:9,.0f} {row['cpu_us']:7.1f}", end="")
                    for name, width in (("ping_ms", 17), ("admit_ms", 18), ("settle_ms", 18)):
                        p50, p99 = row[name]
                        print(f" {f'{p50:.2f}/{p99:.2f}':>{width}}", end="")
                    print(f"  refused {row['refused']}" if row["refused"] else "", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, its_url, its_budgets, its_calls, its_concurrent, its_name = sys.argv
        asyncio.run(child(its_url, its_name, int(its_budgets), int(its_calls), int(its_concurrent)))
    else:
        main()
