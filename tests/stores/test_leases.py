"""Who delivers which partitions of a sink: even shares, fencing, back-off. The contract of every store."""

from __future__ import annotations

import random

import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import PARTITIONS, Lease, Place, partition_of

from .support import ACME, NOON_S, Client, again, delivered

OTHER = partition_of("other")


@pytest.fixture
async def outbox(client: Client) -> Client:
    """A sink `s`, two records of acme (a, b) and two of another partition (x, y)."""
    await client.store.register_sinks(["s"])
    for call_id, tenant in (("a", "acme"), ("x", "other"), ("b", "acme"), ("y", "other")):
        await client.settle(call_id, 10, tenant=tenant)
    return client


async def held(outbox: Client, owner: str, ttl_s: float = 30.0) -> set[int]:
    """Ask, and tell which partitions the owner has from now on."""
    leases = await outbox.store.lease("s", owner, ttl_s)
    found = [lease.partition for lease in leases]
    assert found == sorted(set(found))
    return set(found)


async def shares(outbox: Client, *owners: str) -> list[set[int]]:
    """What each owner has once all have asked three times: to be counted, to give up, to take."""
    for owner in owners * 2:
        await held(outbox, owner)
    return [await held(outbox, owner) for owner in owners]


def even(found: list[set[int]]) -> bool:
    """Every partition in one hand, and no hand with two more than another."""
    sizes = [len(each) for each in found]
    return sum(sizes) == PARTITIONS == len(set().union(*found)) and max(sizes) - min(sizes) <= 1


# Sharing --------------------------------------------------------------------------------------------------------------


async def test_the_only_owner_gets_every_partition(outbox: Client) -> None:
    assert await outbox.store.lease("s", "one", 30) == [Lease(n, 1, 0, 0) for n in range(PARTITIONS)]


@pytest.mark.parametrize("owners", [2, 3, 5, 7, 16])
async def test_owners_that_ask_share_the_partitions_evenly(outbox: Client, owners: int) -> None:
    assert even(await shares(outbox, *(f"owner-{n}" for n in range(owners))))


async def test_where_there_are_more_owners_than_partitions_some_wait(outbox: Client) -> None:
    found = await shares(outbox, *(f"owner-{n:02}" for n in range(20)))
    assert sorted(len(each) for each in found) == [0] * 4 + [1] * PARTITIONS
    assert len(set().union(*found)) == PARTITIONS


async def test_one_that_joins_waits_until_the_others_have_given_up_what_is_beyond_their_share(outbox: Client) -> None:
    assert len(await held(outbox, "one")) == 16
    assert await held(outbox, "two") == set()
    mine = await held(outbox, "one")
    assert len(mine) == 8
    assert await held(outbox, "two") == set(range(PARTITIONS)) - mine
    assert await held(outbox, "one") == mine


async def test_nobody_gives_up_more_than_it_must(outbox: Client) -> None:
    one, two = await shares(outbox, "one", "two")
    found = await shares(outbox, "one", "two", "three")
    assert found[0] < one
    assert found[1] < two
    assert even(found)


async def test_an_owner_never_takes_more_than_its_share_while_others_ask(outbox: Client) -> None:
    await held(outbox, "one")
    await held(outbox, "two")
    await held(outbox, "one", 0)
    assert len(await held(outbox, "two")) == 16
    assert await held(outbox, "three") == set()
    assert len(await held(outbox, "two")) == 8
    assert len(await held(outbox, "three")) == 8


async def test_leases_of_no_length_are_given_back_and_end_the_share(outbox: Client) -> None:
    one, two = await shares(outbox, "one", "two")
    assert await outbox.store.lease("s", "one", 0) == []
    leases = await outbox.store.lease("s", "two", 30)
    assert leases == [Lease(n, 2, 0, 0) for n in range(PARTITIONS)]
    assert len(one) == len(two) == 8
    assert await outbox.store.lease("s", "stranger", 0) == []
    assert len(await held(outbox, "two")) == 16


