"""Records on their way to sinks: numbers, order, outcomes. The contract of every store; `test_leases` has who sends."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import PARTITIONS, DeadLetter, Entry, Lease, Outcome, partition_of

from .support import ACME, NOON_S, Client, again, dead, delivered

ALL = range(PARTITIONS)
OTHER = partition_of("other")
TENANTS = [f"t{n}" for n in range(40)]
"""At least one in each partition."""


@pytest.fixture
async def outbox(client: Client) -> Client:
    """A client with five records of one tenant, a to e, and a sink `s` that has seen none."""
    await client.store.register_sinks(["s"])
    for call_id in "abcde":
        await client.settle(call_id, 10)
    return client


def test_a_tenants_partition_is_the_same_in_every_release() -> None:
    found = {tenant: partition_of(tenant) for tenant in ("acme", "other", "", "zürich", "\ud800")}
    assert (PARTITIONS, found) == (16, {"acme": 14, "other": 0, "": 0, "zürich": 2, "\ud800": 8})
    assert {partition_of(tenant) for tenant in TENANTS} == set(ALL)


# Numbers and order ----------------------------------------------------------------------------------------------------


async def test_entries_carry_the_complete_record(outbox: Client) -> None:
    (entry,) = await outbox.store.fetch("s", [ACME], 1)
    body = {"call_id": "a", "cost_nano_usd": 10, "late": False, "askii_coins": 0}
    assert entry == Entry(ACME, 1, "a", "acme", msgspec.json.encode(body), 0)
    assert entry.record == (await outbox.store.records())[0][1]


async def test_each_partition_is_numbered_from_one_without_gaps(client: Client) -> None:
    await client.store.register_sinks(["s"])
    for n in range(100):
        tenant = TENANTS[n * n % len(TENANTS)]
        await client.settle(f"c{n}", 10, tenant=tenant)
        await client.settle(f"c{n}", 10, tenant=tenant)  # the second time is a duplicate, and takes no number
        await client.reserve(f"r{n}", 10, tenant=tenant)
        await client.store.release(f"r{n}")
    entries = await client.store.fetch("s", ALL, 1000)
    assert [entry.call_id for entry in entries] == [f"c{n}" for n in range(100)]
    seqs: Counter[int] = Counter()
    for entry in entries:
        seqs[entry.partition] += 1
        assert (entry.partition, entry.seq) == (partition_of(entry.tenant), seqs[entry.partition])
    assert len(seqs) > 4


async def test_several_partitions_come_mixed_in_the_order_of_settlement(client: Client) -> None:
    await client.store.register_sinks(["s"])
    for name in ("acme 1", "acme 2", "other 1", "acme 3", "other 2", "t0 1"):
        await client.settle(name, 10, tenant=name.split()[0])
    t0 = partition_of("t0")
    assert await client.waiting("s") == ["acme 1", "acme 2", "other 1", "acme 3", "other 2", "t0 1"]
    assert await client.waiting("s", 3) == ["acme 1", "acme 2", "other 1"]
    assert await client.waiting("s", 3, [OTHER, t0]) == ["other 1", "other 2", "t0 1"]
    assert await client.waiting("s", 2, [t0, OTHER]) == ["other 1", "other 2"]
    assert await client.waiting("s", 100, []) == []
    await client.deliver("s", delivered(1), delivered(1, OTHER))
    assert await client.waiting("s", 2) == ["acme 2", "acme 3"]


async def test_no_partition_waits_for_a_busier_one(client: Client) -> None:
    """However fast one tenant records, batches of 5 come to the others' entries in the order of settlement."""
    await client.store.register_sinks(["s"])
    seen: list[str] = []
    for n in range(20):
        for m in range(4):
            await client.settle(f"{n} acme {m}", 10)
        await client.settle(f"{n} other", 10, tenant="other")
        batch = await client.store.fetch("s", ALL, 5)
        seen += [entry.call_id for entry in batch]
        await client.deliver("s", *(delivered(entry.seq, entry.partition) for entry in batch))
    assert len(seen) == 100
    assert [name for name in seen if name.endswith("other")] == [f"{n} other" for n in range(20)]


async def test_entries_come_in_the_order_of_settlement_until_they_are_acknowledged(outbox: Client) -> None:
    assert await outbox.waiting("s", 3) == ["a", "b", "c"]
    assert await outbox.waiting("s", 3) == ["a", "b", "c"]
    assert await outbox.waiting("s", 0) == []
    assert await outbox.waiting("s", -1) == []
    await outbox.deliver("s", delivered(1), delivered(2), delivered(3))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


