"""The way from the outbox to the sinks. Rounds are driven by hand and a fake clock wherever time matters."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.delivery_rounds import MAX_PAUSE_S
from askii_middleware.delivery_worker import ISOLATE_AFTER, MAX_ATTEMPTS
from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, KEPT, Delivery, Sink, Verdict
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import Outcome, Store
from askii_middleware.stores.memory import MemoryStore

from .sinks.support import FakeClock, ScriptedSink, drain, put, record, worker_for

AGAIN = Verdict("again", "later")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()


class Results:
    """Counts what `on_result` reports."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    def __call__(self, sink: str, result: str, records: int) -> None:
        self.counts[sink, result] = self.counts.get((sink, result), 0) + records


def loop_over(store: Store, *sinks: Sink, clock: Any = time.time, owner: str = "w1", **options: Any) -> DeliveryLoop:
    options.setdefault("random", random.Random(7))
    return DeliveryLoop(store, sinks, clock=clock, owner=owner, **options)


def ids(*numbers: int) -> list[str]:
    return [f"call-{number:05d}" for number in numbers]


def paused(records: Sequence[UsageRecord], *, delivered: int = 0, pause_s: float = BACK_OFF, **more: Any) -> Delivery:
    verdicts = (DELIVERED,) * delivered + (AGAIN,) * (len(records) - delivered)
    return Delivery(verdicts, pause_s, **more)


async def test_records_arrive_in_their_order_in_batches_of_at_most_the_sinks_size(
    store: Store, clock: FakeClock
) -> None:
    sink = ScriptedSink(max_batch=4)
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(10)))
    await drain(worker, clock)
    assert [len(sent) for sent in sink.sent] == [4, 4, 2]
    assert sink.delivered == ids(*range(10))
    assert await store.pending() == {"sink": 0}


async def test_a_sink_that_is_registered_later_starts_with_the_next_record(store: Store, clock: FakeClock) -> None:
    await put(store, record(1))
    sink = ScriptedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, record(2))
    await drain(worker, clock)
    assert sink.delivered == ids(2)


async def test_a_rejected_record_becomes_a_dead_letter_and_the_others_arrive(store: Store, clock: FakeClock) -> None:
    results = Results()
    sink = ScriptedSink(script=[Delivery((DELIVERED, Verdict("rejected", "no such code"), DELIVERED))])
    worker = await worker_for(store, sink, clock, on_result=results)
    await put(store, record(1), record(2), record(3))
    await drain(worker, clock)
    (letter,) = await store.dead_letters("sink")
    assert (letter.call_id, letter.reason, letter.attempts) == (*ids(2), "no such code", 1)
    assert results.counts == {("sink", "delivered"): 2, ("sink", "dead"): 1}


async def test_dead_letters_can_be_tried_again(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(script=[Delivery((Verdict("rejected", "unknown code"),))])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    await drain(worker, clock)
    assert await store.retry_dead("sink") == 1
    await drain(worker, clock)
    assert sink.delivered == ids(1)
    assert await store.dead_letters("sink") == []


async def test_a_record_the_sink_wants_again_waits_alone_for_as_long_as_it_asks(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(script=[Delivery((DELIVERED, Verdict("again", "locked", 40.0), DELIVERED))])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1), record(2), record(3))
    await drain(worker, clock)
    clock.advance(39.9)
    await put(store, record(4))
    await drain(worker, clock)
    assert sink.delivered == ids(4)
    clock.advance(0.2)
    await drain(worker, clock)
    assert sink.delivered == ids(4, 2)


async def test_kept_records_come_again_at_once_in_their_place(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(script=[Delivery((DELIVERED, KEPT, KEPT))])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1), record(2), record(3))
    assert await drain(worker, clock) == []
    assert sink.sent == [ids(1, 2, 3), ids(2, 3)]


async def test_a_sink_that_keeps_everything_for_ever_is_slowed_down(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(script=[Delivery((KEPT,))] * 5)
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    assert len(await drain(worker, clock)) >= 1
    assert sink.delivered == ids(1)


async def test_a_pause_is_kept_to_the_second_and_nothing_moves_meanwhile(store: Store, clock: FakeClock) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, delivered=1, pause_s=17.0)

    sink = ScriptedSink(script=[busy])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1), record(2))
    assert await worker.round() == 17.0
    await put(store, record(3))
    clock.advance(16.5)
    assert await worker.round() == 0.5
    assert sink.sent == [ids(1, 2)]
    clock.advance(0.5)
    await drain(worker, clock)
    assert sink.sent == [ids(1, 2), ids(2, 3)]


