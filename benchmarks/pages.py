"""How long pages and API answers take over a large ledger: 10,000 tenants, 1,000,000 calls, 10,000 keys.

    uv run python benchmarks/pages.py                       # builds the ledger first, which takes minutes
    uv run python benchmarks/pages.py --ledger /var/tmp/big.db   # builds it there once, and uses it again

One tenant is busy: 400,000 calls over a year, on five models. The others have theirs in the last 30 days. Each answer
is asked for in process, without a socket, once to warm up and then `--rounds` times; what counts is the median by the
clock. CPU is that of the whole process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from askii_middleware import Budget, CostTracker
from askii_middleware.aggregates import aggregates
from askii_middleware.currency import split_coins
from askii_middleware.dashboard.visits import COOKIE
from askii_middleware.keys import hash_secret
from askii_middleware.records import Charge, UsageCounts, UsageRecord, encode_settled_part
from askii_middleware.settling import timestamp_text
from askii_middleware.stores import open_store
from askii_middleware.stores.base import KeyRow, Settlement, Store

TARGET_MS = 50.0
REPORT_TARGET_MS = 100.0
MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "claude-sonnet-4-5", "gemini-2.5-flash")
PROVIDERS = ("openai", "openai", "openai", "anthropic", "google")
YEAR_S, MONTH_S = 365 * 86_400, 30 * 86_400
BATCH = 500
TOKEN = "a-token-for-this-benchmark-only"


def settlement(n: int, calls: int, tenants: int, now_s: float, rate: object) -> Settlement:
    """The n-th call: two of five are the busy tenant's, the others go round."""
    busy = n % 5 < 2
    tenant = f"tenant-{0 if busy else 1 + (n // 5 * 3 + n % 5 - 2) % (tenants - 1):05d}"
    span_s = YEAR_S if busy else MONTH_S
    at_s = now_s - span_s + span_s * (n + 1) / calls
    model = n // 5 % len(MODELS)
    cost = 1_000 + n % 100_000
    record = UsageRecord(
        call_id=f"call-{n:08d}",
        timestamp=timestamp_text(at_s),
        tenant=tenant,
        subscription=tenant,
        key=f"key-{tenant[7:]}",
        user=f"user-{n % 40}",
        api="openai.chat",
        provider=PROVIDERS[model],
        requested_model=MODELS[model],
        served_model=MODELS[model],
        stream=True,
        status=200,
        duration_ms=812.4,
        usage=UsageCounts(input_tokens=812, output_tokens=95),
        charges=(Charge(bucket="input", quantity=812, nano_usd=cost),),
        cost_nano_usd=cost,
        price_version="benchmark",
        exchange_rate=1e6,
    )
    coins, pico = split_coins(cost, rate)  # type: ignore[arg-type]
    return Settlement(
        call_id=record.call_id,
        admitted_at_s=at_s,
        cost_nano_usd=cost,
        matches=(),
        windows={},
        rate=rate.ratio,  # type: ignore[attr-defined]
        subscription=tenant,
        coins=coins,
        pico_coins=pico,
        tenant=tenant,
        aggregates=tuple(aggregates(record)),
        record=encode_settled_part(record),
    )


