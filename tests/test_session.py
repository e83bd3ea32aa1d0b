"""A tracker's standing with its ledger: start and stop, lost stores, lost heartbeats, lost event loops."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.calls import CallSpec
from askii_middleware.errors import BudgetExceededError, ConfigurationError, StoreError
from askii_middleware.identity import Identity
from askii_middleware.sinks.base import DELIVERED, Delivery
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.tracker import CostTracker

from .support.service import (
    Clock,
    FaultyStore,
    amounts,
    assert_balanced,
    both_stores,
    cancelled_at,
    faulty,
    make_tracker,
    opened,
    records_of,
    soon,
    url_of,
)

ROOT = Path(__file__).parents[1]


async def use(tracker: CostTracker, tokens: int = 10) -> None:
    block = tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0)
    async with block as usage:
        usage["input_tokens"] = tokens


async def spent(store: FaultyStore) -> int:
    return (await store.inner.totals()).cost_nano_usd


TASKS = ["askii-delivery-alert:log", "askii-delivery-memory", "askii-heartbeat", "askii-items"]


def tasks_of_ours() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("askii")]


# Start and stop ------------------------------------------------------------------------------------------------------


@both_stores
async def test_starts_and_stops_are_counted_and_stopping_again_does_nothing(kind: str, tmp_path: Path) -> None:
    tracker = make_tracker(url_of(kind, tmp_path), sinks=[MemorySink()])
    await tracker.start()
    await tracker.start()
    await tracker.stop()
    assert sorted(tasks_of_ours()) == TASKS
    await use(tracker)
    await tracker.stop()
    assert tasks_of_ours() == []
    await tracker.stop()
    await tracker.start()
    await use(tracker)
    await tracker.stop()
    assert [path.suffix for path in tmp_path.iterdir()] == ([".db"] if kind == "sqlite" else [])


async def test_a_start_during_a_stop_finds_the_ledger_open(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock, turns=3)
    tracker = make_tracker(store, clock=clock, sinks=[MemorySink()])
    await tracker.start()
    await asyncio.gather(tracker.stop(), tracker.start())
    assert sorted(tasks_of_ours()) == TASKS
    assert tracker.loop is asyncio.get_running_loop()
    await tracker.stop()
    assert tasks_of_ours() == []


async def test_a_tracker_that_never_started_stops(tmp_path: Path) -> None:
    tracker = make_tracker(url_of("sqlite", tmp_path))
    await tracker.stop()
    assert list(tmp_path.iterdir()) == []


@both_stores
async def test_a_tracker_starts_with_its_first_call(kind: str, tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = make_tracker(url_of(kind, tmp_path), sinks=[sink])
    await asyncio.gather(*(use(tracker) for _ in range(10)))
    await tracker.stop()
    assert len(sink.records) == 10
    assert tasks_of_ours() == []


async def test_stopping_delivers_and_closes_the_sinks(tmp_path: Path) -> None:
    class Slow(MemorySink):
        closed = 0

        async def send(self, records: Any) -> Delivery:
            await asyncio.sleep(0.05)
            return await super().send(records)

        async def close(self) -> None:
            self.closed += 1

    sink = Slow()
    async with make_tracker(url_of("sqlite", tmp_path), sinks=[sink]) as tracker:
        await use(tracker)
    assert (len(sink.records), sink.closed) == (1, 1)


async def test_what_cannot_be_delivered_in_time_stays_in_the_outbox(tmp_path: Path) -> None:
    class Stuck(MemorySink):
        async def send(self, records: Any) -> Delivery:
            await asyncio.Event().wait()
            return Delivery((DELIVERED,) * len(records))

    tracker = make_tracker(url_of("sqlite", tmp_path), sinks=[Stuck(name="s")])
    await tracker.start()
    await use(tracker)
    await tracker.stop(flush_s=0.1)
    later = MemorySink(name="s")
    async with make_tracker(url_of("sqlite", tmp_path), sinks=[later]):
        pass
    assert len(later.records) == 1


@both_stores
async def test_a_stop_that_is_cancelled_closes_everything_all_the_same(kind: str, tmp_path: Path) -> None:
    class Slow(MemorySink):
        async def send(self, records: Any) -> Delivery:
            await asyncio.sleep(0.01)
            return await super().send(records)

    for step in range(12):
        folder = tmp_path / str(step)
        folder.mkdir()
        clock = Clock()
        store = faulty(kind, folder, clock, turns=1)
        tracker = make_tracker(store, clock=clock, sinks=[Slow()])
        await tracker.start()
        await use(tracker)
        async with tracker.track_tokens("acme", "big", expected_input_tokens=1, max_output_tokens=0):
            pass
        await cancelled_at(step, tracker.stop())
        await tracker.stop()
        assert tasks_of_ours() == [], step
        await store.inner.open()
        assert await spent(store) == 11_000, step
        await store.inner.close()


async def test_fallbacks_that_cannot_work_refuse_the_start(tmp_path: Path) -> None:
    for fallbacks, message in (
        ({"big": ["small"], "small": ["big"]}, "leads back"),
        ({"big": ["nobody-knows"]}, "has no price"),
    ):
        tracker = make_tracker(url_of("sqlite", tmp_path), fallbacks=fallbacks)
        with pytest.raises(ConfigurationError, match=message):
            await tracker.start()
        await tracker.stop()


# A store that is away ------------------------------------------------------------------------------------------------


async def test_a_strict_start_without_a_store_fails_and_leaves_nothing_behind(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("memory", tmp_path, clock)
    store.down = True
    tracker = make_tracker(store, clock=clock, journal_path=str(tmp_path / "j"))
    with pytest.raises(StoreError, match="away"):
        await tracker.start()
    assert tasks_of_ours() == []
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_named_and_not_made(tmp_path: Path) -> None:
    for journal_path, message in ((str(tmp_path / "j"), "create its directory"), (None, "journal_path")):
        tracker = make_tracker(f"sqlite:///{tmp_path}/none/ledger.db", journal_path=journal_path)
        with pytest.raises(StoreError, match=message):
            await tracker.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["deny", "allow"])
@both_stores
async def test_a_store_that_comes_back_is_used_without_a_restart(
    kind: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.session.RECONNECT_S", 0.01)
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    store.down = True
    tracker = make_tracker(store, clock=clock, on_store_error=policy, journal_path=str(tmp_path / "j"))
    await tracker.start(strict=False)
    if policy == "deny":
        with pytest.raises(StoreError):
            await use(tracker)
    else:
        await use(tracker, 3)
        await use(tracker, 4)
    store.down = False
    await soon(lambda: spent_is(tracker, 7000 if policy == "allow" else 0))
    await soon(lambda: tracker._session.is_ready)
    await use(tracker, 10)
    assert await amounts(tracker) == (17_000 if policy == "allow" else 10_000, 0)
    await assert_balanced(tracker)
    await tracker.stop()
    assert tasks_of_ours() == []


async def spent_is(tracker: CostTracker, nano_usd: int) -> bool:
    try:
        return (await amounts(tracker))[0] == nano_usd
    except StoreError:
        return False


@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after"])
@both_stores
async def test_a_denied_call_whose_hold_may_stand_leaves_none(kind: str, fault: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, settle_timeout_s=0.05) as tracker:
        store.faults["reserve"] = [fault]
        with pytest.raises(StoreError):
            await use(tracker)
        await tracker.flush(1.0)
        assert await amounts(tracker) == (0, 0)
        await use(tracker)
        assert await amounts(tracker) == (10_000, 0)
        text = tracker.metrics.render("")[0].decode()
        assert 'askii_store_errors_total{operation="reserve"} 1.0' in text


@pytest.mark.parametrize("ending", ["counts", "failure"])
@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after"])
@both_stores
async def test_a_call_admitted_without_an_answer_is_charged_once_and_holds_nothing_afterwards(
    kind: str, fault: str, ending: str, tmp_path: Path
) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, settle_timeout_s=0.05, on_store_error="allow") as tracker:
        store.faults["reserve"] = [fault]
        if ending == "counts":
            await use(tracker)
            assert await amounts(tracker) == (10_000, 0)
        else:
            with pytest.raises(KeyError):
                await fail(tracker)
            assert await amounts(tracker) == (0, 0)
        await assert_balanced(tracker)


async def fail(tracker: CostTracker) -> None:
    async with tracker.track_tokens("acme", "big", expected_input_tokens=100):
        raise KeyError


async def test_what_no_counter_can_hold_is_refused_also_where_calls_run_unheld(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, on_store_error="allow", budgets=[]) as tracker:
        await tracker.budget_enforcer.set_daily_budget("acme", None)
        await use(tracker)
        with pytest.raises(StoreError, match="all a counter can hold"):
            await tracker.admit(Identity(tenant="acme"), CallSpec(model="big", input_tokens=10**14, output_tokens=1))
        assert await amounts(tracker) == (10_000, 0)


@both_stores
async def test_a_charge_during_an_outage_follows_the_call_when_the_store_is_back(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, journal_path=str(tmp_path / "j")) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
            usage["input_tokens"] = 10
            store.down = True
        assert "the store did not take its settle" in caplog.text
        store.down = False
        assert await amounts(tracker) == (0, 100_000)
        await tracker.flush(1.0)
        assert await amounts(tracker) == (10_000, 0)
        (record,) = await records_of(tracker)
        assert not record.late
        await assert_balanced(tracker)


async def test_usage_is_recorded_while_the_store_is_away(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    store.down = True
    tracker = make_tracker(store, clock=clock, journal_path=str(tmp_path / "j"))
    record = await tracker.record_usage("acme", "big", input_tokens=10, call_id="mine")
    assert (record.cost_nano_usd, record.askii_coins) == (10_000, 0)
    store.down = False
    tracker._session._next_try_s = 0.0
    record = await tracker.record_usage("acme", "big", input_tokens=5)
    assert (record.cost_nano_usd, record.askii_coins) == (5000, 5)
    await tracker.flush(1.0)
    assert await amounts(tracker) == (15_000, 0)
    await tracker.stop()


# Heartbeats ----------------------------------------------------------------------------------------------------------


@both_stores
async def test_after_a_lapse_calls_go_on_under_a_new_name_and_old_ones_settle_late(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock, hold_ttl_s=60.0) as tracker:
        old = tracker._session.worker
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
            clock.advance(61)  # the machine slept
            assert await amounts(tracker) == (0, 0)
            await asyncio.gather(*(use(tracker, 1) for _ in range(20)))
            usage["input_tokens"] = 10
        assert tracker._session.worker != old
        found = await records_of(tracker)
        assert [record.late for record in found] == [False] * 20 + [True]
        assert await amounts(tracker) == (30_000, 0)
        text = tracker.metrics.render("")[0].decode()
        assert "askii_lost_leases_total 1.0" in text
        assert 'askii_flagged_calls_total{flag="late"} 1.0' in text
        await assert_balanced(tracker)


async def test_heartbeats_keep_holds_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    clock = Clock()
    async with opened("sqlite", tmp_path, clock=clock, hold_ttl_s=60.0, max_call_s=1000.0) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
            for _ in range(5):
                clock.advance(50)
                await asyncio.sleep(0.05)
            assert await amounts(tracker) == (0, 100_000)
            usage["input_tokens"] = 10
        (record,) = await records_of(tracker)
        assert not record.late


async def test_a_call_that_outlives_its_deadline_settles_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    clock = Clock()
    async with opened("sqlite", tmp_path, clock=clock, max_call_s=30.0) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
            clock.advance(31)
            assert await amounts(tracker) == (0, 0)
            usage["input_tokens"] = 10
        (record,) = await records_of(tracker)
        assert record.late
        assert await amounts(tracker) == (10_000, 0)


async def test_a_defect_in_the_background_ends_no_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    clock = Clock()
    store = faulty("memory", tmp_path, clock)
    store.faults["pending"] = ["ok", RuntimeError("defect")]
    async with make_tracker(store, clock=clock):
        await soon(lambda: store.calls.count("heartbeat") > 3)
    assert "defect" in caplog.text


async def test_upkeep_that_hangs_or_fails_keeps_no_heartbeat_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    clock = Clock()
    store = faulty("sqlite", tmp_path, clock)
    store.faults["tend"] = ["hang", "fail"]
    async with make_tracker(store, clock=clock, settle_timeout_s=0.2) as tracker:
        await soon(lambda: "tend" in store.calls)
        await use(tracker)  # while it hangs
        assert store.calls.count("tend") == 1
        await soon(lambda: store.calls.count("tend") > 3)
        assert store.calls.count("heartbeat") > 3
        assert await amounts(tracker) == (10_000, 0)
    assert [record.levelname for record in caplog.records if "heartbeat" in record.getMessage()] != []


# The outbox's bound --------------------------------------------------------------------------------------------------


async def test_a_full_outbox_refuses_new_calls_and_takes_running_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    monkeypatch.setattr("askii_middleware.session.RECONNECT_S", 0.005)

    class Shut(MemorySink):
        open = False

        async def send(self, records: Any) -> Delivery:
            while not self.open:
                await asyncio.sleep(0.001)
            return await super().send(records)

    sink = Shut()
    async with opened("sqlite", tmp_path, sinks=[sink], outbox_max_pending=2) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=1) as usage:
            await use(tracker)
            await use(tracker)
            await soon(lambda: tracker._session._outbox_full)
            with pytest.raises(StoreError, match="outbox is full"):
                await use(tracker)
            with pytest.raises(StoreError, match="outbox is full"):
                await tracker.ping()
            usage["input_tokens"] = 1
        assert len(await records_of(tracker)) == 3
        sink.open = True
        await soon(lambda: not tracker._session._outbox_full)
        await use(tracker)
    assert len(sink.records) == 4


# Event loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [True, False])
@both_stores
def test_one_tracker_serves_two_event_loops_one_after_the_other(
    kind: str, stops: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sink, clock = MemorySink(), Clock()
    tracker = make_tracker(url_of(kind, tmp_path), sinks=[sink], clock=clock)

    async def once() -> None:
        if stops:
            async with tracker:
                await use(tracker)
        else:
            await asyncio.gather(use(tracker), use(tracker))

    asyncio.run(once())
    asyncio.run(once())

    async def last() -> None:
        async with tracker:
            assert await amounts(tracker) == ((20_000 if stops else 40_000), 0)

    clock.advance(31)  # until then the right to deliver belongs to the loop that just ended
    asyncio.run(last())
    # A loop that ended in the middle of a delivery leaves it to be repeated.
    assert len({record.call_id for record in sink.records}) == (2 if stops else 4)
    assert caplog.text == ""


async def test_a_second_running_loop_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, use(tracker))
        await use(tracker)


async def test_a_cancelled_opening_is_tried_again_at_once(tmp_path: Path) -> None:
    clock = Clock()
    store = faulty("memory", tmp_path, clock)
    store.faults["open"] = ["hang"]
    tracker = make_tracker(store, clock=clock)
    task = asyncio.create_task(use(tracker))
    await soon(lambda: store.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await use(tracker)
    await tracker.stop()


async def test_refusals_of_budgets_are_no_store_errors(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, on_store_error="allow") as tracker:
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "big", expected_input_tokens=10**7).__aenter__()
        assert "askii_store_errors_total{" not in tracker.metrics.render("")[0].decode()


# Disks and dead processes ---------------------------------------------------------------------------------------------


async def test_on_a_full_disk_charges_find_the_room_that_was_reserved_for_them(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        await use(tracker)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
            usage["input_tokens"] = 7
            # No file may grow any more: neither the ledger's nor the journal's.
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "ledger.db-wal").stat().st_size, hard))
        try:
            with pytest.raises(StoreError):
                await use(tracker)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await tracker.flush(1.0)
        await use(tracker)
        assert await amounts(tracker) == (27_000, 0)
        await assert_balanced(tracker)


DIES = """
import asyncio, os, sys
from pathlib import Path
from askii_middleware.identity import Identity
from tests.support.service import Clock, faulty, make_tracker

async def main():
    clock = Clock()
    store = faulty("sqlite", Path(sys.argv[1]), clock)
    tracker = make_tracker(store, clock=clock, journal_path=sys.argv[1] + "/j")
    await tracker.start()
    async with tracker.track_tokens("acme", "big", expected_input_tokens=100, max_output_tokens=0) as usage:
        usage["input_tokens"] = 10
        store.down = True
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_charges_in_the_journal_of_a_killed_process_are_booked_by_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.01)
    async with opened("sqlite", tmp_path, journal_path=str(tmp_path / "j")) as tracker:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", DIES, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            capture_output=True,
        )
        assert done.returncode == -9, done.stderr
        await soon(lambda: spent_is(tracker, 10_000))
        assert await amounts(tracker) == (10_000, 0)
        await assert_balanced(tracker)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.db"]
