"""A real Prometheus scrapes the demo: what its query API says is what the ledger has."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from askii_middleware.currency import NANO
from askii_middleware.records import UsageRecord, decode_record
from tests.observability.promql import QUERIES, alerts
from tests.observability.running import JOB, Demo, Prometheus, prometheus, running_demo

TRAFFIC_S = 6.0
RATE = 1_000_000
"""Coins per USD: the default."""
USED = "job_scope_period:askii_budget_used:ratio"


@dataclass(frozen=True)
class Scraped:
    """The demo after its traffic, as its last scrape left it."""

    demo: Demo
    server: Prometheus
    records: list[UsageRecord]


@pytest.fixture
async def scraped(tmp_path: Path) -> AsyncIterator[Scraped]:
    (tmp_path / "demo").mkdir()
    async with running_demo(tmp_path / "demo") as demo, prometheus(tmp_path, demo.url) as server:
        await server.has_since(0)
        await asyncio.sleep(TRAFFIC_S)  # scrapes while the figures move
        await demo.quiet()
        await server.has_since(time.time())
        await server.has_since(time.time(), USED)
        yield Scraped(demo, server, await _records(demo))


async def _records(demo: Demo) -> list[UsageRecord]:
    records: list[UsageRecord] = []
    position = 0
    while batch := await demo.tracker.store.records(position):
        position = batch[-1][0]
        records += [decode_record(body) for _, body in batch]
    return records


def nano(usd: dict[str, float]) -> dict[str, int]:
    return {name: round(value * NANO) for name, value in usd.items()}


async def test_prometheus_tells_the_spend_of_the_ledger_and_every_expression_works(scraped: Scraped) -> None:
    server, records = scraped.server, scraped.records
    spent, coins, tokens, calls = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for record in records:
        spent[record.tenant] += record.cost_nano_usd
        coins[record.tenant] += record.cost_nano_usd * RATE
        tokens[record.served_model] += record.usage.input_tokens + record.usage.output_tokens
        calls[record.outcome] += 1
    assert set(spent) == {tenant.name for tenant in scraped.demo.tenants}
    totals = await scraped.demo.tracker.store.totals()
    assert sum(spent.values()) == totals.cost_nano_usd > 0

    # Counters: to the nano-USD, per tenant.
    assert nano(await server.by("tenant_id", "sum by (tenant_id) (llm_cost_usd_total)")) == spent
    assert nano(await server.by("tenant_id", "sum by (tenant_id) (llm_cost_askii_coins_total)")) == coins
    assert await server.by("model", "sum by (model) (llm_tokens_total)") == tokens
    finished = 'sum by (outcome) (askii_requests_total{outcome!="released"})'
    assert await server.by("outcome", finished) == calls

    # Gauges: what is left is the limit without the spend, now that nothing is held.
    limits = {tenant.name: float(tenant.limit_usd) for tenant in scraped.demo.tenants}
    assert await server.by("tenant_id", "budget_limit_usd") == limits
    assert nano(await server.by("tenant_id", "budget_limit_usd - budget_remaining_usd")) == spent
    assert await server.by("sink", "askii_outbox_pending") == {"lago": 0}
    used = await server.by("scope", USED)
    assert used == pytest.approx({f"tenant={name}": spent[name] / NANO / limit for name, limit in limits.items()})

    # Every expression of the dashboard and the rules is understood, and the rules are being evaluated.
    for query in QUERIES:
        await server.query(query.filled())
    groups = (await server.get("rules"))["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in loaded if rule["type"] == "alerting"} == {rule["alert"] for rule in alerts()}
    assert [rule["lastError"] for rule in loaded if rule["health"] == "err"] == []
    (target,) = (await server.get("targets"))["activeTargets"]
    assert (target["labels"]["job"], target["health"]) == (JOB, "up")