async def build(store: Store, calls: int, tenants: int, rate: object) -> None:
    now_s = time.time()
    for start in range(0, calls, BATCH):
        await store.settle_many([settlement(n, calls, tenants, now_s, rate) for n in range(start, start + BATCH)])
    for number in range(tenants):
        tenant = f"tenant-{number:05d}"
        await store.put_key(KeyRow(id=f"key-{number:05d}", sha256=hash_secret(f"sk-askii-{tenant}"), tenant=tenant))
        if number % 10 == 0:
            await store.set_budget(Budget(scope=f"tenant={tenant}", limit_usd=5, period="monthly"))
    for _ in range(max(1, calls // 400)):
        await store.tend()  # adds up days


def asked() -> Iterator[tuple[str, str, float]]:
    """What is asked for, by whom, and how long it may take."""
    today = datetime.now(UTC).date()
    month, year = today - timedelta(days=29), today - timedelta(days=364)
    admin, cookie, key = "admin", "page", "sk-askii-tenant-00000"
    busy = "tenant-00000"
    for path in (
        "/",
        "/live",
        f"/tenant?name={busy}",
        "/tenant?name=tenant-07777",
        "/tenants",
        "/budgets",
        "/budgets?find=tenant-0777",
        "/budgets/edit?scope=tenant%3Dtenant-07770&period=monthly",
        "/keys",
        "/prices",
        "/dead-letters",
    ):
        yield path, cookie, TARGET_MS
    for path in (
        f"/api/v1/usage/stats?tenant={busy}",
        "/api/billing/spend/key-00000?period=monthly",
        "/api/billing/budget/key-00000",
        "/api/billing/budgets",
        f"/api/billing/budgets/status?scope=tenant%3D{busy}",
        f"/api/tenants/{busy}",
        "/api/billing/pricing",
        "/api/keys",
        "/api/keys/key-00000",
        "/api/billing/alerts",
        f"/api/billing/explain?tenant={busy}&model=gpt-4o",
        f"/api/billing/report?start_date={month}&end_date={today}",
        f"/api/billing/report?scope=tenant%3D{busy}&start_date={month}&end_date={today}",
    ):
        yield path, admin, TARGET_MS
    for path in ("/api/v1/usage/stats", "/api/keys/key-00000/usage?days=30"):
        yield path, key, TARGET_MS
    yield "/api/keys/key-00000/usage?days=365", key, REPORT_TARGET_MS
    yield f"/api/billing/report?scope=tenant%3D{busy}&start_date={year}&end_date={today}", admin, REPORT_TARGET_MS
    yield f"/api/billing/report?start_date={year}&end_date={today}", admin, REPORT_TARGET_MS


async def measure(url: str, calls: int, tenants: int, rounds: int) -> bool:
    tracker = CostTracker(store=open_store(url), budgets=[Budget(scope="tenant=*", limit_usd=100)])
    fine = True
    async with tracker:
        if (await tracker.store.totals()).records < calls:
            begun = time.perf_counter()
            await build(tracker.store, calls, tenants, tracker.rates.current())
            print(f"built in {time.perf_counter() - begun:.0f} s")
        transport = httpx.ASGITransport(tracker.api(admin_token=TOKEN))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/sign-in", data={"token": TOKEN}, headers={"origin": "http://localhost"})
            cookie = answer.cookies.get(COOKIE)
            client.cookies.clear()
            for path, who, target_ms in asked():
                headers = {"cookie": f"{COOKIE}={cookie}"} if who == "page" else {"authorization": f"Bearer {TOKEN}"}
                if who.startswith("sk-"):
                    headers = {"authorization": f"Bearer {who}"}
                took, cpu = [], []
                for _ in range(rounds + 1):
                    begun, begun_cpu = time.perf_counter(), time.process_time()
                    answer = await client.get(path, headers=headers)
                    took.append((time.perf_counter() - begun) * 1000)
                    cpu.append((time.process_time() - begun_cpu) * 1000)
                    answer.raise_for_status()
                    assert answer.status_code == 200, (path, answer.status_code)
                median = statistics.median(took[1:])
                fine &= median <= target_ms
                print(
                    f"{median:8.1f} ms (at most {target_ms:g}; {min(took):.1f} to {max(took[1:]):.1f}; CPU"
                    f" {statistics.median(cpu[1:]):.1f}), first {took[0]:.1f}: {path}  {len(answer.content):,} bytes"
                )
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000, help=f"a multiple of {BATCH}")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ledger", type=Path, help="an SQLite file to build, or to use again")
    parser.add_argument("--url", help="another store, such as redis://localhost/0")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{options.ledger or Path(folder) / 'askii.db'}"
        return 0 if asyncio.run(measure(url, options.calls, options.tenants, options.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