# Places of sinks ------------------------------------------------------------------------------------------------------


async def test_a_new_sink_starts_at_the_end_of_every_partition_and_a_known_one_keeps_its_places(
    outbox: Client,
) -> None:
    await outbox.settle("x", 10, tenant="other")
    await outbox.deliver("s", delivered(1))
    await outbox.store.register_sinks(["s", "t"])
    assert await outbox.waiting("t") == []
    for tenant in ("acme", "other", "t0"):
        await outbox.settle(f"new {tenant}", 10, tenant=tenant)
    assert await outbox.waiting("t") == ["new acme", "new other", "new t0"]
    assert [entry.seq for entry in await outbox.store.fetch("t", ALL, 9)] == [6, 2, 1]
    assert await outbox.waiting("s") == ["b", "c", "d", "e", "x", "new acme", "new other", "new t0"]
    assert await outbox.store.pending() == {"s": 8, "t": 3}


async def test_each_sink_has_its_own_place(outbox: Client) -> None:
    await outbox.store.register_sinks(["t"])
    await outbox.settle("f", 10)
    await outbox.deliver("t", delivered(6))
    assert await outbox.store.pending() == {"s": 6, "t": 0}


async def test_a_sink_that_is_forgotten_leaves_nothing_behind(outbox: Client) -> None:
    store = outbox.store
    await store.register_sinks(["t"])
    await outbox.deliver("s", again(1), dead(2), delivered(4))
    assert await store.forget_sink("s")
    assert not await store.forget_sink("s")
    assert await store.pending() == {"t": 0}
    for command in (store.fetch("s", ALL, 1), store.dead_letters("s"), store.lease("s", "me", 60)):
        with pytest.raises(StoreError, match="sink 's' is not registered"):
            await command
    await store.register_sinks(["s"])
    assert (await store.pending(), await store.dead_letters("s")) == ({"s": 0, "t": 0}, [])
    await outbox.settle("f", 10)
    assert await outbox.waiting("s") == await outbox.waiting("t") == ["f"]
    assert await outbox.store.record("a") is not None


async def test_a_leftover_lease_of_a_forgotten_sink_delivers_nothing_of_its_successor(outbox: Client) -> None:
    store = outbox.store
    old = await store.lease("s", "one", 60)
    await store.forget_sink("s")
    await store.register_sinks(["s"])
    await outbox.settle("f", 10)
    await store.lease("s", "two", 60)
    await store.acknowledge("s", old, [delivered(seq) for seq in range(1, 6)])
    assert await outbox.waiting("s") == ["f"]


# Outcomes -------------------------------------------------------------------------------------------------------------


async def test_an_acknowledged_third_waits_for_the_second_without_being_sent_again(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), delivered(3))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.pending() == {"s": 3}
    await outbox.deliver("s", delivered(2))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


async def test_an_entry_due_again_comes_first_when_it_is_due_and_holds_nothing_back(outbox: Client) -> None:
    await outbox.deliver("s", again(1, 30.0), delivered(2), again(3, 10.0))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 4}
    outbox.clock.advance(10)
    assert await outbox.waiting("s") == ["c", "d", "e"]
    outbox.clock.advance(20)
    assert await outbox.waiting("s") == ["c", "a", "d", "e"]
    assert await outbox.waiting("s", 2) == ["c", "d"]
    assert [entry.attempts for entry in await outbox.store.fetch("s", ALL, 4)] == [1, 1, 0, 0]
    await outbox.deliver("s", delivered(1), again(3, 5.0))
    assert await outbox.waiting("s") == ["d", "e"]
    outbox.clock.advance(5)
    assert (await outbox.store.fetch("s", ALL, 2))[0].attempts == 2


async def test_entries_due_again_come_from_the_asked_partitions_only_the_longest_due_first(outbox: Client) -> None:
    for call_id in "xy":
        await outbox.settle(call_id, 10, tenant="other")
    await outbox.deliver("s", again(1, 3.0), again(2, 1.0), again(1, 2.0, OTHER), delivered(2, OTHER))
    outbox.clock.advance(3)
    assert await outbox.waiting("s") == ["b", "x", "a", "c", "d", "e"]
    assert await outbox.waiting("s", 4) == ["b", "x", "c", "d"]
    assert await outbox.waiting("s", 100, [OTHER]) == ["x"]
    assert await outbox.waiting("s", 100, [ACME]) == ["b", "a", "c", "d", "e"]


