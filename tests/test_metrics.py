"""The metrics of the contract (§9): their names, their labels, their bounds, and where gauges come from."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from askii_middleware.budgets import Budget
from askii_middleware.errors import BudgetExceededError
from askii_middleware.metrics import Metrics
from askii_middleware.records import UsageCounts, UsageRecord
from askii_middleware.scraping import metrics_app
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import Settled
from askii_middleware.tracker import CostTracker

from .support.calls import make_call
from .support.service import NOW_S, Clock, both_stores, faulty, make_tracker, opened, soon

ROOT = Path(__file__).parents[1]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def get(tracker: CostTracker, headers: Any = None, token: str | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(app=metrics_app(tracker, token=token))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/metrics", headers=headers)


async def scrape(tracker: CostTracker) -> Samples:
    return samples((await get(tracker)).text)


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


def record(model: str = "big", tenant: str = "acme", **fields: Any) -> UsageRecord:
    defaults: dict[str, Any] = {
        "call_id": "c",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "tenant": tenant,
        "subscription": tenant,
        "api": "openai.chat",
        "provider": "openai",
        "requested_model": model,
        "served_model": model,
        "usage": UsageCounts(input_tokens=10, output_tokens=5),
        "cost_nano_usd": 20_000,
        "price_version": "v",
        "exchange_rate": 1e6,
    }
    return UsageRecord(**{**defaults, **fields})


FRESH = Settled(coins=20, late=False, duplicate=False)


# Counters ------------------------------------------------------------------------------------------------------------


@both_stores
async def test_every_counter_of_the_contract_counts_under_its_name_and_labels(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "budgets": [Budget(scope="tenant=*", limit_usd="0.01")],
        "fallbacks": {"big": ["small"]},
        "sinks": [MemorySink()],
    }
    async with opened(kind, tmp_path, **options) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=1000, max_output_tokens=10) as usage:
            usage["input_tokens"] = 1000
            usage["output_tokens"] = 10
        async with tracker.track_tokens("acme", "big", expected_input_tokens=50_000, max_output_tokens=0) as usage:
            usage["input_tokens"] = 3
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "small", expected_input_tokens=10**8).__aenter__()
        with pytest.raises(KeyError):
            await _fail(tracker)
        await soon(lambda: _delivered(tracker))
        found = await scrape(tracker)
        assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="acme") == 1000
        assert value(found, "llm_tokens_total", model="big", direction="output", tenant_id="acme") == 10
        assert value(found, "llm_tokens_total", model="small", direction="input", tenant_id="acme") == 3
        assert value(found, "llm_tokens_total", model="small", direction="output", tenant_id="acme") is None
        assert value(found, "llm_cost_usd_total", model="big", tenant_id="acme") == 0.00102
        assert value(found, "llm_cost_askii_coins_total", model="big", tenant_id="acme") == 1020
        assert value(found, "askii_requests_total", outcome="completed", api="code") == 2
        assert value(found, "askii_requests_total", outcome="released", api="code") == 1
        assert value(found, "askii_fallbacks_total", requested_model="big", served_model="small", reason="budget") == 1
        assert value(found, "askii_sink_events_total", sink="memory", result="delivered") == 2
        assert value(found, "askii_overhead_seconds_count", phase="admit") == 3
        assert value(found, "askii_overhead_seconds_count", phase="settle") == 2
        assert value(found, "askii_overhead_seconds_bucket", phase="admit", le="+Inf") == 3


async def _fail(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", expected_input_tokens=1):
        raise KeyError


async def _delivered(tracker: CostTracker) -> bool:
    return (await tracker.store.pending())["memory"] == 0


def test_refusals_and_flags_are_counted() -> None:
    metrics = Metrics()
    metrics.refused("tenant", "spent")
    metrics.settled(record(estimated=True, anomalous=True, unpriced=True), FRESH._replace(late=True), 0.001)
    found = samples(metrics.render("")[0].decode())
    assert value(found, "askii_refusals_total", scope_kind="tenant", reason="spent") == 1
    for flag in ("estimated", "anomalous", "unpriced", "late"):
        assert value(found, "askii_flagged_calls_total", flag=flag) == 1


def test_a_call_is_counted_once_also_while_its_charge_waits() -> None:
    metrics = Metrics()
    metrics.settled(record(), None, 0.001)
    metrics.settled(record(), FRESH._replace(duplicate=True), 0.001)
    found = samples(metrics.render("")[0].decode())
    assert value(found, "askii_requests_total", outcome="completed", api="openai.chat") == 1


def test_sums_survive_any_number_of_flushes() -> None:
    metrics = Metrics(max_series=3)
    for number in range(10):
        metrics.settled(record(tenant=f"t{number % 4}"), FRESH, 0.001)
        metrics.flush()
    found = samples(metrics.render("")[0].decode())
    assert sum(v for (name, _), v in found.items() if name == "llm_cost_usd_total") == pytest.approx(10 * 20_000 / 1e9)
    assert value(found, "askii_overhead_seconds_sum", phase="settle") == pytest.approx(0.01)


# Cost ----------------------------------------------------------------------------------------------------------------


def test_counting_a_call_takes_microseconds() -> None:
    metrics = Metrics()
    one, call = record(), make_call()

    def round_s() -> float:
        begun = time.perf_counter()
        for _ in range(2000):
            metrics.admitted(call, 0.0001)
            metrics.settled(one, FRESH, 0.0001)
        return (time.perf_counter() - begun) / 2000

    # Measured: 1.3 µs on a quiet machine. The bound only catches a look-up of labels per call, 10 µs and more.
    assert min(round_s() for _ in range(5)) < 9e-6


# Gauges --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_gauges_show_each_tenants_tightest_budget_and_every_scope(kind: str, tmp_path: Path) -> None:
    budgets = [
        Budget(scope="tenant=*", limit_usd=2),
        Budget(scope="tenant=acme", limit_usd=1, period="monthly"),
        Budget(scope="tenant=free", limit_usd=None),
        Budget(scope="user=u1", limit_usd=4),
        Budget(scope="global", limit_usd=100, period="total"),
    ]
    async with opened(kind, tmp_path, budgets=budgets, sinks=[MemorySink()]) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=250_000)
        await tracker.record_usage("other", "big", input_tokens=500_000)
        await tracker.record_usage("free", "big", input_tokens=1000)
        found = await scrape(tracker)
        assert value(found, "budget_remaining_usd", tenant_id="acme") == 0.75
        assert value(found, "budget_limit_usd", tenant_id="acme") == 1
        assert value(found, "budget_remaining_askii_coins", tenant_id="acme") == 750_000
        assert value(found, "budget_daily_reset_time", tenant_id="acme") == NOW_S + 31 * 86_400
        assert value(found, "budget_remaining_usd", tenant_id="other") == 1.5
        assert value(found, "budget_daily_reset_time", tenant_id="other") == NOW_S + 86_400
        # An exempt tenant is bound by the global budget alone.
        assert value(found, "budget_limit_usd", tenant_id="free") == 100
        assert value(found, "askii_budget_remaining_usd", scope="tenant=acme", period="monthly") == 0.75
        assert value(found, "askii_budget_limit_usd", scope="tenant=other", period="daily") == 2
        assert value(found, "askii_budget_limit_usd", scope="user=u1", period="daily") == 4
        assert value(found, "askii_budget_remaining_usd", scope="global", period="total") == pytest.approx(99.249)
        assert value(found, "askii_outbox_pending", sink="memory") is not None
        assert not [name for name, v in found.items() if v == float("inf") and name[0].startswith("budget")]


async def test_gauges_follow_the_ledger_and_leave_nothing_behind(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("sqlite", tmp_path, clock=clock, budgets=[]) as tracker:
        await tracker.budget_enforcer.set_daily_budget("acme", 1)
        assert value(await scrape(tracker), "budget_remaining_usd", tenant_id="acme") == 1
        async with tracker.track_tokens("acme", "big", expected_input_tokens=250_000, max_output_tokens=0) as usage:
            assert value(await scrape(tracker), "budget_remaining_usd", tenant_id="acme") == 0.75
            usage["input_tokens"] = 0
        await tracker.budget_enforcer.remove_budget("tenant=acme")
        found = await scrape(tracker)
        assert value(found, "budget_remaining_usd", tenant_id="acme") is None
        assert value(found, "askii_budget_limit_usd", scope="tenant=acme", period="daily") is None


async def test_another_processs_budget_is_seen_at_the_next_scrape(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("sqlite", tmp_path, clock=clock, budgets=[]) as ours, opened("sqlite", tmp_path) as theirs:
        await theirs.budget_enforcer.set_budget(Budget(scope="tenant=acme", limit_usd=3, period="weekly"))
        assert value(await scrape(ours), "budget_limit_usd", tenant_id="acme") == 3


async def test_with_the_ledger_away_there_are_counters_and_no_stale_gauges(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    async with make_tracker(store, clock=clock, sinks=[MemorySink()]) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        assert value(await scrape(tracker), "budget_limit_usd", tenant_id="acme") == 1
        store.down = True
        answer = await get(tracker)
        assert answer.status_code == 200
        found = samples(answer.text)
        assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="acme") == 10
        assert value(found, "askii_store_errors_total", operation="scrape") == 1
        assert not [name for name, _ in found if name.startswith(("budget_", "askii_budget"))]
        store.down = False
        assert value(await scrape(tracker), "budget_limit_usd", tenant_id="acme") == 1


async def test_tenants_are_bounded_the_busiest_first(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, max_series=5) as tracker:
        for number in range(20):
            await tracker.record_usage(f"t{number:02}", "big", input_tokens=number + 1)
        found = await scrape(tracker)
        shown = {dict(labels)["tenant_id"] for name, labels in found if name == "budget_remaining_usd"}
        assert shown == {f"t{number}" for number in range(15, 20)}


async def test_scrapes_at_once_agree(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("memory", tmp_path, clock, turns=1)
    async with make_tracker(store, clock=clock) as tracker:
        for number in range(20):
            await tracker.record_usage(f"t{number:02}", "big", input_tokens=number + 1)
        answers = await asyncio.gather(*(scrape(tracker) for _ in range(5)))
        for found in answers:
            assert len([name for name, _ in found if name == "budget_remaining_usd"]) == 20


# Serving -------------------------------------------------------------------------------------------------------------


async def test_a_token_guards_the_metrics(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        for header in (None, "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3crété"):
            headers = {} if header is None else {"authorization": header.encode()}
            assert (await get(tracker, headers, token="s3cret")).status_code == 401
        for header in ("Bearer s3cret", "bearer s3cret"):
            assert (await get(tracker, {"authorization": header}, token="s3cret")).status_code == 200


async def test_the_format_is_negotiated(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        plain = await get(tracker)
        assert plain.headers["content-type"].startswith("text/plain")
        openmetrics = await get(tracker, {"accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


def test_several_processes_add_their_counters_and_agree_on_gauges(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from askii_middleware import Budget, CostTracker, ModelPrice

        async def main():
            tracker = CostTracker(
                store="sqlite:///ledger.db",
                budgets=[Budget(scope="tenant=*", limit_usd=1)],
                prices={"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2)},
            )
            async with tracker:
                await tracker.record_usage("acme", "big", input_tokens=100)
                await tracker.metrics.refresh(tracker)
                print(tracker.metrics.render("")[0].decode())

        asyncio.run(main())
    """
    (tmp_path / "metrics").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
        "PYTHONWARNINGS": "error",
    }
    for number in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found = samples(done.stdout)
        assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="acme") == 100 * number
        assert value(found, "budget_remaining_usd", tenant_id="acme") == pytest.approx(1 - number * 0.0001)
        assert value(found, "askii_overhead_seconds_count", phase="settle") == number
