"""What metrics cost: per call, and per scrape with many tenants, on SQLite and on Valkey.

    uv run python benchmarks/metrics.py

A call is one admission and one settlement, with and without metrics in turn, for many tenants of which most are folded
into `other`; the figure is the median of rounds. A scrape is what a scraper waits for without the network: gauges read
from the ledger, everything written out. The figure is that of a minute's first scrape, which also finds out who the
busiest tenants are; the median of the others is told beside it. Prints the machine's load, on which figures depend.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from askii_middleware import Budget, CostTracker, ModelPrice
from askii_middleware.metrics import Metrics
from askii_middleware.records import UsageCounts, UsageRecord
from askii_middleware.scraping import exposition
from askii_middleware.stores.base import Settled

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import Valkey, running
from tests.support.calls import make_call

TARGETS = {"call": 3.0, "sqlite": 60.0, "valkey": 60.0}
"""Microseconds for a call, milliseconds for a scrape."""
ROUNDS = 15
SCRAPES = 15


def record(tenant: str) -> UsageRecord:
    return UsageRecord(
        call_id=f"call-{tenant}",
        timestamp="2026-01-01T00:00:00.000Z",
        tenant=tenant,
        subscription=tenant,
        api="openai.chat",
        provider="openai",
        requested_model="gpt-4o",
        served_model="gpt-4o",
        usage=UsageCounts(input_tokens=812, output_tokens=95),
        cost_nano_usd=174_000,
        price_version="v",
        exchange_rate=1e6,
    )


def call_us(tenants: int) -> float:
    """Microseconds for each call, what is handed over later included."""
    metrics = Metrics()
    records = [record(f"tenant-{number:05}") for number in range(tenants)]
    call, settled = make_call(), Settled(coins=174, late=False, duplicate=False)
    rounds = []
    for _ in range(ROUNDS):
        begun = time.thread_time()
        for one in records:
            metrics.admitted(call, 0.0001)
            metrics.settled(one, settled, 0.0001)
        metrics.flush()
        counted = time.thread_time() - begun
        begun = time.thread_time()
        for _one in records:
            pass
        rounds.append((counted - (time.thread_time() - begun)) / tenants)
    return statistics.median(rounds[1:]) * 1e6


async def scrape_ms(url: str, tenants: int) -> tuple[list[float], list[float], int]:
    """Several scrapes that are the first of a minute, and several others, the shortest first, and their bytes."""
    tracker = CostTracker(
        store=url,
        budgets=[Budget(scope="tenant=*", limit_usd=10)],
        prices={"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)},
    )
    async with tracker:
        for start in range(0, tenants, 100):
            await asyncio.gather(
                *(
                    tracker.record_usage(f"tenant-{number:05}", "big", input_tokens=100 + number, output_tokens=10)
                    for number in range(start, start + 100)
                )
            )
        first: list[float] = []
        others: list[float] = []
        for _ in range(SCRAPES + 1):
            tracker.metrics.gauges.rank_anew()
            for took in (first, others):
                begun = time.perf_counter()
                body, _type = await exposition(tracker, "")
                took.append((time.perf_counter() - begun) * 1000)
    assert body.count(b"\nbudget_remaining_usd{") == 1000, "the busiest 1,000 are shown"
    return sorted(first[1:]), sorted(others[1:]), len(body)


def report(name: str, figure: float, unit: str, more: str = "") -> bool:
    target = TARGETS[name]
    print(f"{name:>8}: {figure:6.2f} {unit} (at most {target:g}){more}")
    return figure <= target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000, help="a multiple of 100")
    tenants = parser.parse_args().tenants
    print(f"{tenants} active tenants; load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")
    fine = report("call", call_us(tenants), "µs")
    with TemporaryDirectory() as folder, running(Valkey(Path(folder) / "valkey")) as (valkey,):
        for name, url in (("sqlite", f"sqlite:///{folder}/askii.db"), ("valkey", valkey.url)):
            took, others, size = asyncio.run(scrape_ms(url, tenants))
            more = f", {took[0]:.1f} to {took[-1]:.1f} ms, others {statistics.median(others):.1f} ms, {size:,} bytes"
            more += f"; load {os.getloadavg()[0]:.2f}"
            fine &= report(name, statistics.median(took), "ms", more)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
