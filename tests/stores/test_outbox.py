from __future__ import annotations

import msgspec
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import DeadLetter, Entry, Lease, Outcome

from .support import NOON_S, Client, delivered


@pytest.fixture
async def outbox(client: Client) -> Client:
    """A client with five records, a to e, and a sink `s` that has seen none."""
    await client.store.register_sinks(["s"])
    for call_id in "abcde":
        await client.settle(call_id, 10)
    return client


async def test_entries_carry_the_complete_record(outbox: Client) -> None:
    (entry,) = await outbox.store.fetch("s", 1)
    body = {"call_id": "a", "cost_nano_usd": 10, "late": False, "askii_coins": 0}
    assert entry == Entry(1, "a", "acme", msgspec.json.encode(body), 0)
    assert entry.record == (await outbox.store.records())[0][1]


async def test_entries_come_in_the_order_of_settlement_until_they_are_acknowledged(outbox: Client) -> None:
    assert await outbox.waiting("s", 3) == ["a", "b", "c"]
    assert await outbox.waiting("s", 3) == ["a", "b", "c"]
    assert await outbox.waiting("s", 0) == []
    await outbox.deliver("s", delivered(1), delivered(2), delivered(3))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


async def test_a_new_sink_starts_at_the_end_and_a_known_one_keeps_its_place(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1))
    await outbox.store.register_sinks(["s", "t"])
    await outbox.settle("f", 10)
    assert await outbox.waiting("t") == ["f"]
    assert await outbox.waiting("s") == ["b", "c", "d", "e", "f"]
    assert await outbox.store.pending() == {"s": 5, "t": 1}


async def test_each_sink_has_its_own_place(outbox: Client) -> None:
    await outbox.store.register_sinks(["t"])
    await outbox.settle("f", 10)
    await outbox.deliver("t", delivered(6))
    assert await outbox.store.pending() == {"s": 6, "t": 0}


async def test_an_acknowledged_third_waits_for_the_second_without_being_sent_again(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), delivered(3))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.pending() == {"s": 3}
    await outbox.deliver("s", delivered(2))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


async def test_an_entry_due_again_comes_first_when_it_is_due_and_holds_nothing_back(outbox: Client) -> None:
    await outbox.deliver("s", Outcome(1, "again", "busy", 30.0), delivered(2), Outcome(3, "again", "busy", 10.0))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 4}
    outbox.clock.advance(10)
    assert await outbox.waiting("s") == ["c", "d", "e"]
    outbox.clock.advance(20)
    assert await outbox.waiting("s") == ["c", "a", "d", "e"]
    assert await outbox.waiting("s", 2) == ["c", "a"]
    assert [entry.attempts for entry in await outbox.store.fetch("s", 3)] == [1, 1, 0]
    await outbox.deliver("s", delivered(1), Outcome(3, "again", "busy", 5.0))
    assert await outbox.waiting("s") == ["d", "e"]
    outbox.clock.advance(5)
    assert (await outbox.store.fetch("s", 1))[0].attempts == 2


async def test_an_entry_due_again_ahead_of_an_open_one_holds_nothing_back(outbox: Client) -> None:
    await outbox.deliver("s", Outcome(2, "again"), Outcome(3, "dead", "no"))
    assert await outbox.waiting("s") == ["b", "a", "d", "e"]
    assert await outbox.store.pending() == {"s": 4}
    await outbox.deliver("s", delivered(2))
    assert await outbox.waiting("s") == ["a", "d", "e"]
    await outbox.deliver("s", delivered(1))
    assert await outbox.waiting("s") == ["d", "e"]
    assert await outbox.store.pending() == {"s": 2}


async def test_a_dead_entry_is_set_aside_with_its_reason(outbox: Client) -> None:
    await outbox.deliver("s", Outcome(1, "again", "busy"))
    outbox.clock.advance(7)
    await outbox.deliver("s", Outcome(1, "dead", "no such subscription"), Outcome(2, "dead", "bad"))
    assert await outbox.waiting("s") == ["c", "d", "e"]
    assert await outbox.store.pending() == {"s": 3}
    record = (await outbox.store.records(limit=1))[0][1]
    first, second = await outbox.store.dead_letters("s")
    assert first == DeadLetter(1, "a", "acme", "no such subscription", 2, NOON_S, NOON_S + 7, record)
    assert (second.seq, second.reason, second.attempts, second.first_attempt_s) == (2, "bad", 1, NOON_S + 7)
    assert await outbox.store.dead_letters("s", limit=1) == [first]