async def test_a_dead_owners_partitions_pass_on_when_its_leases_have_run_out(outbox: Client) -> None:
    one, two = await shares(outbox, "one", "two")
    outbox.clock.advance(29)
    assert await held(outbox, "two") == two
    outbox.clock.advance(1)
    assert await held(outbox, "two") == one | two
    assert await held(outbox, "one") == set()


async def test_an_owner_counts_until_the_end_of_the_time_it_asked_for(outbox: Client) -> None:
    await held(outbox, "one", 100)
    await held(outbox, "two", 10)
    outbox.clock.advance(9)
    assert len(await held(outbox, "one", 100)) == 8
    outbox.clock.advance(1)
    assert len(await held(outbox, "one", 100)) == 16


async def test_sinks_are_shared_each_for_itself(outbox: Client) -> None:
    await outbox.store.register_sinks(["t"])
    assert len(await held(outbox, "one")) == 16
    assert len(await outbox.store.lease("t", "two", 30)) == 16
    assert len(await held(outbox, "one")) == 16


@pytest.mark.parametrize("seed", range(5))
async def test_no_partition_is_ever_in_two_hands_and_quiet_times_make_the_shares_even(
    outbox: Client, seed: int
) -> None:
    rng = random.Random(seed)
    owners = [f"owner-{n}" for n in range(rng.randrange(2, 7))]
    hands: dict[int, tuple[str, float]] = {}
    """Holder and end of each lease."""
    newest: dict[int, tuple[int, str]] = {}
    """Token and the owner who got it."""
    for _ in range(150):
        owner, ttl_s = rng.choice(owners), rng.choice([0.0, 5.0, 20.0])
        now_s = outbox.clock.now_s
        leases = await outbox.store.lease("s", owner, ttl_s)
        hands = {n: (holder, until_s) for n, (holder, until_s) in hands.items() if holder != owner and until_s > now_s}
        for n, token, _, _ in leases:
            assert n not in hands
            before, its_owner = newest.get(n, (0, ""))
            assert token == before if its_owner == owner else token > before
            hands[n], newest[n] = (owner, now_s + ttl_s), (token, owner)
        outbox.clock.advance(rng.choice([0, 1, 3]))
    assert even(await shares(outbox, *owners))


# Fencing --------------------------------------------------------------------------------------------------------------


async def test_a_renewal_keeps_its_tokens(outbox: Client) -> None:
    first = await outbox.store.lease("s", "one", 30)
    outbox.clock.advance(29)
    assert await outbox.store.lease("s", "one", 30) == first
    outbox.clock.advance(100)
    assert await outbox.store.lease("s", "one", 30) == first  # nobody took them


async def test_a_lease_keeps_others_away_while_it_runs(outbox: Client) -> None:
    await held(outbox, "one")
    outbox.clock.advance(29)
    assert await held(outbox, "two", 1) == set()
    outbox.clock.advance(1)
    assert await outbox.store.lease("s", "two", 30) == [Lease(n, 2, 0, 0) for n in range(PARTITIONS)]
    assert await held(outbox, "one", 0) == set()


async def test_a_partition_given_back_and_taken_by_nobody_else_keeps_its_token(outbox: Client) -> None:
    first = await outbox.store.lease("s", "one", 30)
    await outbox.store.lease("s", "one", 0)
    assert await outbox.store.acknowledge("s", first, [delivered(1)]) == []
    assert await outbox.store.lease("s", "one", 30) == first