async def test_back_off_is_full_jitter_with_a_doubling_bound_and_a_cap(store: Store, clock: FakeClock) -> None:
    async def down(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records)

    sink = ScriptedSink(script=[down] * 14)
    chance = random.Random(11)
    worker = await worker_for(store, sink, clock, random=random.Random(11))
    await put(store, record(1))
    pauses = await drain(worker, clock)
    bounds = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300, 300]
    assert pauses == pytest.approx([chance.uniform(0, bound) for bound in bounds], abs=1e-6)


@given(st.integers(1, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_no_number_of_failures_breaks_the_cap(failures: int, chance: random.Random) -> None:
    options = loop_over(None, ScriptedSink(), random=chance).workers[0]._o  # type: ignore[arg-type]
    assert 0 <= options.back_off_s(failures) <= 300


async def test_back_off_survives_a_restart_and_another_owner(store: Store, clock: FakeClock) -> None:
    async def down(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records)

    worker = await worker_for(store, ScriptedSink(script=[down] * 5), clock)
    await put(store, record(1))
    for _ in range(4):
        clock.advance(await worker.round())
    left_s = await worker.round()
    assert left_s > 0
    await worker.give_back()
    sink = ScriptedSink(script=[down])
    other = await worker_for(store, sink, clock, owner="w2", random=random.Random(1))
    assert await other.round() == pytest.approx(left_s, abs=1e-6)
    assert sink.sent == []
    clock.advance(left_s)
    assert await other.round() == pytest.approx(random.Random(1).uniform(0, 32), abs=1e-6)


async def test_success_ends_the_back_off(store: Store, clock: FakeClock) -> None:
    async def down(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records)

    worker = await worker_for(store, ScriptedSink(script=[down, down]), clock)
    await put(store, record(1))
    await drain(worker, clock)
    leases = await store.lease("sink", "w1", 30.0)
    assert {(lease.retry_at_s, lease.failures) for lease in leases} == {(0.0, 0)}


@pytest.mark.parametrize("poisoned", [0, 1, 37, 98, 99])
async def test_one_poison_record_never_holds_back_its_neighbours(store: Store, clock: FakeClock, poisoned: int) -> None:
    sink = ScriptedSink(poison=ids(poisoned))
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(100)))
    pauses = await drain(worker, clock)
    assert len(pauses) == ISOLATE_AFTER - 1
    assert sink.delivered == ids(*(n for n in range(100) if n != poisoned))
    assert len(sink.sent) <= ISOLATE_AFTER + 15
    assert await store.pending() == {"sink": 1}


async def test_poison_that_is_cured_arrives_in_the_end(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(poison=ids(5))
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(10)))
    await drain(worker, clock)
    sink.poison.clear()
    clock.advance(300)
    await drain(worker, clock)
    assert sink.delivered[-1:] == ids(5)
    assert await store.pending() == {"sink": 0}


async def test_poison_waits_longer_each_time_and_dies_only_while_others_are_delivered(
    store: Store, clock: FakeClock
) -> None:
    sink = ScriptedSink(poison=ids(0))
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(3)))
    await drain(worker, clock)
    for _ in range(3 * MAX_ATTEMPTS):  # alone, it may be the sink's fault: it stays
        clock.advance(301)
        await drain(worker, clock)
    assert await store.dead_letters("sink") == []
    clock.advance(301)
    await put(store, record(9))
    await drain(worker, clock)
    (letter,) = await store.dead_letters("sink")
    assert letter.call_id == "call-00000"
    assert letter.reason.endswith("RuntimeError: poison")


async def test_retried_poison_never_delays_new_records(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(poison=ids(*range(20)))
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(30)))
    await drain(worker, clock)
    assert sink.delivered == ids(*range(20, 30))
    for n in range(30, 35):
        clock.advance(301)
        sink.sent.clear()
        await put(store, record(n))
        assert await worker.round() == 0.0
        assert sink.sent[0] == ids(n)


@given(poison=st.sets(st.integers(0, 39)), size=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_any_set_of_poison_records_leaves_all_others_delivered_once_and_in_order(poison: set[int], size: int) -> None:
    async def run() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await store.open()
        sink = ScriptedSink(poison=ids(*poison), max_batch=size)
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n) for n in range(40)))
        healthy = ids(*(n for n in range(40) if n not in poison))
        for _ in range(1000):
            clock.advance(await worker.round())
            if sink.delivered == healthy:
                break
        assert sink.delivered == healthy
        await put(store, record(40))
        for _ in range(1000):
            clock.advance(await worker.round())
            if sink.delivered[-1:] == ids(40):
                break
        assert sink.delivered == [*healthy, *ids(40)]
        assert (await store.pending())["sink"] + len(await store.dead_letters("sink")) == len(poison)
        await store.close()

    asyncio.run(run())


