"""The page about metrics names what is served, and what waits for sinks is served."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget
from askii_middleware.sinks.base import Delivery, Verdict
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.tracker import CostTracker

from .sinks.support import ScriptedSink
from .support.service import Clock, opened, soon
from .test_metrics import Samples, get, scrape, value

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


async def test_the_page_names_every_metric_that_is_served_and_no_other(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, sinks=[MemorySink()]) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        text = (await get(tracker)).text
    served = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\|(.*?)\|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`((?:askii|llm|budget)_\w+)", row)}
    named.add("askii_overhead_seconds")  # has a section of its own
    assert "`askii_overhead_seconds{" in page
    assert served == named


async def test_gauges_tell_how_long_records_wait_for_a_sink_and_how_many_it_has_rejected(tmp_path: Path) -> None:
    clock = Clock()
    verdicts = (Verdict("rejected", "no such code"), Verdict("again", "busy", 3600.0))
    sink = ScriptedSink("log", [Delivery((each,)) for each in verdicts])
    async with opened("sqlite", tmp_path, clock=clock, sinks=[sink]) as tracker:
        for number, result in enumerate(("dead", "again")):
            await tracker.record_usage("acme", "big", input_tokens=1, call_id=f"call-{number}")
            await soon(partial(is_told, tracker, result))
        clock.advance(50)
        found = await scrape(tracker)
        assert value(found, "askii_outbox_pending", sink="log") == 1
        assert value(found, "askii_outbox_oldest_seconds", sink="log") == 50
        assert value(found, "askii_outbox_dead", sink="log") == 1
        assert value(found, "askii_store_up") == 1


async def is_told(tracker: CostTracker, result: str) -> bool:
    return value(await scrape(tracker), "askii_sink_events_total", sink="log", result=result) == 1


async def test_among_too_many_tenants_the_busiest_are_found_once_a_minute_and_shown_as_they_are(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path, max_series=2) as tracker:
        for number in range(3):
            await tracker.record_usage(f"t{number}", "big", input_tokens=1000 * (number + 1))
        assert left(await scrape(tracker)) == {"t1": 0.998, "t2": 0.997}
        await tracker.record_usage("t0", "big", input_tokens=9000)
        await tracker.record_usage("t1", "big", input_tokens=1000)
        assert left(await scrape(tracker)) == {"t1": 0.997, "t2": 0.997}
        tracker.metrics.gauges.rank_anew()
        assert left(await scrape(tracker)) == {"t0": 0.99, "t1": 0.997}


async def test_a_tenant_called_like_a_wildcard_has_a_gauge_like_others(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.record_usage("*", "big", input_tokens=1000)
        assert left(await scrape(tracker)) == {"*": 0.999}


def left(found: Samples) -> dict[str, float]:
    return {dict(labels)["tenant_id"]: usd for (name, labels), usd in found.items() if name == "budget_remaining_usd"}


async def test_a_thousand_tenants_are_looked_up_in_one_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = [Budget(scope="global", limit_usd=9), *(Budget(scope=f"tenant=t{n}", limit_usd=1) for n in range(1000))]
    async with opened("sqlite", tmp_path, budgets=budgets) as tracker:
        asked: list[int] = []
        real = tracker.store.status_of

        async def counting(calls: Any, *more: Any) -> Any:
            asked.append(len(calls))
            return await real(calls, *more)

        monkeypatch.setattr(tracker.store, "status_of", counting)
        found = await scrape(tracker)
    assert asked == [1000]
    assert len(left(found)) == 1000
    assert value(found, "askii_budget_limit_usd", scope="global", period="daily") == 9


async def test_global_budgets_are_shown_where_no_tenant_is(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="global", limit_usd=9)]) as tracker:
        found = await scrape(tracker)
    assert value(found, "askii_budget_remaining_usd", scope="global", period="daily") == 9
