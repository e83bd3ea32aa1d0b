"""Billing in bad times: an outage, a restart in the middle of it, a full disk, a clock that jumps, a slow receiver, a
record that breaks it, a crash at the worst moment. The receiver is real; time is not, except where nothing is waited
for.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import resource
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.delivery_rounds import MAX_PAUSE_S
from askii_middleware.delivery_worker import ISOLATE_AFTER, MAX_ATTEMPTS, SinkWorker
from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.records import UsageRecord, decode_record
from askii_middleware.sinks.base import Delivery
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import Store, partition_of
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.stores.sqlite import SQLiteStore
from askii_middleware.tracker import CostTracker

from .sinks.support import FakeClock, drain, put, record, worker_for
from .support.lago_books import Books
from .support.lago_server import KEY, LagoServer
from .support.service import FaultyStore, make_tracker

TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def lago(tmp_path: Path) -> AsyncIterator[LagoServer]:
    async with LagoServer(str(tmp_path / "lago.db")) as server:
        yield server


@asynccontextmanager
async def sinking(lago: LagoServer, **options: Any) -> AsyncIterator[LagoSink]:
    sink = LagoSink(lago.url, KEY, **{"timeout_s": 5.0, **options})
    try:
        yield sink
    finally:
        await sink.close()


@asynccontextmanager
async def opened(path: Path, clock: FakeClock) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(str(path), clock=clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def ids_of(books: Books) -> dict[str, list[str]]:
    """What arrived, by subscription, in the order of its arrival."""
    found: dict[str, list[str]] = {}
    for event in books.events():
        found.setdefault(event.subscription, []).append(event.transaction_id)
    return found


class Calls:
    """Calls that a tracker records, and what should arrive of them."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = {}
        self.tokens = 0

    async def make(self, tracker: CostTracker, chance: random.Random) -> None:
        """An admitted call, as any request makes it."""
        tenant, tokens = chance.choice(TENANTS), chance.randrange(1, 100)
        async with tracker.track_tokens(tenant, "big", expected_input_tokens=100, max_output_tokens=1) as usage:
            usage["input_tokens"] = tokens
        self.ids.setdefault(tenant, []).append(usage.call_id)
        self.tokens += tokens

    async def check(self, tracker: CostTracker, books: Books) -> None:
        """Everything has arrived, once, each tenant's in its order; a token of `big` is one coin."""
        assert ids_of(books) == self.ids
        assert sum(books.billed().values()) == self.tokens
        assert books.unbilled() == []
        assert all(len(forms) == 1 for forms in books.sent().values()), "a repetition had other bytes"
        assert await tracker.store.dead_letters("lago") == []
        assert await tracker.store.pending() == {"lago": 0}


@asynccontextmanager
async def recording(store: Store, clock: FakeClock) -> AsyncIterator[CostTracker]:
    """A tracker that leaves delivery to the test, which turns the clock."""
    await store.open()
    await store.register_sinks(["lago"])
    async with make_tracker(store, clock=clock, budgets=(), hold_ttl_s=10**9, alert_channels=()) as tracker:  # type: ignore[arg-type]
        yield tracker


OUTAGES = {
    "refused with pages of a proxy": ["502", "503", "504"],
    "connections that break": ["reset", "half"],
    "its own errors": ["500", "500", "503"],
    "answers that are lost": ["502 after", "reset after", "half after", "500 after"],
    "a key that is refused, then all of it": ["401", "403", "404", "web", "429", "reset", "503", "500 after"],
}