async def test_a_stale_lease_writes_nothing_and_is_named_and_the_others_are_written(outbox: Client) -> None:
    store = outbox.store
    old = await store.lease("s", "one", 30)
    await held(outbox, "two")
    kept = await held(outbox, "one")
    taken = await held(outbox, "two")
    assert (len(kept), len(taken)) == (8, 8)
    outcomes = [delivered(1), delivered(1, OTHER), again(2), again(2, 0.0, OTHER)]
    assert await store.acknowledge("s", old, outcomes, retry_at_s=NOON_S + 5, failures=3) == sorted(taken)
    mine, theirs = ("acme", "other") if ACME in kept else ("other", "acme")
    assert len(await outbox.waiting("s", 9, [partition_of(mine)])) == 1  # due again
    assert len(await outbox.waiting("s", 9, [partition_of(theirs)])) == 2
    assert await store.pending() == {"s": 3}
    assert {(lease.retry_at_s, lease.failures) for lease in await store.lease("s", "one", 30)} == {(NOON_S + 5, 3)}
    theirs_now = await store.lease("s", "two", 30)
    assert {(lease.token, lease.retry_at_s, lease.failures) for lease in theirs_now} == {(2, 0, 0)}
    assert await store.acknowledge("s", theirs_now, outcomes) == []
    assert await store.pending() == {"s": 2}


async def test_a_token_that_was_never_given_out_is_void(outbox: Client) -> None:
    (lease, *_) = await outbox.store.lease("s", "one", 30)
    wrong = [lease._replace(token=2), lease._replace(token=0), Lease(PARTITIONS, 1, 0, 0)]
    assert await outbox.store.acknowledge("s", wrong[:1], []) == [0]
    assert await outbox.store.acknowledge("s", wrong[1:], []) == [0, PARTITIONS]


async def test_outcomes_of_partitions_without_a_lease_change_nothing(outbox: Client) -> None:
    store = outbox.store
    leases = await store.lease("s", "one", 30)
    acme = [lease for lease in leases if lease.partition == ACME]
    assert await store.acknowledge("s", acme, [delivered(1), delivered(1, OTHER)]) == []
    assert await store.acknowledge("s", [], [delivered(2), delivered(2, OTHER)]) == []
    assert await outbox.waiting("s") == ["x", "b", "y"]
    assert await store.pending() == {"s": 3}


# Back-off -------------------------------------------------------------------------------------------------------------


async def test_the_back_off_of_the_leased_partitions_is_kept_and_cleared(outbox: Client) -> None:
    store = outbox.store
    leases = await store.lease("s", "one", 30)
    assert await store.acknowledge("s", leases[:2], [], retry_at_s=NOON_S + 99.5, failures=4) == []
    paused = [Lease(0, 1, NOON_S + 99.5, 4), Lease(1, 1, NOON_S + 99.5, 4)]
    assert await store.lease("s", "one", 30) == [*paused, *leases[2:]]
    assert await store.acknowledge("s", leases[1:2], []) == []
    assert await store.lease("s", "one", 30) == [*paused[:1], *leases[1:]]


async def test_the_back_off_passes_on_with_the_partition(outbox: Client) -> None:
    store = outbox.store
    leases = await store.lease("s", "one", 30)
    assert await store.acknowledge("s", leases[3:4], [], retry_at_s=NOON_S + 99, failures=4) == []
    await store.lease("s", "one", 0)
    passed = await store.lease("s", "two", 30)
    assert passed == [Lease(n, 2, NOON_S + 99 if n == 3 else 0, 4 if n == 3 else 0) for n in range(PARTITIONS)]


async def test_places_tell_who_delivers_and_when_it_goes_on(client: Client) -> None:
    await client.store.register_sinks(["s"])
    assert await client.store.places("s") == [Place(n, None, 0.0, 0.0, 0) for n in range(PARTITIONS)]
    leases = await client.store.lease("s", "me", 60)
    await client.store.acknowledge("s", leases[:1], [], retry_at_s=NOON_S + 5, failures=2)
    first, *others = await client.store.places("s")
    assert first == Place(0, "me", NOON_S + 60, NOON_S + 5, 2)
    assert others == [Place(n, "me", NOON_S + 60, 0.0, 0) for n in range(1, PARTITIONS)]
    with pytest.raises(StoreError, match="not registered"):
        await client.store.places("unknown")
