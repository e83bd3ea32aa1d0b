"""Points 20 to 28: what holds over outages, restarts, and beside other workers."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.demo.lago import Fault
from askii_middleware.errors import SinkError, StoreError
from askii_middleware.pricing import ModelPrice
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores.base import Store
from askii_middleware.stores.sqlite import SQLiteStore
from askii_middleware.tracker import CostTracker

from .support import API_KEY, FakeClock, drain, put, record, running_lago, unused_port, worker_for


@pytest.mark.parametrize("kind", ["refused", "500", "503"])
async def test_point_22_after_an_outage_the_count_is_exact_and_each_tenants_order_kept(
    store: Store, clock: FakeClock, kind: str
) -> None:
    tenants = ("acme", "globex", "initech")
    async with running_lago() as lago:
        sink = LagoSink(f"http://127.0.0.1:{unused_port()}/api/v1", API_KEY) if kind == "refused" else lago.sink
        lago.faults.always = None if kind == "refused" else Fault(int(kind))
        worker = await worker_for(store, sink, clock)
        written, started_s = 0, clock()
        while clock() - started_s < (90 if kind == "500" else 600):
            await put(store, *(record(written + n, subscription=tenants[n % 3]) for n in range(15)))
            written += 15
            clock.advance(max(await worker.round(), 1.0))
        assert await store.pending() == {"lago": written}
        assert lago.ledger.events == {}
        lago.faults.always = None
        await sink.close()
        worker = await worker_for(store, lago.sink, clock)
        await drain(worker, clock)
        assert len(lago.ledger.events) == written
        assert list(lago.ledger.events) == sorted(lago.ledger.events, key=lambda key: key[1])


async def test_point_22_a_receiver_that_hangs_does_not_hold_up_the_event_loop(store: Store) -> None:
    async with running_lago(timeout_s=5.0) as lago:
        lago.faults.always = Fault(hang_s=60)
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], owner="w1", linger_s=0.0)
        loop.start()
        longest_s = await _longest_turn(0.2, loop.wake)
        await loop.stop(0.01)
    assert longest_s < 0.1


async def test_point_23_however_long_the_outbox_grows_nothing_is_dropped(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.always = Fault(503)
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n, coins=1) for n in range(5000)))
        for _ in range(20):
            clock.advance(await worker.round())
        assert await store.pending() == {"lago": 5000}
        lago.faults.always = None
        await drain(worker, clock)
        assert lago.ledger.coins("acme") == 5000
        assert await store.pending() == {"lago": 0}


async def test_point_24_the_flush_at_shutdown_is_bounded_and_leftovers_stay(tmp_path: Path) -> None:
    async with running_lago(timeout_s=5.0) as lago:
        store = SQLiteStore(str(tmp_path / "ledger.db"))
        await store.open()
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], owner="w1")
        loop.start()
        lago.faults.script.append(Fault(commit=True, hang_s=60))
        await put(store, *(record(n) for n in range(120)))
        loop.wake()
        before_s = asyncio.get_running_loop().time()
        assert await loop.stop(0.3) is False
        assert asyncio.get_running_loop().time() - before_s < 1.5
        await lago.sink.close()
        assert await store.pending() == {"lago": 120}
        await store.close()

        store = SQLiteStore(str(tmp_path / "ledger.db"))
        await store.open()
        loop = DeliveryLoop(store, [lago.sink], owner="w2")
        loop.start()
        assert await loop.stop(5.0) is True
        assert await store.pending() == {"lago": 0}
        assert len(lago.ledger.events) == 120
        await store.close()


async def test_point_25_two_workers_on_one_outbox_never_send_one_record_both(tmp_path: Path) -> None:
    async with running_lago() as lago:
        path = str(tmp_path / "ledger.db")
        stores = [SQLiteStore(path), SQLiteStore(path)]
        for store in stores:
            await store.open()
        await stores[0].register_sinks(["lago"])
        await put(stores[0], *(record(n) for n in range(500)))
        sinks = [LagoSink(lago.url + "/api/v1", API_KEY, max_batch=20) for _ in stores]
        options: dict[str, Any] = {"lease_s": 0.3, "send_timeout_s": 0.2, "idle_s": 0.01}
        loops = [
            DeliveryLoop(s, [k], owner=f"w{n}", **options) for n, (s, k) in enumerate(zip(stores, sinks, strict=True))
        ]
        for loop in loops:
            loop.start()
        while sum((await stores[0].pending()).values()):
            await asyncio.sleep(0.01)
        for loop, sink, store in zip(loops, sinks, stores, strict=True):
            await loop.stop(1.0)
            await sink.close()
            await store.close()
        sent = [event for batch in lago.recorder.ids for event in batch]
        assert len(sent) == len(set(sent)) == 500


async def test_point_26_the_api_key_is_never_in_logs_errors_or_repr(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "lago-secret-0123456789"
    for bad in (f"{secret}\n", f"{secret} x", f"{secret}é", f"{secret}\x7f", ""):
        with pytest.raises(SinkError) as caught:
            LagoSink("https://lago.example.com/api/v1", bad)
        assert secret not in str(caught.value)
    with pytest.raises(SinkError) as caught:
        LagoSink(f"https://user:{secret}@lago.example.com/api/v1", "k")
    assert secret not in str(caught.value)
    async with running_lago() as lago:
        sink = LagoSink(lago.url + "/api/v1", secret)
        assert secret not in repr(sink) + str(sink) + f"{sink!r}"
        worker = await worker_for(store, sink, clock)
        await put(store, record(1))
        for fault in (None, Fault(500), Fault(422, body=b"{}"), Fault(301, {"location": "/elsewhere"})):
            lago.faults.always = fault
            clock.advance(await worker.round())
        await sink.close()
        gone = LagoSink(f"http://127.0.0.1:{unused_port()}/api/v1", secret)
        worker = await worker_for(store, gone, clock)
        await put(store, record(2))
        clock.advance(await worker.round())
        await gone.close()
        assert any(secret in headers.get("authorization", "") for headers in lago.recorder.headers)
    assert caplog.records
    assert secret not in caplog.text
    assert all(secret not in repr(letter) for letter in await store.dead_letters("lago"))


async def test_point_23_a_full_outbox_refuses_calls_while_those_that_run_are_still_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.session.MAX_BEAT_S", 0.005)
    async with running_lago() as lago:
        lago.faults.always = Fault(401)
        tracker = CostTracker(
            store=SQLiteStore(str(tmp_path / "ledger.db")),
            sinks=[lago.sink],
            prices={"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10)},
            outbox_max_pending=2,
        )
        async with tracker:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=1) as running:
                await tracker.record_usage("acme", "big", input_tokens=1)
                await tracker.record_usage("acme", "big", input_tokens=1)
                with pytest.raises(StoreError, match="outbox is full"):
                    await _call_until_refused(tracker)
                running["input_tokens"] = 1
            assert (await tracker.store.pending())["lago"] >= 3


async def _call_until_refused(tracker: CostTracker) -> None:
    async with asyncio.timeout(10):
        while True:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=1) as usage:
                usage["input_tokens"] = 0


async def _longest_turn(seconds: float, each: Any) -> float:
    loop = asyncio.get_running_loop()
    until, last, longest = loop.time() + seconds, loop.time(), 0.0
    while loop.time() < until:
        each()
        await asyncio.sleep(0.001)
        now = loop.time()
        longest, last = max(longest, now - last), now
    return longest