@pytest.mark.parametrize("faults", OUTAGES.values(), ids=OUTAGES)
async def test_after_ten_minutes_of_outage_every_call_arrives_once_and_each_tenants_in_order(
    faults: list[str], lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    chance = random.Random(10)
    calls = Calls()
    store = SQLiteStore(str(tmp_path / "askii.db"), clock=clock)
    async with recording(store, clock) as tracker, sinking(lago, max_batch=20) as sink:
        worker = await worker_for(store, sink, clock)
        due_s = clock.now_s
        for second in range(0, 900, 2):
            if second == 60:
                lago.faults.script = faults * 1000
            if second == 360:  # the process is killed: its leases run out
                worker = await worker_for(store, sink, clock, owner="w2")
                due_s = clock.now_s
            if second == 660:
                lago.faults.script = []
                posts = len(lago.posts)
            await calls.make(tracker, chance)  # requests go on all the time
            if clock.now_s >= due_s:
                due_s = clock.now_s + await worker.round()
            clock.advance(2.0)
        arrived = lago.books.count
        await drain(worker, clock)
        assert posts < 600, "the receiver was not left in peace"
        assert arrived > 30
        await calls.check(tracker, lago.books)


async def test_a_restart_does_not_shorten_the_pause_of_an_outage(
    lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    lago.faults.script = ["502"] * 6 + ["429"]
    lago.faults.reset_s = 250
    async with opened(tmp_path / "askii.db", clock) as store, sinking(lago) as sink:
        worker = await worker_for(store, sink, clock, lease_s=30.0)
        await put(store, record(1))
        while len(lago.posts) < 7:
            clock.advance(await worker.round())
        clock.now_s -= 250  # the last pause has just begun
    async with opened(tmp_path / "askii.db", clock) as store, sinking(lago) as sink:
        worker = await worker_for(store, sink, clock, owner="w2")
        clock.advance(100)
        assert await worker.round() == pytest.approx(150, abs=1e-6)
        assert len(lago.posts) == 7
        clock.advance(150)
        await worker.round()
        assert lago.books.count == 1


# The disk -------------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(*files: Path) -> Iterator[None]:
    """No file of the process may grow beyond the largest of these."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(file.stat().st_size for file in files), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_while_the_ledger_has_no_room_charges_go_to_the_journal_and_delivery_goes_on(
    lago: LagoServer, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    store = SQLiteStore(str(tmp_path / "askii.db"), clock=clock)
    async with recording(store, clock) as tracker, sinking(lago, max_batch=10) as sink:
        worker = await worker_for(store, sink, clock)
        for n in range(50):
            await tracker.record_usage("acme", "big", input_tokens=n, call_id=f"before-{n:03d}")
        front = store._db._front
        assert front is not None
        (pages,) = front.execute("PRAGMA page_count").fetchone()
        front.execute(f"PRAGMA max_page_count = {pages}")
        metadata = {"filler": "x" * 3000}
        for n in range(50):
            await tracker.record_usage("acme", "big", input_tokens=n, call_id=f"full-{n:03d}", metadata=metadata)
        assert tracker._writer.waiting, "the ledger was not full: the test shows nothing"
        written = (await store.totals()).records
        await drain(worker, clock)
        assert lago.books.count == written < 100
        front.execute("PRAGMA max_page_count = 1000000")
        await tracker.flush(1.0)
        await drain(worker, clock)
        wanted = {f"{kind}-{n:03d}" for kind in ("before", "full") for n in range(50)}
        assert {event.transaction_id for event in lago.books.events()} == wanted
        assert lago.books.billed() == {"acme": 2 * sum(range(50))}
        assert (await store.totals()).records == 100


async def test_on_a_disk_that_takes_nothing_at_all_what_is_sent_twice_is_billed_once(
    lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    """Not even the acknowledgement can be written."""
    async with opened(tmp_path / "askii.db", clock) as store, sinking(lago) as sink:
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n, coins=n) for n in range(20)))
        await worker._ask()
        lago.faults.delay_s = 0.0
        with full_disk(tmp_path / "askii.db-wal", tmp_path / "lago.db-wal"):
            lago.books._db.execute("PRAGMA wal_checkpoint(RESTART)")  # the receiver has a disk of its own
            with pytest.raises(StoreError):
                await worker.round()
        await drain(worker, clock)
        assert lago.books.count == 20
        assert lago.books.billed() == {"acme": sum(range(20))}
        assert lago.books.sent()["acme", "call-00003"] == [2]
        assert await store.pending() == {"lago": 0}


# The clock ------------------------------------------------------------------------------------------------------------

DAY_S = 86_400.0


@pytest.mark.parametrize("jump_s", [-10 * 365 * DAY_S, -DAY_S, -40.0, 40.0, DAY_S, 10 * 365 * DAY_S])
@pytest.mark.parametrize("moment", ["between rounds", "in a pause", "in a send"])
async def test_a_clock_that_jumps_loses_nothing_doubles_nothing_and_changes_no_timestamp(
    jump_s: float, moment: str, lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    class Jumping(LagoSink):
        async def send(self, records: Sequence[UsageRecord]) -> Delivery:
            if moment == "in a send" and len(lago.posts) == 1:
                clock.advance(jump_s)
            return await super().send(records)

    first = Jumping(lago.url, KEY, max_batch=5)
    second = LagoSink(lago.url, KEY, max_batch=5)
    async with opened(tmp_path / "askii.db", clock) as store:
        workers = [await worker_for(store, first, clock), await worker_for(store, second, clock, owner="w2")]
        for worker in workers:
            await worker.round()
        began_s = clock.now_s
        await put(store, *(record(n, subscription=TENANTS[n % 5]) for n in range(60)))
        if moment == "in a pause":
            lago.faults.script = ["429", "429"]
            lago.faults.reset_s = 200.0
        for number in range(400):
            if number == 3 and moment != "in a send":
                clock.advance(jump_s)
                began_s += jump_s
            pauses = [await worker.round() for worker in workers]
            if (await store.pending())["lago"] == 0:
                break
            clock.advance(max(min(pauses), 15.0))
        assert await store.pending() == {"lago": 0}
        waited_s = clock.now_s - began_s - (jump_s if moment == "in a send" else 0)
        # A pause from before looks endless to a clock that was set back: each waits for as long as any pause can be,
        # and so does the one that takes over from it.
        assert 0 <= waited_s <= 2 * MAX_PAUSE_S + 400
    await first.close()
    await second.close()
    assert ids_of(lago.books) == {
        tenant: [f"call-{n:05d}" for n in range(number, 60, 5)] for number, tenant in enumerate(TENANTS)
    }
    assert {event.timestamp_s for event in lago.books.events()} == {1_767_225_600.123}


async def test_a_calls_event_has_the_time_of_its_admission_whatever_the_clock_does_before_it_ends(
    lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    store = SQLiteStore(str(tmp_path / "askii.db"), clock=clock)
    async with recording(store, clock) as tracker, sinking(lago) as sink:
        worker = await worker_for(store, sink, clock)
        for jump_s in (3 * DAY_S, -6 * DAY_S):
            admitted_s = clock.now_s
            async with tracker.track_tokens("acme", "big", expected_input_tokens=10, max_output_tokens=1) as usage:
                usage["input_tokens"] = 5
                clock.advance(jump_s)
            await drain(worker, clock)
            event = lago.books.event(usage.call_id)
            assert event is not None
            assert event.timestamp_s == admitted_s


# Neighbours -----------------------------------------------------------------------------------------------------------


async def test_a_receiver_that_never_answers_delays_no_other_receiver_and_no_request(
    lago: LagoServer, tmp_path: Path
) -> None:
    lago.faults.always = "hang"
    memory = MemorySink()
    slow = LagoSink(lago.url, KEY, timeout_s=20.0)
    chance = random.Random(3)
    calls = Calls()
    url = f"sqlite:///{tmp_path / 'askii.db'}"
    async with asyncio.timeout(10):
        tracker = make_tracker(url, sinks=[slow, memory], budgets=(), clock=time.time)  # type: ignore[arg-type]
        await tracker.start()
        took_s = []
        for _ in range(300):
            before_s = time.perf_counter()
            await calls.make(tracker, chance)
            took_s.append(time.perf_counter() - before_s)
            await asyncio.sleep(0)
        while memory.received < 300:
            await asyncio.sleep(0.01)
        assert len(lago.posts) == 1  # still waited for
        assert sorted(took_s)[150] < 0.05
        assert {name: len(each) for name, each in calls.ids.items()} == {
            tenant: sum(each.tenant == tenant for each in memory.records) for tenant in TENANTS
        }
        assert await tracker.store.pending() == {"lago": 300, "memory": 0}
        await tracker.stop(flush_s=0.0)


@pytest.mark.parametrize("seed", range(4))
async def test_a_record_that_breaks_the_receiver_delays_its_neighbours_by_a_few_pauses_and_no_other_partition(
    lago: LagoServer, clock: FakeClock, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    chance = random.Random(seed)
    poison = chance.randrange(100)
    lago.faults.poison = [f"call-{poison:05d}"]
    store = MemoryStore(clock=clock)
    await store.open()
    async with sinking(lago, max_batch=50) as one, sinking(lago, max_batch=50) as two:
        workers = [await worker_for(store, one, clock), await worker_for(store, two, clock, owner="w2")]
        for worker in workers:
            await worker.round()
        clock.advance(10.0)
        for worker in workers:
            await worker.round()
        await put(store, *(record(n, subscription=f"tenant-{n % 20}") for n in range(100)))
        troubled = partition_of(f"tenant-{poison % 20}")
        mine, others = sorted(workers, key=lambda worker: troubled not in worker._held)
        await others.round()
        await others.round()
        elsewhere = [n for n in range(100) if partition_of(f"tenant-{n % 20}") in others._held]
        assert lago.books.count == len(elsewhere) > 0
        began_s = clock.now_s
        while lago.books.count < 99:
            clock.advance(await mine.round())
        # Each pause is at most 1, 2, 4 s, ... long; from the third failure on the batch is searched.
        assert clock.now_s - began_s <= 2.0**ISOLATE_AFTER
        await _until_dead(store, mine, clock)
        (letter,) = await store.dead_letters("lago")
        assert (letter.call_id, letter.attempts) == (f"call-{poison:05d}", MAX_ATTEMPTS)
        lago.faults.poison = []  # put right
        assert await store.retry_dead("lago") == 1
        await drain(mine, clock)
        assert lago.books.event(letter.call_id) is not None
        assert await store.pending() == {"lago": 0}
    await store.close()


async def _until_dead(store: Store, worker: SinkWorker, clock: FakeClock) -> None:
    """Other records keep arriving: what fails alone while the receiver works is itself the cause."""
    for n in range(1000, 2000):
        if await store.dead_letters("lago"):
            return
        await put(store, record(n, subscription="tenant-0"))
        clock.advance(30.0 + await worker.round())
    raise AssertionError("never given up")


# Crashes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["fail", "after", "hang", "hang after"])
async def test_a_crash_between_send_and_acknowledgement_sends_the_same_bytes_again_and_bills_once(
    fault: str, lago: LagoServer, clock: FakeClock, tmp_path: Path
) -> None:
    async with opened(tmp_path / "askii.db", clock) as store:
        dying: Any = FaultyStore(store)  # type: ignore[abstract]
        dying.faults["acknowledge"] = [fault]
        async with sinking(lago) as sink:
            worker = await worker_for(dying, sink, clock)
            await put(store, *(record(n, coins=n) for n in range(30)))
            crashed = asyncio.create_task(worker.round())
            while "acknowledge" not in dying.calls and not crashed.done():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            crashed.cancel()
            await asyncio.wait([crashed])
            assert lago.books.count == 30
        async with sinking(lago) as sink:
            clock.advance(31.0)
            worker = await worker_for(store, sink, clock, owner="after the crash")
            await put(store, record(30, coins=30))
            await drain(worker, clock)
    written = fault.endswith("after")  # only the answer of the store was lost
    assert lago.books.sent()["acme", "call-00007"] == [1 if written else 2]
    assert ids_of(lago.books) == {"acme": [f"call-{n:05d}" for n in range(31)]}
    assert lago.books.billed() == {"acme": sum(range(31))}


async def test_fractions_of_coins_survive_crashes_and_changed_rates(
    lago: LagoServer, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten lives of a process, each at a rate of its own; every second one is cut off before it can deliver."""
    chance = random.Random(11)
    exact = dict.fromkeys(TENANTS, Fraction(0))
    for life, rate in enumerate(["0.37", "1000000", "99.5", "1234567.25", "3e5"] * 2):
        monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", rate)
        store = SQLiteStore(str(tmp_path / "askii.db"), clock=clock)
        async with recording(store, clock) as tracker, sinking(lago) as sink:
            worker = await worker_for(store, sink, clock, owner=f"life {life}")
            for n in range(40):
                tenant, tokens = chance.choice(TENANTS), chance.randrange(1000)
                await tracker.record_usage(tenant, "small", input_tokens=tokens, call_id=f"{life}-{n}")
                exact[tenant] += Fraction(100 * tokens, 10**9) * Fraction(rate)
            if life % 2:
                clock.advance(31.0)
                await drain(worker, clock)
    assert lago.books.billed() == {tenant: int(coins) for tenant, coins in exact.items()}
    assert lago.books.count == 400


async def test_stopping_within_an_outage_is_bounded_and_the_next_start_delivers(
    lago: LagoServer, tmp_path: Path
) -> None:
    lago.faults.always = "hang"
    url = f"sqlite:///{tmp_path / 'askii.db'}"
    for life in range(2):
        async with asyncio.timeout(20), sinking(lago) as sink:
            tracker = make_tracker(url, sinks=[sink], budgets=(), clock=time.time)  # type: ignore[arg-type]
            await tracker.start()
            await tracker.record_usage("acme", "big", input_tokens=3, call_id=f"call-{life}")
            while life == 0 and not lago.posts:
                await asyncio.sleep(0.005)
            before_s = time.perf_counter()
            await tracker.stop(flush_s=0.2 if life == 0 else 10.0)
            assert time.perf_counter() - before_s < (2.0 if life == 0 else 12.0)
        lago.faults.always = "ok"
    assert ids_of(lago.books) == {"acme": ["call-0", "call-1"]}


def test_the_loop_refuses_a_send_that_could_outlive_its_lease(clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError, match="send_timeout_s"):
        DeliveryLoop(MemoryStore(clock=clock), [MemorySink()], owner="w", lease_s=5.0, send_timeout_s=5.0)


def test_records_are_no_work_for_the_garbage_collector() -> None:
    """Thousands a second would otherwise bring about full collections, which stop the event loop."""
    read = decode_record(msgspec.json.encode(record(1)))
    assert not gc.is_tracked(read)
    assert not gc.is_tracked(read.usage)
