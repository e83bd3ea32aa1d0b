"""Delivery by several processes that share a sink's partitions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from askii_middleware.delivery_worker import SinkWorker
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Delivery, Verdict
from askii_middleware.stores.base import PARTITIONS, Store, partition_of
from askii_middleware.stores.memory import MemoryStore

from .sinks.support import FakeClock, ScriptedSink, drain, put, record, worker_for

TENANTS = {partition_of(f"t{n}"): f"t{n}" for n in range(40)}
"""One of each partition."""
LOW, HIGH = TENANTS[0], TENANTS[PARTITIONS - 1]
"""Of two owners, w1 gets the lower half of the partitions, and w2 the upper one."""
ALL = range(PARTITIONS)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()


def of(tenant: str, *numbers: int) -> list[UsageRecord]:
    return [record(n, subscription=tenant, call_id=f"{tenant}-{n}") for n in numbers]


async def share(store: Store, clock: FakeClock, *sinks: ScriptedSink, **options: Any) -> list[SinkWorker]:
    """Workers w1, w2, … that have come to their even shares, with an empty outbox."""
    workers = [await worker_for(store, sink, clock, owner=f"w{n + 1}", **options) for n, sink in enumerate(sinks)]
    for _ in range(3):
        for worker in workers:
            await worker.round()
        clock.advance(10.0)
    for worker in workers:
        await worker.round()
    return workers


async def test_one_worker_delivers_all_its_partitions_in_common_batches(store: Store, clock: FakeClock) -> None:
    sink = ScriptedSink(max_batch=20)
    worker = await worker_for(store, sink, clock)
    records = [each for n in range(2) for tenant in TENANTS.values() for each in of(tenant, n)]
    await put(store, *records)
    await drain(worker, clock)
    assert [len(sent) for sent in sink.sent] == [20, 12]
    assert sink.delivered == [each.call_id for each in records]


async def test_two_workers_deliver_a_half_each(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(), ScriptedSink()
    workers = await share(store, clock, one, two)
    await put(store, *(each for tenant in TENANTS.values() for each in of(tenant, 1, 2)))
    for worker in workers:
        await drain(worker, clock)
    assert one.delivered == [
        f"{TENANTS[n]}-{m}" for n in sorted(TENANTS, key=list(TENANTS).index) if n < 8 for m in (1, 2)
    ]
    assert len(two.delivered) == 16
    assert await store.pending() == {"sink": 0}


async def test_a_worker_that_joins_gets_its_half_within_two_thirds_of_a_lease(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(), ScriptedSink()
    first, second = await worker_for(store, one, clock), await worker_for(store, two, clock, owner="w2")
    await first.round()
    assert await second.round() == 10.0
    for _ in range(20):
        clock.advance(1.0)
        await first.round()
        if clock.now_s % 10.0 == 0:
            await second.round()
    await put(store, *of(LOW, 1), *of(HIGH, 1))
    await first.round()
    await second.round()
    assert (one.delivered, two.delivered) == ([f"{LOW}-1"], [f"{HIGH}-1"])


async def test_a_dead_workers_partitions_alone_wait_for_the_end_of_its_leases(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(), ScriptedSink()
    first, _ = await share(store, clock, one, two)
    await put(store, *of(LOW, 1), *of(HIGH, 1))
    dead_s = clock()
    await drain(first, clock)
    assert one.delivered == [f"{LOW}-1"]
    while await store.pending() != {"sink": 0}:
        clock.advance(1.0)
        await first.round()
    assert clock() - dead_s <= 30.0 + 8.0
    assert (one.delivered, two.delivered) == ([f"{LOW}-1", f"{HIGH}-1"], [])


async def test_a_worker_that_leaves_passes_its_partitions_on_at_once(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(), ScriptedSink()
    first, second = await share(store, clock, one, two)
    await put(store, *of(HIGH, 1))
    await second.give_back()
    clock.advance(8.0)
    await first.round()
    assert one.delivered == [f"{HIGH}-1"]


async def test_a_pause_of_one_worker_delays_only_its_partitions(store: Store, clock: FakeClock) -> None:
    busy = Delivery((Verdict("again", "busy"),), 25.0)
    one, two = ScriptedSink(script=[busy]), ScriptedSink()
    first, second = await share(store, clock, one, two)
    await put(store, *of(LOW, 1), *of(HIGH, 1))
    assert await first.round() == 25.0
    await second.round()
    assert (one.delivered, two.delivered) == ([], [f"{HIGH}-1"])
    await first.give_back()
    clock.advance(8.0)
    await second.round()  # takes over the partitions with their pause
    await put(store, *of(LOW, 2), *of(HIGH, 2))
    await second.round()
    assert two.delivered == [f"{HIGH}-1", f"{HIGH}-2"]
    assert await second.round() == 1.0
    assert second._drained is False
    clock.advance(17.0)
    await drain(second, clock)
    assert two.delivered == [f"{HIGH}-1", f"{HIGH}-2", f"{LOW}-1", f"{LOW}-2"]


async def test_a_partition_lost_during_a_send_loses_only_its_own_outcomes(store: Store, clock: FakeClock) -> None:
    async def stall(records: Sequence[UsageRecord]) -> Delivery:
        clock.advance(31.0)  # the process was suspended, and another one took what it could
        assert len(await store.lease("sink", "w2", 30.0)) == 16
        await store.lease("sink", "w1", 30.0)
        await store.lease("sink", "w2", 30.0)  # the upper half stays with w2
        return Delivery((Verdict("rejected", "x"),) * len(records))

    results: dict[tuple[str, str], int] = {}
    sink = ScriptedSink(script=[stall])
    worker = await worker_for(store, sink, clock, on_result=lambda s, r, n: results.update({(s, r): n}))
    await put(store, *of(LOW, 1), *of(HIGH, 1))
    await worker.round()
    assert await store.dead_letters("sink") == []  # all tokens are new: nothing was written
    assert results == {}

    async def lose(records: Sequence[UsageRecord]) -> Delivery:
        for n in worker._held:
            if n >= 8:
                worker._held[n] = worker._held[n]._replace(token=1)
        return Delivery((Verdict("rejected", "x"),) * len(records))

    await store.lease("sink", "w2", 0)
    clock.advance(10.0)
    sink.script = [lose]
    await worker.round()
    assert [letter.tenant for letter in await store.dead_letters("sink")] == [LOW]
    assert await store.pending() == {"sink": 1}
    assert results == {("sink", "dead"): 1}
    assert set(worker._held) == set(range(8))


async def test_a_partition_lost_in_the_middle_of_a_search_is_left_out_and_the_search_goes_on(
    store: Store, clock: FakeClock
) -> None:
    poison = f"{LOW}-3"

    async def lose(records: Sequence[UsageRecord]) -> Delivery:
        """The first half of the batch takes so long that the leases are renewed, and half of them given up."""
        await store.lease("sink", "w2", 30.0)
        clock.advance(9.0)
        raise RuntimeError(poison)

    sink = ScriptedSink(script=[RuntimeError(), RuntimeError(), RuntimeError(), lose], poison=[poison])
    worker = await worker_for(store, sink, clock)
    await put(store, *(each for n in range(4) for each in (*of(LOW, n), *of(HIGH, n))))
    await drain(worker, clock)
    assert len(await store.lease("sink", "w2", 30.0)) == 8
    assert sink.delivered == [f"{LOW}-{n}" for n in range(3)]
    assert [entry.call_id for entry in await store.fetch("sink", ALL, 9)] == [f"{HIGH}-{n}" for n in range(4)]
    assert await store.pending() == {"sink": 5}


async def test_poison_delays_only_the_partitions_of_the_worker_that_meets_it(store: Store, clock: FakeClock) -> None:
    one, two = ScriptedSink(poison=[f"{LOW}-1"]), ScriptedSink()
    first, second = await share(store, clock, one, two)
    await put(store, *of(LOW, 1, 2), *of(HIGH, 1, 2))
    assert await first.round() > 0
    await drain(second, clock)
    assert (one.delivered, two.delivered) == ([], [f"{HIGH}-1", f"{HIGH}-2"])
    await drain(first, clock)
    assert one.delivered == [f"{LOW}-2"]


async def test_leases_change_at_the_beginning_of_a_round_only_while_they_last(store: Store, clock: FakeClock) -> None:
    async def slow(records: Sequence[UsageRecord]) -> Delivery:
        await store.lease("sink", "w2", 30.0)
        clock.advance(1.0)
        raise RuntimeError("poison")

    sink = ScriptedSink(script=[RuntimeError(), RuntimeError(), slow, slow, slow])
    worker = await worker_for(store, sink, clock)
    await put(store, *of(LOW, 1), *of(HIGH, 1))
    for _ in range(2):
        clock.advance(await worker.round())
    await worker.round()
    assert len(worker._held) == PARTITIONS
    clock.advance(8.0)
    await worker.round()
    assert len(worker._held) == 8


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_comes_and_goes_each_record_arrives_once_and_each_tenants_in_order(
    store: Store, clock: FakeClock, seed: int
) -> None:
    """Workers join, leave and die between rounds, the sink fails at random; no lease runs out during a send."""
    rng = random.Random(seed)
    taken: list[str] = []

    async def receive(records: Sequence[UsageRecord]) -> Delivery:
        clock.advance(rng.choice([0.0, 0.1, 3.0]))
        count = rng.choice([0, len(records) // 2, len(records), len(records)])
        taken.extend(each.call_id for each in records[:count])
        rest = len(records) - count
        return Delivery((DELIVERED,) * count + (Verdict("again", "busy"),) * rest, BACK_OFF if rest else None)

    workers: list[SinkWorker] = []
    await store.register_sinks(["sink"])
    wanted: dict[str, list[str]] = {}
    for step in range(400):
        if step % 10 == 0 and len(workers) < 5:
            sink = ScriptedSink(script=[receive] * 10_000, max_batch=rng.choice([1, 3, 10]))
            workers.append(await worker_for(store, sink, clock, owner=f"w{step}", random=random.Random(step)))
        worker = rng.choice(workers)
        await worker.round()
        if len(workers) > 1 and rng.random() < 0.05:
            workers.remove(worker)
            if rng.random() < 0.5:
                await worker.give_back()
        tenant = rng.choice(list(TENANTS.values()))
        new = of(tenant, step)
        wanted.setdefault(tenant, []).extend(each.call_id for each in new)
        await put(store, *new)
        clock.advance(rng.choice([0.0, 0.5, 2.0]))
    last = await worker_for(store, ScriptedSink(script=[receive] * 10_000), clock, owner="last")
    for worker in workers:
        await worker.give_back()
    clock.advance(60.0)
    for _ in range(10_000):
        if (await store.pending())["sink"] == 0:
            break
        clock.advance(await last.round())
    arrived: dict[str, list[str]] = {}
    for call_id in taken:
        arrived.setdefault(call_id.split("-")[0], []).append(call_id)
    assert arrived == wanted
