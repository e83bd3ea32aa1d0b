"""What is counted besides the calls themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from askii_middleware.errors import StoreError, UnknownModelError
from askii_middleware.metrics import Metrics
from askii_middleware.sinks.memory import MemorySink

from .support.service import Clock, both_stores, faulty, make_tracker, opened
from .test_metrics import FRESH, record, samples, scrape, value


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    return value(samples(metrics.render("")[0].decode()), name, **labels)


async def test_models_without_a_price_are_counted_by_what_became_of_the_call(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(UnknownModelError):
            await tracker.track_tokens("acme", "nobody-knows", expected_input_tokens=1).__aenter__()
        assert value(await scrape(tracker), "askii_unknown_prices_total", action="reject") == 1
    metrics = Metrics()
    metrics.settled(record(unpriced=True, cost_nano_usd=0), FRESH, 0.0)
    metrics.settled(record(unpriced=True), FRESH, 0.0)
    metrics.settled(record(), FRESH, 0.0)
    assert counted(metrics, "askii_unknown_prices_total", action="allow") == 1
    assert counted(metrics, "askii_unknown_prices_total", action="default") == 1


def test_cut_streams_and_deferred_calls_are_counted_by_api() -> None:
    metrics = Metrics()
    metrics.settled(record(outcome="cut"), FRESH, 0.0)
    metrics.settled(record(), FRESH, 0.0)
    metrics.deferred("openai.responses")
    assert counted(metrics, "askii_cut_streams_total", api="openai.chat") == 1
    assert counted(metrics, "askii_deferred_calls_total", api="openai.responses") == 1


def test_credits_and_charges_by_hand_are_counted_apart_and_are_no_calls() -> None:
    metrics = Metrics()
    metrics.adjusted(250_000_000)
    metrics.adjusted(-1_000_000_000)
    metrics.settled(record(kind="adjustment", cost_nano_usd=-500_000_000), FRESH, 0.0)
    assert counted(metrics, "askii_adjustments_total", direction="up") == 1
    assert counted(metrics, "askii_adjustments_total", direction="down") == 2
    assert counted(metrics, "askii_adjustments_usd_total", direction="up") == 0.25
    assert counted(metrics, "askii_adjustments_usd_total", direction="down") == 1.5
    assert counted(metrics, "askii_requests_total", outcome="completed", api="openai.chat") is None
    assert counted(metrics, "llm_cost_usd_total", model="big", tenant_id="acme") is None


def test_webhooks_are_counted_by_type_and_result() -> None:
    metrics = Metrics()
    metrics.lago_webhook("alert.triggered", "taken")
    metrics.lago_webhook("alert.triggered", "taken")
    assert counted(metrics, "askii_webhooks_total", type="alert.triggered", result="taken") == 2


@both_stores
async def test_calls_of_a_dead_worker_are_counted_where_they_were_found(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        call = await tracker.track_tokens("acme", "big", expected_input_tokens=10).__aenter__()
        assert call.model == "big"
        assert value(await scrape(tracker), "askii_lost_holds_total") == 0
        clock.advance(3600)
        await tracker.store.heartbeat("another", 60)
        tracker.metrics.lost_holds(tracker.store.lost_holds)
        tracker.metrics.lost_holds(tracker.store.lost_holds)
        assert value(await scrape(tracker), "askii_lost_holds_total") == 1


async def test_charges_that_wait_in_journals_and_dead_letters_have_gauges(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    journal = tmp_path / "journal"
    async with make_tracker(store, clock=clock, sinks=[MemorySink()], journal_path=journal) as tracker:
        found = await scrape(tracker)
        assert value(found, "askii_store_up") == 1
        assert value(found, "askii_outbox_dead", sink="memory") == 0
        assert value(found, "askii_journal_entries") == value(found, "askii_journal_bytes") == 0
        assert value(found, "askii_exchange_rate") == 1_000_000
        # Another process of this machine has two that wait.
        (tmp_path / "journal.7").write_bytes(b'{"release":"a"}\n{"release":"b"}\n' + b"\0" * 4096)
        store.down = True
        found = await scrape(tracker)
        assert value(found, "askii_store_up") == 0
        assert value(found, "askii_outbox_dead", sink="memory") is None
        assert (value(found, "askii_journal_entries"), value(found, "askii_journal_bytes")) == (2, 32)
        store.down = False
        (tmp_path / "journal.7").unlink()


async def test_a_scrape_does_not_make_calls_look_up_their_budgets_anew(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        before = tracker.index.matches({"tenant": "acme"})
        await scrape(tracker)
        assert all(a is b for a, b in zip(before, tracker.index.matches({"tenant": "acme"}), strict=True))


async def test_a_store_that_fails_in_the_middle_of_a_scrape_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("memory", tmp_path) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)

        async def away() -> dict[str, int]:
            raise StoreError("away")

        with monkeypatch.context() as patch:
            patch.setattr(tracker.store, "pending", away)
            found = await scrape(tracker)
        assert value(found, "askii_store_up") == 0
        assert not [name for name, _ in found if name.startswith(("budget_", "askii_budget", "askii_outbox"))]
        assert value(await scrape(tracker), "budget_limit_usd", tenant_id="acme") == 1


async def test_a_ledger_that_is_too_slow_for_a_scrape_is_told_as_away_before_the_scraper_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.metrics.LEDGER_S", 0.05)
    store = faulty("memory", tmp_path, Clock())
    async with make_tracker(store) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=10)
        store.faults["status_of"] = ["hang"]
        async with asyncio.timeout(5):
            found = await scrape(tracker)
        assert value(found, "askii_store_up") == 0
        assert value(found, "askii_store_errors_total", operation="scrape") == 1
        assert value(found, "llm_tokens_total", model="big", direction="input", tenant_id="acme") == 10
        assert not [name for name, _ in found if name.startswith(("budget_", "askii_budget", "askii_outbox"))]
        assert value(await scrape(tracker), "budget_limit_usd", tenant_id="acme") == 1