async def test_dead_letters_can_be_made_due_again(outbox: Client) -> None:
    await outbox.deliver("s", Outcome(1, "dead", "bad"), Outcome(3, "dead", "bad"))
    assert await outbox.store.retry_dead("s") == 2
    assert await outbox.store.retry_dead("s") == 0
    assert await outbox.store.dead_letters("s") == []
    assert await outbox.waiting("s") == ["a", "c", "b", "d", "e"]
    await outbox.deliver("s", *(delivered(seq) for seq in range(1, 6)))
    assert await outbox.waiting("s") == []
    assert await outbox.store.pending() == {"s": 0}


async def test_outcomes_of_entries_that_are_done_or_do_not_exist_change_nothing(outbox: Client) -> None:
    await outbox.deliver("s", delivered(1), delivered(1), delivered(3))
    for result in ("delivered", "again", "dead"):
        await outbox.deliver("s", *(Outcome(seq, result) for seq in (-1, 0, 1, 3, 6, 10**6)))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.dead_letters("s") == []
    await outbox.settle("f", 10)
    assert await outbox.waiting("s") == ["b", "d", "e", "f"]


async def test_the_last_of_two_outcomes_of_one_entry_counts(outbox: Client) -> None:
    await outbox.deliver("s", Outcome(1, "again"), delivered(1), Outcome(3, "dead"), delivered(3))
    assert await outbox.waiting("s") == ["b", "d", "e"]
    assert await outbox.store.dead_letters("s") == []
    assert await outbox.store.pending() == {"s": 3}


async def test_an_unknown_result_is_refused_whole(outbox: Client) -> None:
    with pytest.raises(ValueError, match="delivred"):
        await outbox.deliver("s", delivered(1), Outcome(2, "delivred"))
    assert await outbox.store.pending() == {"s": 5}


async def test_a_lease_keeps_others_away_while_it_runs(outbox: Client) -> None:
    store = outbox.store
    assert await store.lease("s", "one", 30) == Lease(1, 0, 0)
    assert await store.lease("s", "two", 30) is None
    outbox.clock.advance(29)
    assert await store.lease("s", "one", 30) == Lease(1, 0, 0)
    outbox.clock.advance(29)
    assert await store.lease("s", "two", 30) is None
    outbox.clock.advance(1)
    assert await store.lease("s", "two", 30) == Lease(2, 0, 0)
    assert await store.lease("s", "one", 30) is None


async def test_an_owner_whose_lease_nobody_took_keeps_its_token(outbox: Client) -> None:
    await outbox.store.lease("s", "one", 30)
    outbox.clock.advance(100)
    assert await outbox.store.lease("s", "one", 30) == Lease(1, 0, 0)


async def test_a_lease_of_no_length_is_given_back(outbox: Client) -> None:
    await outbox.store.lease("s", "one", 30)
    await outbox.store.lease("s", "one", 0)
    assert await outbox.store.lease("s", "two", 30) == Lease(2, 0, 0)


async def test_a_stale_token_writes_nothing(outbox: Client) -> None:
    store = outbox.store
    old = await store.lease("s", "one", 30)
    outbox.clock.advance(30)
    new = await store.lease("s", "two", 30)
    assert old is not None
    assert new is not None
    assert not await store.acknowledge("s", old.token, [delivered(1)], retry_at_s=5.0, failures=3)
    assert await outbox.waiting("s", 1) == ["a"]
    assert await store.lease("s", "two", 30) == Lease(new.token, 0, 0)
    assert await store.acknowledge("s", new.token, [delivered(1)])


async def test_the_back_off_is_kept_and_cleared(outbox: Client) -> None:
    store = outbox.store
    lease = await store.lease("s", "one", 30)
    assert lease is not None
    assert await store.acknowledge("s", lease.token, [], retry_at_s=NOON_S + 99, failures=4)
    assert await store.lease("s", "one", 30) == Lease(1, NOON_S + 99, 4)
    assert await store.acknowledge("s", lease.token, [delivered(1)])
    assert await store.lease("s", "one", 30) == Lease(1, 0, 0)


async def test_a_sink_that_was_not_registered_is_an_error(client: Client) -> None:
    store = client.store
    for command in (
        store.lease("x", "me", 30),
        store.fetch("x", 1),
        store.acknowledge("x", 1, []),
        store.dead_letters("x"),
        store.retry_dead("x"),
    ):
        with pytest.raises(StoreError, match="register"):
            await command
    assert await store.pending() == {}