async def test_an_outage_writes_nothing_off_and_keeps_the_order(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(poison=ids(*range(50)))
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(50)))
    for _ in range(20):
        clock.advance(await worker.round())
    assert await store.pending() == {"sink": 50}
    sink.poison.clear()
    await drain(worker, clock)
    assert sink.delivered == ids(*range(50))


async def test_a_sink_that_comes_back_in_the_middle_of_a_search_loses_nothing_and_hardly_any_order() -> None:
    for failures in range(120):
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        sink = ScriptedSink(script=[TimeoutError()] * failures, max_batch=20)
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n) for n in range(60)))
        await drain(worker, clock)
        assert sorted(sink.delivered) == ids(*range(60))
        assert await store.dead_letters("sink") == []
        breaks = sum(after < before for before, after in pairwise(sink.delivered))
        assert breaks <= 1
        await store.close()


async def test_a_clock_that_was_set_back_prolongs_no_pause_beyond_an_hour(store: Store, clock: FakeClock) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, pause_s=1e9)

    sink = ScriptedSink(script=[busy])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    assert await worker.round() == MAX_PAUSE_S
    clock.advance(-86_400.0)
    assert await worker.round() == MAX_PAUSE_S
    clock.advance(MAX_PAUSE_S)
    await worker.round()
    assert sink.delivered == ids(1)


async def test_a_sink_that_resists_its_cancellation_keeps_its_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askii_middleware.delivery_rounds.CLOSE_S", 0.02)
    release = asyncio.Event()

    async def stubborn(records: Sequence[UsageRecord]) -> Delivery:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Delivery((DELIVERED,) * len(records))

    sink = ScriptedSink(script=[stubborn])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink)
    await put(store, record(1))
    loop.start()
    (task,) = loop._tasks
    assert await loop.stop(0.02) is False
    assert await store.lease("sink", "w2", 30.0) == []
    release.set()
    await asyncio.wait([task], timeout=5.0)
    assert task.done()
    assert await store.pending() == {"sink": 0}


