"""Tenants in asynchronous code: blocks, late counts, budgets, stats, on whichever event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, get_cost_tracker
from askii_middleware.budgets import Budget
from askii_middleware.compat import BudgetExceededError, CostTracker, PricingConfig, cost_tracker, homes
from askii_middleware.compat import get_cost_tracker as get_compat_tracker
from askii_middleware.records import UsageRecord, decode_record

from ..support.service import Clock, faulty, make_tracker, opened, records_of, soon, url_of


async def records(tracker: CostTracker) -> list[UsageRecord]:
    async def read(core: Any) -> list[UsageRecord]:
        await core.ready()
        return await records_of(core)

    return await tracker.act(read)


@pytest.fixture(params=["memory", "sqlite"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CostTracker]:
    made = CostTracker(tracker=make_tracker(url_of(request.param, tmp_path), block_grace_s=0.2))
    yield made
    made.close()


async def test_a_block_is_held_for_and_charged_from_another_event_loop(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", 800, max_output_tokens=50) as usage:
        assert usage.model == "big"
        stats = await tracker.get_tenant_stats("acme")
        assert stats["remaining_budget_usd"] == 1 - 0.0009
        usage["input_tokens"], usage["output_tokens"] = 500, 10
    stats = await tracker.get_tenant_stats("acme")
    assert (stats["daily_cost_usd"], stats["remaining_budget_usd"]) == (0.00052, 0.99948)
    assert (stats["total_tokens_by_model"], stats["daily_cost_askii_coins"]) == ({"big": 510}, 520)
    assert tracker.tracker.loop is not asyncio.get_running_loop()


async def test_counts_set_after_the_block_are_charged_at_once(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", 800) as usage:
        pass
    assert await records(tracker) == []
    usage["input_tokens"] = 700
    usage["output_tokens"] = 0
    await soon(lambda: records(tracker))
    (record,) = await records(tracker)
    assert (record.usage.input_tokens, record.cost_nano_usd, record.estimated) == (700, 700_000, False)


async def test_one_late_count_is_charged_when_the_grace_period_ends(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", 800) as usage:
        pass
    usage["input_tokens"] = 700
    await soon(lambda: records(tracker))
    (record,) = await records(tracker)
    assert (record.cost_nano_usd, record.estimated) == (700_000, False)


async def test_a_block_that_never_gets_counts_costs_its_hold_and_takes_none_after(
    tracker: CostTracker, caplog: pytest.LogCaptureFixture
) -> None:
    async with tracker.track_tokens("acme", "big", 800, max_output_tokens=50) as usage:
        pass
    await soon(lambda: records(tracker))
    usage["input_tokens"], usage["output_tokens"] = 1, 1
    (record,) = await records(tracker)
    assert (record.cost_nano_usd, record.estimated) == (900_000, True)
    assert "come after it was settled" in caplog.text


async def test_a_tenant_without_room_is_refused_and_goes_on_with_the_fallback(tracker: CostTracker) -> None:
    await tracker.budget_enforcer.set_daily_budget("acme", 0.0005)
    with pytest.raises(BudgetExceededError):
        async with tracker.track_tokens("acme", "big", 800, max_output_tokens=50):
            pytest.fail("it was admitted")
    tracker.budget_enforcer.fallback_model = "small"
    assert tracker.budget_enforcer.fallback_model == "small"
    async with tracker.track_tokens("acme", "big", 800, max_output_tokens=50) as usage:
        assert (usage.model, usage.fallback_reason) == ("small", "budget")
        usage["input_tokens"] = 800
    assert (await tracker.get_tenant_stats("acme"))["fallback_model"] == "small"
    (record,) = await records(tracker)
    assert (record.served_model, record.cost_nano_usd) == ("small", 80_000)


async def test_a_block_that_fails_without_counts_costs_nothing(tracker: CostTracker) -> None:
    with pytest.raises(OSError, match="no route"):
        async with tracker.track_tokens("acme", "big", 800):
            raise OSError("no route")
    assert (await tracker.get_tenant_stats("acme"))["remaining_budget_usd"] == 1


async def test_a_stream_that_its_reader_leaves_is_charged_for_what_came(tracker: CostTracker) -> None:
    async def stream() -> AsyncIterator[int]:
        async with tracker.track_tokens("acme", "big", 100, max_output_tokens=50) as usage:
            usage["input_tokens"] = 100
            for number in range(10):
                usage["output_tokens"] += 1
                yield number

    reading = stream()
    assert [await anext(reading) for _ in range(3)] == [0, 1, 2]
    await reading.aclose()  # type: ignore[attr-defined]
    (record,) = await records(tracker)
    assert (record.usage.output_tokens, record.cost_nano_usd) == (3, 106_000)


@pytest.mark.parametrize("fault", ["hang", "hang after", "ok"])
async def test_a_caller_cancelled_on_the_way_in_leaves_no_hold(fault: str, tmp_path: Path) -> None:
    store = faulty("sqlite", tmp_path, Clock())
    tracker = CostTracker(tracker=make_tracker(store))
    await tracker.act(lambda core: core.ready())
    store.faults["reserve"] = [fault]

    async def work() -> None:
        async with tracker.track_tokens("acme", "big", 800):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await soon(lambda: "reserve" in store.calls)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

    async def released() -> bool:
        return not (await tracker.act(lambda core: core.store.totals())).held_nano_usd

    await soon(released)
    await asyncio.to_thread(tracker.close)


def test_each_loop_may_be_a_new_one(tracker: CostTracker) -> None:
    async def call() -> None:
        async with tracker.track_tokens("acme", "big", 10) as usage:
            usage["input_tokens"] = 10

    asyncio.run(call())
    tracker.record_usage("k", "big", input_tokens=5)
    asyncio.run(call())
    assert tracker.get_spend("k").total_tokens == 5
    assert asyncio.run(tracker.get_tenant_stats("acme"))["daily_cost_usd"] == 0.00002


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    tracker = get_compat_tracker()
    assert tracker is cost_tracker
    assert tracker.calculate_cost("gpt-4", 1000, 0) == 0.03
    assert list(tmp_path.iterdir()) == []
    assert tracker.check_budget("k") is True
    assert (tmp_path / "askii.db").exists()


def test_all_trackers_without_prices_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKII_STORE", "memory://")
    assert CostTracker().tracker is cost_tracker.tracker is get_cost_tracker()
    with pytest.raises(TypeError, match="pricing or a tracker"):
        CostTracker(PricingConfig(), tracker=get_cost_tracker())


async def test_a_block_in_a_metered_request_is_that_requests_charge(tmp_path: Path) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}

    async def endpoint(request: Request) -> JSONResponse:
        await request.body()
        async with cost_tracker.track_tokens("acme", "gpt-4", 100, max_output_tokens=10) as usage:
            usage["input_tokens"], usage["output_tokens"] = 90, 10
        # Synchronous code has a tracker of its own over the same ledger.
        spent = cost_tracker.run(lambda core: core.get_tenant_stats("acme"))["daily_cost_usd"]
        return JSONResponse({"spent": spent, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

    app = AskiiMiddleware(
        Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["POST"])]),
        identify=lambda _: "acme",
    )
    async with (
        get_cost_tracker() as serving,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as client,
    ):
        assert homes.default() is not serving
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.json()["spent"] == 0.0033
        (record,) = [decode_record(record) for _, record in await serving.store.records()]
        assert (record.cost_nano_usd, record.call_id) == (3_300_000, answer.headers["x-askii-call-id"])


async def test_a_tracker_on_the_callers_own_loop_says_what_to_do(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=*", limit_usd=1)], clock=Clock()) as core:
        tracker = CostTracker(tracker=core)
        async with tracker.track_tokens("acme", "big", 10) as usage:
            usage["input_tokens"] = 10
        with pytest.raises(RuntimeError, match="to_thread"):
            tracker.check_budget("k", 1)
        assert await asyncio.to_thread(tracker.check_budget, "k", 0.5) is True


async def test_a_block_belongs_to_the_tracker_of_the_middleware_around_it(tmp_path: Path) -> None:
    async def endpoint(request: Request) -> JSONResponse:
        async with cost_tracker.track_tokens("acme", "big", 100) as usage:
            usage["input_tokens"] = 90
        return JSONResponse({})

    # Its path is no model's: the block holds for itself, and is the tracker's first use.
    tracker = make_tracker(url_of("memory", tmp_path))
    app = AskiiMiddleware(
        Starlette(routes=[Route("/ask", endpoint, methods=["POST"])]), tracker=tracker, identify=lambda _: "acme"
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as client:
        assert (await client.post("/ask")).status_code == 200
    (record,) = await records_of(tracker)
    assert record.cost_nano_usd == 90_000
    assert not (tmp_path / "askii.db").exists()
    await tracker.stop()
