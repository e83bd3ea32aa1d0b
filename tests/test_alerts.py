"""Every crossing reaches every channel, in order, whatever a channel or a worker does."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.alerts import AlertWorker
from askii_middleware.budgets import Budget, Scope
from askii_middleware.channels import AlertChannel, AlertNotice, CallbackChannel, WebhookChannel
from askii_middleware.delivery import DeliveryLoop
from askii_middleware.errors import ConfigurationError
from askii_middleware.stores import open_store
from askii_middleware.stores.base import Store
from askii_middleware.tracker import CostTracker

from .channels.test_webhook import SECRET, Endpoint
from .sinks.support import drain
from .support.servers import serving
from .support.service import PRICES, Clock, both_stores, faulty, make_tracker, opened, soon, url_of

WATCHED = Budget(scope="tenant=*", limit_usd="0.1", alert_at=(0.8, 0.9, 1.0))
"""A hundred thousandths of `big` are a hundred per cent."""
CHANNEL = "alert:told"


class Told:
    """Remembers what it was told; raises or waits as `script` says, and takes everything after that."""

    def __init__(self, name: str = "told", script: Sequence[Any] = ()) -> None:
        self.name = name
        self.script = list(script)
        self.tries: list[AlertNotice] = []
        self.taken: list[AlertNotice] = []

    async def send(self, alert: AlertNotice) -> None:
        self.tries.append(alert)
        todo = self.script.pop(0) if self.script else None
        if isinstance(todo, BaseException):
            raise todo
        if todo is not None:
            await todo
        self.taken.append(alert)

    @property
    def shares(self) -> list[tuple[str, float]]:
        return [(alert.scope, alert.share) for alert in self.taken]


async def spend(tracker: CostTracker, *mille: int, tenant: str = "acme") -> None:
    """Charge so many thousandths of a USD, one call each."""
    for each in mille:
        await tracker.record_usage(tenant, "big", input_tokens=1000 * each)


@asynccontextmanager
async def store_with_alerts(clock: Clock, *mille: int) -> AsyncIterator[Store]:
    """A store with a channel that has not been told of any of these charges."""
    store = open_store("memory://", clock=clock)
    await store.register_channels([CHANNEL])
    async with make_tracker(store, clock=clock, budgets=[WATCHED], alert_channels=[]) as tracker:
        await spend(tracker, *mille)
        yield store


def worker_of(store: Store, channel: AlertChannel, clock: Clock, **options: Any) -> AlertWorker:
    given: dict[str, Any] = {"owner": "w1", "lease_s": 30.0, "random": random.Random(7), **options}
    return DeliveryLoop(store, [], channels=[channel], clock=clock, **given).alerts[0]


# Through a tracker ----------------------------------------------------------------------------------------------------


@both_stores
async def test_each_threshold_is_told_once_in_order_with_its_word(kind: str, tmp_path: Path) -> None:
    told = Told()
    async with opened(kind, tmp_path, budgets=[WATCHED], alert_channels=[told]) as tracker:
        await spend(tracker, 79)
        await tracker.flush()
        assert told.taken == []
        await spend(tracker, 1, 5, 4)
        await tracker.flush()
        assert [(alert.share, alert.status, alert.spent_usd) for alert in told.taken] == [(0.8, "caution", "0.08")]
        await spend(tracker, 1, 20, 5)
        await tracker.flush()
    assert [(alert.share, alert.status, alert.spent_usd, alert.utilisation) for alert in told.taken] == [
        (0.8, "caution", "0.08", 0.8),
        (0.9, "warning", "0.09", 0.9),
        (1.0, "exceeded", "0.11", 1.1),
    ]
    assert {(alert.scope, alert.tenant, alert.limit_coins) for alert in told.taken} == {
        ("tenant=acme", "acme", "100000")
    }
    assert len({alert.id for alert in told.taken}) == 3


async def test_one_charge_that_crosses_all_thresholds_tells_of_each(tmp_path: Path) -> None:
    told = Told()
    async with opened("memory", tmp_path, budgets=[WATCHED], alert_channels=[told]) as tracker:
        await spend(tracker, 500)
        await tracker.flush()
    assert [(alert.share, alert.utilisation) for alert in told.taken] == [(0.8, 5.0), (0.9, 5.0), (1.0, 5.0)]


async def test_a_new_window_tells_anew_with_ids_of_its_own(tmp_path: Path) -> None:
    clock, told = Clock(), Told()
    async with opened("sqlite", tmp_path, clock=clock, budgets=[WATCHED], alert_channels=[told]) as tracker:
        for _ in range(2):
            await spend(tracker, 85)
            await tracker.flush()
            clock.advance(86_400)
    assert told.shares == [("tenant=acme", 0.8)] * 2
    assert told.taken[0].id != told.taken[1].id
    assert [alert.resets_at for alert in told.taken] == ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]


async def test_a_soft_budget_refuses_nothing_and_tells_all_the_same(tmp_path: Path) -> None:
    told = Told()
    soft = Budget(scope=Scope(), limit_usd="0.01", soft=True, alert_at=(1.0,))
    async with opened("memory", tmp_path, budgets=[soft], alert_channels=[told]) as tracker:
        async with tracker.track_tokens("acme", "big", expected_input_tokens=50_000, max_output_tokens=0) as usage:
            usage["input_tokens"] = 50_000
        await tracker.flush()
    assert [(alert.scope, alert.tenant, alert.status) for alert in told.taken] == [("global", None, "exceeded")]


async def test_alerts_are_told_without_any_flush_and_counted(tmp_path: Path) -> None:
    told = Told(script=[ConnectionError("away")])
    async with CostTracker(
        store=url_of("sqlite", tmp_path), prices=PRICES, budgets=[WATCHED], alert_channels=[told]
    ) as tracker:
        await spend(tracker, 85)
        await soon(lambda: told.taken)
        text = tracker.metrics.render("text/plain")[0].decode()
    assert len(told.tries) == 2
    assert 'askii_alerts_total{channel="told",result="delivered"} 1.0' in text
    assert 'askii_alerts_total{channel="told",result="error"} 1.0' in text


@both_stores
async def test_two_trackers_over_one_ledger_tell_of_each_crossing_once(kind: str, tmp_path: Path) -> None:
    mine, theirs = Told(), Told()
    clock = Clock()
    store = open_store(url_of(kind, tmp_path), clock=clock)
    other: Any = store if kind == "memory" else url_of(kind, tmp_path)
    options: dict[str, Any] = {"clock": clock, "budgets": [WATCHED]}
    async with (
        make_tracker(store, alert_channels=[mine], **options) as one,
        make_tracker(other, alert_channels=[theirs], **options) as two,
    ):
        for tenant in ("a", "b", "c", "d"):
            await asyncio.gather(*(spend(tracker, 5, tenant=tenant) for _ in range(10) for tracker in (one, two)))
        for tracker in (one, two, one):
            await tracker.flush()
    assert sorted(mine.shares + theirs.shares) == [(f"tenant={t}", share) for t in "abcd" for share in (0.8, 0.9, 1.0)]


async def test_what_a_tracker_could_not_tell_before_it_ended_the_next_one_tells_with_the_same_id(
    tmp_path: Path,
) -> None:
    first, second = Told(script=[asyncio.Event().wait()]), Told()
    options: dict[str, Any] = {"clock": Clock(), "budgets": [WATCHED]}
    tracker = make_tracker(url_of("sqlite", tmp_path), alert_channels=[first], **options)
    await tracker.start()
    await spend(tracker, 95)
    await tracker.stop(flush_s=0.1)
    assert (len(first.tries), first.taken) == (1, [])
    async with opened("sqlite", tmp_path, alert_channels=[second], **options) as later:
        await later.flush()
    assert second.shares == [("tenant=acme", 0.8), ("tenant=acme", 0.9)]
    assert second.taken[0].id == first.tries[0].id


KILLED = """
import asyncio, os, signal, sys
from askii_middleware import Budget, CallbackChannel, CostTracker, ModelPrice