async def test_a_sink_that_raises_is_reported_and_tried_again(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    results = Results()
    sink = ScriptedSink(script=[KeyError("x")])
    worker = await worker_for(store, sink, clock, on_result=results)
    await put(store, record(1))
    with caplog.at_level(logging.WARNING):
        await drain(worker, clock)
    assert "KeyError: 'x'" in caplog.text
    assert results.counts == {("sink", "error"): 1, ("sink", "delivered"): 1}


async def test_a_sink_that_cancels_itself_does_not_end_delivery(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(script=[asyncio.CancelledError()])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    await drain(worker, clock)
    assert sink.delivered == ids(1)


@pytest.mark.parametrize("answer", [Delivery((DELIVERED, DELIVERED)), Delivery((Verdict("lost"),)), Delivery(())])
async def test_an_answer_that_makes_no_sense_delivers_nothing(store: Store, clock: FakeClock, answer: Delivery) -> None:
    sink = ScriptedSink(script=[answer])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    await worker.round()
    assert await store.pending() == {"sink": 1}


async def test_bytes_that_are_no_record_become_a_dead_letter_and_the_rest_goes_on(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ScriptedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, record(1), record(2))
    fetch = store.fetch

    async def damaged(name: str, partitions: Sequence[int], limit: int) -> list[Any]:
        found = await fetch(name, partitions, limit)
        return [e._replace(record=b'{"kind":') if e.call_id == "call-00001" else e for e in found]

    monkeypatch.setattr(store, "fetch", damaged)
    await drain(worker, clock)
    assert sink.delivered == ids(2)
    (letter,) = await store.dead_letters("sink")
    assert letter.reason.startswith("not a usage record: ")


async def test_an_alarm_is_logged_once_shown_and_taken_back_after_the_next_delivery(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Delivery((AGAIN,), pause_s=5.0, alarm="check the API key")
    sink = ScriptedSink(script=[refused] * 3)
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, clock=clock)
    await put(store, record(1))
    for _ in range(3):
        clock.advance(await loop.workers[0].round())
        assert loop.alarms == {"sink": "check the API key"}
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == ["sink sink: check the API key"]
    await drain(loop.workers[0], clock)
    assert loop.alarms == {}


async def test_two_owners_never_send_one_record_both(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(), ScriptedSink()
    first, second = await worker_for(store, one, clock), await worker_for(store, two, clock, owner="w2")
    await put(store, *(record(n) for n in range(5)))
    assert await first.round() == 0.0
    assert await second.round() == 10.0
    assert (one.delivered, two.sent) == (ids(*range(5)), [])


async def test_a_dead_owners_lease_passes_on_when_it_has_run_out(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink()
    await (await worker_for(store, ScriptedSink(), clock)).round()
    other = await worker_for(store, sink, clock, owner="w2")
    await put(store, record(1))
    assert await other.round() == 10.0
    clock.advance(30.0)
    await other.round()
    assert sink.delivered == ids(1)


async def test_a_lease_given_back_passes_on_at_once(store: Store, clock: FakeClock) -> None:
    first = await worker_for(store, ScriptedSink(), clock)
    await first.round()
    await first.give_back()
    sink = ScriptedSink()
    await put(store, record(1))
    await (await worker_for(store, sink, clock, owner="w2")).round()
    assert sink.delivered == ids(1)


async def test_an_owner_whose_lease_was_taken_during_a_send_writes_nothing_and_stops(
    store: Store, clock: FakeClock
) -> None:
    async def stall(records: Sequence[UsageRecord]) -> Delivery:
        clock.advance(31.0)  # the process was suspended
        assert await store.lease("sink", "w2", 30.0) != []
        return Delivery((Verdict("rejected", "x"),) * len(records))

    sink = ScriptedSink(script=[stall])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1))
    assert await worker.round() == 10.0
    assert await store.pending() == {"sink": 1}
    assert await store.dead_letters("sink") == []
    assert await worker.round() == 10.0
    assert len(sink.sent) == 1


async def test_the_lease_is_renewed_before_a_send_could_outlive_it(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, asked = store.lease, []

    async def noted(*arguments: Any) -> Any:
        asked.append(clock())
        return await lease(*arguments)

    monkeypatch.setattr(store, "lease", noted)

    async def slow(records: Sequence[UsageRecord]) -> Delivery:
        assert clock() + 22.0 <= asked[-1] + 30.0
        clock.advance(7.0)
        return Delivery((DELIVERED,) * len(records)) if len(records) < 2 else paused(records, suspect=True)

    sink = ScriptedSink(script=[slow] * 50, max_batch=4)
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(4)))
    await drain(worker, clock)
    assert await store.pending() == {"sink": 0}
    assert len(sink.sent) > len(asked) > 2  # neither at every send nor at every round only


async def test_the_same_owner_that_lost_and_regained_its_lease_fetches_anew(store: Store, clock: FakeClock) -> None:
    async def stall(records: Sequence[UsageRecord]) -> Delivery:
        clock.advance(31.0)
        leases = await store.lease("sink", "w2", 1.0)
        (first, _) = await store.fetch("sink", [lease.partition for lease in leases], 9)
        assert await store.acknowledge("sink", leases, [Outcome(first.partition, first.seq, "delivered")]) == []
        assert await store.lease("sink", "w2", 0.0) == []
        return paused(records, suspect=True)

    sink = ScriptedSink(script=[RuntimeError(), RuntimeError(), RuntimeError(), stall])
    worker = await worker_for(store, sink, clock)
    await put(store, record(1), record(2))
    await drain(worker, clock)
    assert sink.sent == [ids(1, 2)] * 4 + [ids(2)]
    assert sink.delivered == ids(2)


# The running loop -----------------------------------------------------------------------------------------------------


async def test_wake_delivers_without_waiting_for_the_idle_time(store: Store) -> None:
    sink = ScriptedSink()
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, idle_s=60.0, linger_s=0.0)
    loop.start()
    await asyncio.sleep(0.01)
    await put(store, record(1))
    loop.wake()
    async with asyncio.timeout(5):
        while not sink.delivered:
            await asyncio.sleep(0)
    await loop.stop(1.0)


async def test_what_others_recorded_is_found_within_the_idle_time(store: Store) -> None:
    sink = ScriptedSink()
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, idle_s=0.02)
    loop.start()
    await asyncio.sleep(0.01)
    await put(store, record(1))
    async with asyncio.timeout(5):
        while not sink.delivered:
            await asyncio.sleep(0.005)
    await loop.stop(1.0)