async def test_an_entry_due_again_ahead_of_an_open_one_holds_nothing_back(outbox: Client) -> None:
    await outbox.deliver("s", again(2), dead(3))
    assert await outbox.waiting("s") == ["b", "a", "d", "e"]
    assert await outbox.store.pending() == {"s": 4}
    await outbox.deliver("s", delivered(2))
    assert await outbox.waiting("s") == ["a", "d", "e"]
    await outbox.deliver("s", delivered(1))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


async def test_entries_with_the_same_number_in_different_partitions_have_nothing_to_do_with_each_other(
    outbox: Client,
) -> None:
    for call_id in "vwxyz":
        await outbox.settle(call_id, 10, tenant="other")
    await outbox.deliver("s", delivered(1), again(2), dead(3), delivered(5))
    assert await outbox.waiting("s", 100, [OTHER]) == ["v", "w", "x", "y", "z"]
    await outbox.deliver("s", dead(1, "no", OTHER), delivered(3, OTHER))
    assert await outbox.waiting("s") == ["b", "d", "w", "y", "z"]
    letters = await outbox.store.dead_letters("s")
    assert {(letter.partition, letter.seq, letter.reason) for letter in letters} == {(ACME, 3, "bad"), (OTHER, 1, "no")}
    assert await outbox.store.pending() == {"s": 5}


async def test_a_dead_entry_is_set_aside_with_its_reason(outbox: Client) -> None:
    await outbox.deliver("s", again(1))
    outbox.clock.advance(7)
    await outbox.deliver("s", dead(2, "bad"))
    outbox.clock.advance(1)
    await outbox.deliver("s", dead(1, "no such subscription"))
    assert await outbox.waiting("s") == ["c", "d", "e"]
    assert await outbox.store.pending() == {"s": 3}
    record = (await outbox.store.records(limit=1))[0][1]
    first, second = await outbox.store.dead_letters("s")
    assert second == DeadLetter(ACME, 1, "a", "acme", "no such subscription", 2, NOON_S, NOON_S + 8, record)
    assert (first.seq, first.reason, first.attempts, first.first_attempt_s) == (2, "bad", 1, NOON_S + 7)
    assert await outbox.store.dead_letters("s", limit=1) == [first]


async def test_dead_letters_can_be_made_due_again(outbox: Client) -> None:
    await outbox.settle("x", 10, tenant="other")
    await outbox.deliver("s", dead(1), dead(3), dead(1, "bad", OTHER))
    assert await outbox.store.retry_dead("s") == 3
    assert await outbox.store.retry_dead("s") == 0
    assert await outbox.store.dead_letters("s") == []
    assert await outbox.waiting("s", 100, [ACME]) == ["a", "c", "b", "d", "e"]
    assert await outbox.waiting("s", 100, [OTHER]) == ["x"]
    await outbox.deliver("s", delivered(1, OTHER), *(delivered(seq) for seq in range(1, 6)))
    assert await outbox.waiting("s") == []
    assert await outbox.store.pending() == {"s": 0}


async def test_outcomes_of_entries_that_are_done_or_do_not_exist_change_nothing(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), delivered(1), delivered(3))
    for result in ("delivered", "again", "dead"):
        await outbox.deliver("s", *(Outcome(ACME, seq, result) for seq in (-1, 0, 1, 3, 6, 10**6)))
        await outbox.deliver("s", Outcome(OTHER, 1, result), Outcome(PARTITIONS, 1, result), Outcome(-1, 1, result))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.dead_letters("s") == []
    await outbox.settle("f", 10)
    assert await outbox.waiting("s") == ["b", "d", "e", "f"]


async def test_the_last_of_two_outcomes_of_one_entry_counts(outbox: Client) -> None:
    await outbox.deliver("s", again(1), delivered(1), dead(3), delivered(3))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.dead_letters("s") == []
    assert await outbox.store.pending() == {"s": 3}


async def test_what_was_delivered_stays_so_whatever_the_same_batch_says_next(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), again(1), dead(1), delivered(3), dead(3))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.dead_letters("s") == []
    assert await outbox.store.pending() == {"s": 3}