async def hang(alert):
    print(alert.id, flush=True)
    await asyncio.Event().wait()

async def work():
    budget = Budget(scope="tenant=*", limit_usd=1, period="total", alert_at=(0.5,))
    channel = CallbackChannel(hang, name="told")
    async with CostTracker(
        store=sys.argv[1], budgets=[budget], alert_channels=[channel], prices={"big": ModelPrice(input_usd_per_mtok=1)}
    ) as tracker:
        await tracker.record_usage("acme", "big", input_tokens=600_000)
        asyncio.create_task(tracker.flush())
        await asyncio.sleep(3600)

asyncio.run(work())
"""


async def test_what_a_killed_process_was_telling_is_told_by_the_next_one(tmp_path: Path) -> None:
    url, told = url_of("sqlite", tmp_path), Told()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, url),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        id_ = (await process.stdout.readline()).decode().strip()
    process.kill()
    await process.wait()
    budget = Budget(scope="tenant=*", limit_usd=1, period="total", alert_at=(0.5,))
    # The right to tell was the dead process's for half a minute.
    async with CostTracker(
        store=url, prices=PRICES, budgets=[budget], alert_channels=[told], clock=lambda: time.time() + 31
    ) as tracker:
        await tracker.flush()
    assert [(alert.id, alert.share, alert.spent_usd) for alert in told.taken] == [(id_, 0.5, "0.6")]


async def test_a_channel_that_fails_delays_no_other(tmp_path: Path) -> None:
    broken, whole = Told("broken", [ConnectionError("away")] * 99), Told("whole")
    tracker = make_tracker(url_of("sqlite", tmp_path), budgets=[WATCHED], alert_channels=[broken, whole])
    await tracker.start()
    await spend(tracker, 100)
    await tracker.flush(0.2)
    assert [share for _, share in whole.shares] == [0.8, 0.9, 1.0]
    assert {alert.share for alert in broken.tries} == {0.8}
    await tracker.stop(flush_s=0.1)


async def test_the_log_is_told_where_nobody_else_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened("memory", tmp_path, budgets=[WATCHED]) as tracker:
        await spend(tracker, 80)
        await tracker.flush()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "askii_middleware.alerts"]
    assert line.startswith("caution: tenant=acme has spent 80 % of its daily budget: 0.08 of 0.1 USD")


def test_channels_need_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="alert_channels need different names, got callback, callback"):
        make_tracker("memory://", alert_channels=[CallbackChannel(print), CallbackChannel(print)])


# One channel ----------------------------------------------------------------------------------------------------------


async def test_an_endpoint_that_fails_twice_gets_the_same_alert_three_times_and_then_the_next() -> None:
    clock, endpoint = Clock(), Endpoint(500, 503)
    async with store_with_alerts(clock, 95) as store, serving(endpoint, lifespan="off") as url:
        worker = worker_of(store, WebhookChannel(url, SECRET, name="told", clock=clock), clock)
        pauses = await drain(worker, clock)
        ids = [got.headers["webhook-id"] for got in endpoint.got]
        assert [ids.count(each) for each in dict.fromkeys(ids)] == [3, 1]
        assert len({got.body for got in endpoint.got}) == 2
        assert (len(pauses), 0 < pauses[0] <= 1, 0 < pauses[1] <= 2) == (2, True, True)


async def test_pauses_grow_with_full_jitter_up_to_a_cap_and_begin_anew_after_a_success() -> None:
    clock = Clock()

    class Largest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    told = Told(script=[OSError("away")] * 6 + [None, OSError("away")])
    async with store_with_alerts(clock, 95) as store:
        worker = worker_of(store, told, clock, random=Largest(), max_backoff_s=10.0)
        assert await drain(worker, clock) == [1, 2, 4, 8, 10, 10, 1]
    assert [share for _, share in told.shares] == [0.8, 0.9]


async def test_a_channel_that_hangs_is_given_up_and_the_alert_comes_again() -> None:
    clock, told = Clock(), Told(script=[asyncio.Event().wait()])
    async with store_with_alerts(clock, 80) as store:
        worker = worker_of(store, told, clock, send_timeout_s=0.05)
        assert len(await drain(worker, clock)) == 1
    assert (len(told.tries), told.shares) == (2, [("tenant=acme", 0.8)])


async def test_a_channel_that_cancels_itself_only_fails() -> None:
    clock, told = Clock(), Told(script=[asyncio.CancelledError()])
    async with store_with_alerts(clock, 80) as store:
        assert len(await drain(worker_of(store, told, clock), clock)) == 1
    assert told.shares == [("tenant=acme", 0.8)]


async def test_only_the_holder_of_the_lease_sends_and_the_next_one_begins_where_it_ended() -> None:
    clock = Clock()
    one, two = Told(script=[None, OSError("away")]), Told()
    async with store_with_alerts(clock, 95) as store:
        mine, theirs = worker_of(store, one, clock), worker_of(store, two, clock, owner="w2")
        await mine.round()
        assert await theirs.round() == 10.0
        assert (one.shares, two.tries) == ([("tenant=acme", 0.8)], [])
        clock.advance(31)
        await theirs.round()
        assert two.shares == [("tenant=acme", 0.9)]
        assert await mine.round() == 10.0  # its own lease is void now
        await theirs.give_back()
        await mine.round()
        assert one.shares == [("tenant=acme", 0.8)]


@pytest.mark.parametrize("operation", ["lease", "fetch_alerts", "acknowledge_alerts"])
@pytest.mark.parametrize("fault", ["fail", "after"])
async def test_a_ledger_that_fails_for_a_moment_loses_no_alert(operation: str, fault: str, tmp_path: Path) -> None:
    clock, told = Clock(), Told()
    store = faulty("sqlite", tmp_path, clock)
    async with make_tracker(store, clock=clock, budgets=[WATCHED], alert_channels=[told]) as tracker:
        store.faults[operation] = [fault]
        await spend(tracker, 95)
        await soon(lambda: len({alert.share for alert in told.taken}) == 2)
    shares = [share for _, share in told.shares]
    assert list(dict.fromkeys(shares)) == [0.8, 0.9]
    assert len(shares) <= (3 if operation == "acknowledge_alerts" else 2)