async def test_a_hanging_sink_and_a_crashing_sink_delay_no_other(store: Store) -> None:
    async def hang(_: Sequence[UsageRecord]) -> Delivery:
        await asyncio.sleep(3600)
        raise AssertionError

    good = ScriptedSink("good")
    hanging = ScriptedSink("hanging", [hang])
    crashing = ScriptedSink("crashing", [RuntimeError("boom")] * 1000)
    await store.register_sinks(["good", "hanging", "crashing"])
    loop = loop_over(store, hanging, crashing, good, linger_s=0.0, lease_s=20.0, send_timeout_s=10.0)
    await put(store, *(record(n) for n in range(250)))
    started = time.perf_counter()
    loop.start()
    while len(good.delivered) < 250:
        await asyncio.sleep(0)
    assert time.perf_counter() - started < 1.0
    assert await loop.stop(0.05) is False
    assert await store.pending() == {"good": 0, "hanging": 250, "crashing": 250}


async def test_never_more_than_one_send_is_in_flight_per_sink(store: Store) -> None:
    async def slow(records: Sequence[UsageRecord]) -> Delivery:
        await asyncio.sleep(0.003)
        return Delivery((DELIVERED,) * len(records))

    sink = ScriptedSink(script=[slow] * 40, max_batch=3)
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, linger_s=0.0)
    loop.start()
    loop.start()
    for n in range(60):
        await put(store, record(n))
        loop.wake()
        await asyncio.sleep(0)
    assert await loop.flush(5.0) is True
    await loop.stop(1.0)
    assert sink.most_in_flight == 1
    assert await store.pending() == {"sink": 0}


async def test_a_send_that_takes_too_long_is_cancelled_and_repeated(store: Store) -> None:
    async def hang(_: Sequence[UsageRecord]) -> Delivery:
        await asyncio.sleep(3600)
        raise AssertionError

    sink = ScriptedSink(script=[hang])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, send_timeout_s=0.02, lease_s=5.0, base_backoff_s=0.01)
    loop.start()
    await put(store, record(1))
    loop.wake()
    assert await loop.flush(5.0) is True
    await loop.stop(1.0)
    assert sink.sent == [ids(1), ids(1)]


async def test_flush_sees_what_was_recorded_just_before_it(store: Store) -> None:
    sink = ScriptedSink()
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, idle_s=60.0, linger_s=60.0)
    loop.start()
    for n in range(20):
        await put(store, record(n))
        loop.wake()
        assert await loop.flush(5.0) is True
        assert len(sink.delivered) == n + 1
        await asyncio.sleep(0)
    await loop.stop(1.0)


async def test_before_the_start_there_is_nothing_to_flush_or_stop(store: Store) -> None:
    loop = loop_over(store, ScriptedSink())
    assert await loop.flush(5.0) is False
    assert await loop.stop(5.0) is False


async def test_a_lease_that_cannot_be_given_back_is_left_to_run_out(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone(*_: Any) -> None:
        raise StoreError("gone")

    worker = await worker_for(store, ScriptedSink(), clock)
    await worker.round()
    monkeypatch.setattr(store, "lease", gone)
    await worker.give_back()
    assert "run out by themselves: gone" in caplog.text


async def test_a_busy_receiver_found_during_a_search_ends_it_and_keeps_what_was_learnt(
    store: Store, clock: FakeClock
) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, pause_s=33.0)

    async def fine(records: Sequence[UsageRecord]) -> Delivery:
        return Delivery((DELIVERED,) * len(records))

    sink = ScriptedSink(script=[RuntimeError()] * 2, max_batch=2)
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(6)))
    for _ in range(2):
        clock.advance(await worker.round())
    sink.script = [RuntimeError("poison"), RuntimeError("poison"), fine, busy]
    assert await worker.round() == 33.0
    assert sink.sent[2:] == [ids(0, 1), ids(0), ids(1), ids(0)]
    assert await store.pending() == {"sink": 5}


async def test_stop_is_bounded_and_leftovers_go_out_after_the_next_start(store: Store) -> None:
    async def hang(_: Sequence[UsageRecord]) -> Delivery:
        await asyncio.sleep(3600)
        raise AssertionError

    sink = ScriptedSink(script=[hang])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink)
    loop.start()
    await put(store, record(1))
    loop.wake()
    started = time.perf_counter()
    assert await loop.stop(0.1) is False
    assert time.perf_counter() - started < 1.0
    assert await store.pending() == {"sink": 1}
    loop.start()
    assert await loop.stop(5.0) is True
    assert sink.delivered == ids(1)