async def test_an_unknown_result_is_refused_whole(outbox: Client) -> None:
    with pytest.raises(ValueError, match="delivred"):
        await outbox.deliver("s", delivered(1), Outcome(ACME, 2, "delivred"))
    assert await outbox.store.pending() == {"s": 5}


async def test_a_sink_that_was_not_registered_is_an_error(client: Client) -> None:
    store = client.store
    for command in (
        store.lease("x", "me", 30),
        store.fetch("x", ALL, 1),
        store.acknowledge("x", [Lease(0, 1, 0.0, 0)], []),
        store.dead_letters("x"),
        store.retry_dead("x"),
    ):
        with pytest.raises(StoreError, match="register"):
            await command
    assert await store.pending() == {}


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_becomes_of_entries_what_is_due_and_what_waits_stay_exact(client: Client, seed: int) -> None:
    """Random settlements and outcomes against a plain list of what every entry's state should be."""
    rng = random.Random(seed)
    store, clock = client.store, client.clock
    await store.register_sinks(["s"])
    state: dict[tuple[int, int], tuple[str, float]] = {}
    """In the order of settlement: `new`, `again` with its due time, `dead` or `done`."""
    last: Counter[int] = Counter()
    for n in range(60):
        for m in range(rng.randrange(4)):
            tenant = rng.choice(["acme", "other", "t0"])
            await client.settle(f"{n}-{m}", 10, tenant=tenant)
            last[partition_of(tenant)] += 1
            state[partition_of(tenant), last[partition_of(tenant)]] = ("new", 0.0)
        outcomes = []
        for place in rng.sample(list(state), min(len(state), rng.randrange(6))):
            result, after_s = rng.choice(["delivered", "delivered", "again", "dead"]), rng.choice([0.0, 1.0, 3.0])
            outcomes.append(Outcome(*place, result, "why", after_s))
            if state[place][0] != "done":
                state[place] = ("done" if result == "delivered" else result, clock.now_s + after_s)
        await client.deliver("s", *outcomes)
        clock.advance(rng.choice([0, 1]))
        found = [(entry.partition, entry.seq) for entry in await store.fetch("s", ALL, 1000)]
        due = {place for place, (what, at_s) in state.items() if what == "again" and at_s <= clock.now_s}
        assert set(found[: len(due)]) == due
        assert [state[place][1] for place in found[: len(due)]] == sorted(state[place][1] for place in due)
        assert found[len(due) :] == [place for place, (what, _) in state.items() if what == "new"]
        assert (await store.pending())["s"] == sum(what in ("new", "again") for what, _ in state.values())
        dead_ones = {(letter.partition, letter.seq) for letter in await store.dead_letters("s", 1000)}
        assert dead_ones == {place for place, (what, _) in state.items() if what == "dead"}


# One record -----------------------------------------------------------------------------------------------------------


async def test_a_settled_calls_record_is_found_by_its_id(outbox: Client) -> None:
    await outbox.reserve("open", 10)
    assert await outbox.store.record("c") == (await outbox.store.records())[2][1]
    assert await outbox.store.record("open") is None
    assert await outbox.store.record("never") is None


async def test_entries_that_always_fail_never_keep_new_ones_waiting(client: Client) -> None:
    await client.store.register_sinks(["s"])
    for n in range(8):
        await client.settle(f"old-{n}")
    await client.deliver("s", *(again(seq) for seq in range(1, 9)))
    assert await client.waiting("s", 4) == ["old-0", "old-1", "old-2", "old-3"]
    for n in range(8):
        await client.settle(f"new-{n}")
    assert await client.waiting("s", 4) == ["old-0", "old-1", "new-0", "new-1"]
    assert len(await client.waiting("s", 12)) == 12
    assert len(await client.waiting("s", 100)) == 16


async def test_who_wants_to_see_all_that_waits_gets_also_what_waits_for_a_moment_of_its_own(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), again(2, 3600.0), dead(3), again(4, 3600.0))
    assert [(e.call_id, e.attempts) for e in await outbox.store.fetch("s", ALL, 10)] == [("e", 0)]
    entries = await outbox.store.fetch("s", ALL, 10, early=True)
    assert sorted((e.call_id, e.attempts) for e in entries) == [("b", 1), ("d", 1), ("e", 0)]
    assert len(entries) == (await outbox.store.pending())["s"]
