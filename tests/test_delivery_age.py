"""Records that are too old for their receiver, and clocks that only make them look so."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from askii_middleware.delivery_age import CONFIRM_S, DESPITE_AGE, LOOK_S, TOO_OLD, Ages
from askii_middleware.delivery_worker import SinkWorker
from askii_middleware.errors import SinkError
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import BACK_OFF, Delivery, Traits, Verdict, traits_of
from askii_middleware.sinks.memory import MemorySink
from askii_middleware.stores.base import Store, partition_of
from askii_middleware.stores.memory import MemoryStore

from .sinks.support import FakeClock, ScriptedSink, drain, put, record, worker_for

DAY_S = 86_400.0


class AgedSink(ScriptedSink):
    """Its receiver takes records for 35 days and knows one again for a day."""

    def __init__(
        self, *, max_age_s: float | None = 35 * DAY_S, remembers_s: float | None = DAY_S, **options: Any
    ) -> None:
        super().__init__(**options)
        self.max_age_s = max_age_s
        self.remembers_s = remembers_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()


def aged(number: int, clock: FakeClock, age_s: float, *, tenant: str = "acme") -> UsageRecord:
    moment = datetime.fromtimestamp(clock() - age_s, UTC).isoformat(timespec="milliseconds")
    return record(number, timestamp=moment, subscription=tenant)


def ids(*numbers: int) -> list[str]:
    return [f"call-{number:05d}" for number in numbers]


async def look_for(worker: SinkWorker, clock: FakeClock, seconds: float) -> None:
    """Rounds for so long, a second apart where the worker would wait longer."""
    until_s = clock() + seconds
    while clock() < until_s:
        wait_s = await worker.round()
        clock.advance(min(wait_s, 1.0))


def test_traits_have_defaults() -> None:
    assert traits_of(MemorySink()) == Traits("string", None, None)
    assert traits_of(AgedSink()) == Traits("string", 35 * DAY_S, DAY_S)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "1 day"])
def test_an_age_that_makes_no_sense_is_refused_before_anything_is_sent(bad: Any) -> None:
    with pytest.raises(SinkError, match="remembers_s of sink 'sink' is a number of seconds above 0"):
        traits_of(AgedSink(remembers_s=bad))


async def test_a_record_past_what_the_receiver_remembers_is_a_dead_letter_and_never_sent(
    store: Store, clock: FakeClock
) -> None:
    counts: dict[str, int] = {}
    sink = AgedSink()
    worker = await worker_for(store, sink, clock, on_result=lambda _, result, n: counts.update({result: n}))
    await put(store, aged(1, clock, DAY_S + 10), aged(2, clock, DAY_S - 3600))
    assert sum(await drain(worker, clock)) == CONFIRM_S
    assert sink.delivered == ids(2)
    (letter,) = await store.dead_letters("sink")
    assert letter.call_id == "call-00001"
    assert letter.reason == (
        f"{TOO_OLD}{DAY_S + 10 + CONFIRM_S:.0f} s; after 86400 s the receiver could not tell a second try from a first"
    )
    assert counts == {"dead": 1, "delivered": 1}


async def test_a_record_past_the_age_the_receiver_takes_says_so(store: Store, clock: FakeClock) -> None:
    worker = await worker_for(store, AgedSink(remembers_s=None), clock)
    await put(store, aged(1, clock, 36 * DAY_S))
    await drain(worker, clock)
    (letter,) = await store.dead_letters("sink")
    assert letter.reason == f"{TOO_OLD}{36 * DAY_S + CONFIRM_S:.0f} s; the receiver takes records for 3024000 s"


async def test_a_sink_without_limits_sends_whatever_its_age(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, 4000 * DAY_S))
    await drain(worker, clock)
    assert sink.delivered == ids(1)


@pytest.mark.parametrize("timestamp", ["yesterday", "2020-01-01T00:00:00", ""])
async def test_what_to_make_of_a_time_without_meaning_is_the_sinks_to_say(
    store: Store, clock: FakeClock, timestamp: str
) -> None:
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, record(1, timestamp=timestamp))
    await drain(worker, clock)
    assert sink.delivered == ids(1)


@pytest.mark.parametrize("jump_s", [2 * DAY_S, 365 * DAY_S])
@pytest.mark.parametrize("wrong_for_s", [1.0, CONFIRM_S - LOOK_S - 10])
async def test_a_clock_that_jumps_ahead_and_is_set_right_kills_nothing_and_keeps_the_order(
    store: Store, clock: FakeClock, jump_s: float, wrong_for_s: float
) -> None:
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await look_for(worker, clock, 3.0)
    await put(store, *(aged(n, clock, 1.0) for n in range(300)))
    clock.advance(jump_s)
    await look_for(worker, clock, wrong_for_s)
    assert sink.sent == []
    clock.advance(-jump_s)
    await look_for(worker, clock, LOOK_S + 1)
    assert sink.delivered == ids(*range(300))
    assert await store.dead_letters("sink") == []


async def test_a_pause_between_two_looks_counts_as_one_look_however_long_it_was(store: Store, clock: FakeClock) -> None:
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, 2 * DAY_S))
    for _ in range(5):  # a look, and four more
        await worker.round()
        clock.advance(3000.0)
    assert await store.dead_letters("sink") == []
    await worker.round()
    assert [letter.call_id for letter in await store.dead_letters("sink")] == ids(1)


async def test_partitions_without_old_records_go_on_while_others_are_looked_at(store: Store, clock: FakeClock) -> None:
    assert partition_of("acme") != partition_of("globex")
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, 2 * DAY_S), aged(2, clock, 5.0), aged(3, clock, 5.0, tenant="globex"))
    await look_for(worker, clock, 10.0)
    assert sink.delivered == ids(3)
    await look_for(worker, clock, CONFIRM_S)
    assert sink.delivered == ids(3, 2)


async def test_a_correction_of_an_old_call_is_young_to_what_a_receiver_remembers(
    store: Store, clock: FakeClock
) -> None:
    """So is a batch that ran for a day: what counts is when the record was made."""
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    old = aged(1, clock, 20 * DAY_S)
    await put(store, msgspec.structs.replace(old, duration_ms=20 * DAY_S * 1000 - 5.0))
    await put(store, msgspec.structs.replace(aged(2, clock, 36 * DAY_S), duration_ms=36 * DAY_S * 1000))
    await drain(worker, clock)
    assert sink.delivered == ids(1)
    (letter,) = await store.dead_letters("sink")
    assert "the receiver takes records for" in letter.reason  # its moment of use is too old, whenever it was made


async def test_other_tenants_of_the_partition_do_not_wait_for_what_is_looked_at(store: Store, clock: FakeClock) -> None:
    other = next(f"t{n}" for n in range(100) if partition_of(f"t{n}") == partition_of("acme"))
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, 2 * DAY_S), aged(2, clock, 5.0), aged(3, clock, 5.0, tenant=other))
    await look_for(worker, clock, 10.0)
    assert sink.delivered == ids(3)
    await put(store, aged(4, clock, 5.0, tenant=other))
    await look_for(worker, clock, LOOK_S + 1)
    assert sink.delivered == ids(3, 4)
    await look_for(worker, clock, CONFIRM_S)
    assert sink.delivered == ids(3, 4, 2)
    assert [letter.call_id for letter in await store.dead_letters("sink")] == ids(1)


async def test_once_it_is_certain_a_backlog_goes_without_further_waiting(store: Store, clock: FakeClock) -> None:
    sink = AgedSink(max_batch=10)
    worker = await worker_for(store, sink, clock)
    await put(store, *(aged(n, clock, 2 * DAY_S) for n in range(95)), aged(95, clock, 1.0))
    assert sum(await drain(worker, clock)) == CONFIRM_S
    assert len(await store.dead_letters("sink")) == 95
    assert sink.delivered == ids(95)


async def test_records_that_grow_old_while_the_receiver_is_away_are_dead_letters_once_it_is_back(
    store: Store, clock: FakeClock
) -> None:
    async def away(records: Any) -> Delivery:
        return Delivery((Verdict("again", "away"),) * len(records), BACK_OFF)

    sink = AgedSink(script=[away] * 20)
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, DAY_S - 60), aged(2, clock, 60.0))
    await look_for(worker, clock, 1500.0)
    sink.script.clear()
    await drain(worker, clock)
    assert sink.delivered == ids(2)
    assert [letter.call_id for letter in await store.dead_letters("sink")] == ids(1)


async def test_records_that_wait_to_be_looked_at_are_not_taken_for_delivered(store: Store, clock: FakeClock) -> None:
    worker = await worker_for(store, AgedSink(), clock)
    await put(store, aged(1, clock, 2 * DAY_S))
    await worker.round()
    await worker.round()  # the other partitions have nothing
    assert worker._drained is False
    clock.advance(LOOK_S - 0.1)
    assert await worker.round() == pytest.approx(0.1)


async def test_a_dead_letter_that_is_retried_despite_its_age_is_sent_and_others_are_not(
    store: Store, clock: FakeClock
) -> None:
    sink = AgedSink()
    worker = await worker_for(store, sink, clock)
    await put(store, aged(1, clock, 2 * DAY_S))
    await drain(worker, clock)
    assert await store.retry_dead("sink") == 1
    await drain(worker, clock)  # nobody said that its age does not matter
    assert (sink.delivered, len(await store.dead_letters("sink"))) == ([], 1)
    await store.put_item(DESPITE_AGE, "sink", b"{}", until_s=clock() + 3600)
    await put(store, aged(2, clock, 2 * DAY_S))
    assert await store.retry_dead("sink") == 1
    await drain(worker, clock)
    assert sink.delivered == ids(1)
    assert [letter.call_id for letter in await store.dead_letters("sink")] == ids(2)


async def test_what_looks_too_old_is_said_before_it_is_dropped(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await worker_for(store, AgedSink(), clock)
    await put(store, aged(1, clock, 2 * DAY_S))
    with caplog.at_level(logging.ERROR, "askii_middleware.delivery"):
        await worker.round()
        assert worker.alarm == "records look too old to be sent: they wait, lest the clock be wrong"
        await drain(worker, clock)
    assert worker.alarm.startswith(f"records went to the dead letters: {TOO_OLD}")
    assert len(caplog.records) >= 2


def test_certainty_lasts_while_looks_follow_each_other_and_ends_with_a_jump() -> None:
    ages = Ages(Traits(max_age_s=1.0))
    looks = [ages.look(0, 1e9 + LOOK_S * n) for n in range(8)]
    assert looks == [1e9 + LOOK_S * (n + 1) for n in range(5)] + [None] * 3
    now_s = 1e9 + LOOK_S * 7
    assert ages.look(0, now_s + DAY_S) == now_s + DAY_S + LOOK_S
    assert ages.look(1, now_s) == now_s + LOOK_S  # each partition for itself