async def test_stop_does_not_wait_for_a_pause_that_outlasts_it(store: Store) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, pause_s=120.0)

    sink = ScriptedSink(script=[busy])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink)
    loop.start()
    await put(store, record(1))
    loop.wake()
    started = time.perf_counter()
    assert await loop.stop(30.0) is False
    assert time.perf_counter() - started < 1.0


async def test_stop_does_not_wait_for_another_process_that_holds_the_lease(store: Store) -> None:
    sink = ScriptedSink()
    await store.register_sinks([sink.name])
    assert len(await store.lease("sink", "other", 1e9)) == 16
    loop = loop_over(store, sink)
    loop.start()
    await put(store, record(1))
    started = time.perf_counter()
    assert await loop.stop(30.0) is False
    assert time.perf_counter() - started < 1.0
    assert sink.sent == []


async def test_a_flush_waits_through_a_short_pause(store: Store) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, pause_s=0.05)

    sink = ScriptedSink(script=[busy])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink)
    loop.start()
    await put(store, record(1))
    assert await loop.stop(5.0) is True
    assert sink.delivered == ids(1)


async def test_wakes_during_a_pause_do_not_cut_it_short(store: Store) -> None:
    async def busy(records: Sequence[UsageRecord]) -> Delivery:
        return paused(records, pause_s=120.0)

    sink = ScriptedSink(script=[busy])
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink, linger_s=0.0)
    loop.start()
    for n in range(50):
        await put(store, record(n))
        loop.wake()
        await asyncio.sleep(0.001)
    assert len(sink.sent) == 1
    await loop.stop(0.1)


async def test_delivery_survives_a_store_that_is_away_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ScriptedSink()
    await store.register_sinks([sink.name])
    fetch, failures = store.fetch, iter([StoreError("gone"), RuntimeError("bug"), StoreError("gone")])

    async def flaky(name: str, partitions: Sequence[int], limit: int) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return await fetch(name, partitions, limit)

    monkeypatch.setattr(store, "fetch", flaky)
    loop = loop_over(store, sink, base_backoff_s=0.005)
    await put(store, record(1))
    loop.start()
    assert await loop.flush(5.0) is True
    await loop.stop(1.0)
    assert sink.delivered == ids(1)
    assert "the outbox cannot be used: gone" in caplog.text


async def test_cancellation_at_any_await_loses_nothing(store: Store, clock: FakeClock) -> None:
    """Cancel a round at its n-th step for every n; whatever was sent but not acknowledged comes again."""
    sink = ScriptedSink(max_batch=2)
    await store.register_sinks([sink.name])
    await put(store, *(record(n) for n in range(6)))
    for steps in range(30):
        worker = loop_over(store, sink, clock=clock).workers[0]
        task = asyncio.ensure_future(worker.round())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await drain(loop_over(store, sink, clock=clock).workers[0], clock)
    assert sorted(set(sink.delivered)) == ids(*range(6))
    assert await store.pending() == {"sink": 0}


async def test_the_loop_can_be_started_again_on_another_event_loop(store: Store) -> None:
    sink = MemorySink()
    await store.register_sinks([sink.name])
    loop = loop_over(store, sink)

    def elsewhere() -> bool:
        async def run() -> bool:
            loop.start()
            return await loop.stop(5.0)

        return asyncio.run(run())

    await put(store, record(1))
    assert await asyncio.to_thread(elsewhere)
    await put(store, record(2))
    assert await asyncio.to_thread(elsewhere)
    assert sink.received == 2


async def test_the_event_loop_is_never_held_for_long_by_large_batches(store: Store, clock: FakeClock) -> None:
    sink = MemorySink(max_batch=10_000)
    worker = await worker_for(store, sink, clock)
    await put(store, *(record(n) for n in range(2000)))
    rounds = 0
    while not worker._drained:
        await worker.round()
        rounds += 1
    assert rounds == 11  # ten times 200, and the empty one


@pytest.mark.parametrize(
    "options",
    [{"send_timeout_s": 30.0}, {"send_timeout_s": 0.0}, {"lease_s": 5.0}, {"sinks": [ScriptedSink(max_batch=0)]}],
)
def test_nonsense_in_the_arguments_is_refused_at_construction(options: dict[str, Any]) -> None:
    sinks = options.pop("sinks", [ScriptedSink()])
    with pytest.raises(ConfigurationError):
        loop_over(None, *sinks, **options)  # type: ignore[arg-type]
