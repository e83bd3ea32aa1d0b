"""Calls at once on one ledger in PostgreSQL: what travels together is decided one by one."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from askii_middleware.stores import open_store
from askii_middleware.stores.base import AggregateRow, Settled, Settlement, Store, partition_of
from askii_middleware.stores.postgres import PostgresStore, connection, wire

from .support import DAY_S, Client, Clock, budget


async def test_one_call_sent_many_times_at_once_is_admitted_and_settled_once(postgres_url: str) -> None:
    store = open_store(postgres_url, clock=Clock())
    await store.open()
    await store.heartbeat("w", 600)
    client = Client(store, Clock(), [budget("tenant=*", 100), budget("global", 100)])
    answers = await asyncio.gather(*(client.reserve("a", 100) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].candidate == 0
    settled = await asyncio.gather(*(client.settle("a", 60) for _ in range(20)))
    assert sorted(answer.duplicate for answer in settled) == [False] + [True] * 19
    several = await store.settle_many([client.settlement("b", 5)] * 3)
    assert several == [Settled(0, late=False, duplicate=again) for again in (False, True, True)]
    assert {state.spent_nano_usd for state in await client.status()} == {65}
    await store.close()


async def test_several_reserves_of_one_transaction_are_decided_in_order_and_by_themselves(postgres_url: str) -> None:
    clock = Clock()
    store = PostgresStore(postgres_url, clock=clock)
    await store.open()
    await store.heartbeat("w", 600)
    client = Client(store, clock, [budget("tenant=*", 100), budget("end_user=*", 100, max_values=1)])
    await store.load_terms()
    users = ("ann", "bob", "ann", "cyn", "ann")
    requests = [
        client.request(f"c{n}", 40, values={"end_user": user}, worker="dead" if n == 1 else "w")
        for n, user in enumerate(users)
    ]
    asked = b"[%b]" % b",".join(wire.reserve(request, store._terms) for request in requests)
    answers = wire.decode_answers(await store._call("reserve", clock(), asked))
    assert [kind for kind, _ in answers] == [None, "worker", None, None, None]
    admissions = [wire.decode_admission(answer) for kind, answer in answers if kind is None]
    assert [admission.candidate for admission in admissions] == [0, 0, None, None]
    assert [[s.scope for s in a.states] for a in admissions] == [
        *[["end_user=ann", "tenant=acme"]] * 2,
        ["end_user=*", "tenant=acme"],
        ["end_user=ann", "tenant=acme"],
    ]
    assert await store.reserve(requests[0]) == admissions[0]
    await store.close()


async def test_writers_of_shared_sums_erasures_and_pruning_never_wait_in_a_circle(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on connections of its own, in any order; the server would break a circle by an error."""
    monkeypatch.setattr(connection, "REPEATS", 1)
    clock = Clock()
    stores = [open_store(postgres_url, clock=clock) for _ in range(5)]
    for store in stores:
        await store.open()
    client = Client(stores[0], clock, [budget("tenant=*", None)])

    def settlement(call_id: str, chance: Random) -> Settlement:
        tenant, user, model = (f"{kind}{chance.randrange(9)}" for kind in "tum")
        scopes = (f"global/{partition_of(tenant)}", f"tenant={tenant}", f"tenant={tenant},user={user}", f"user={user}")
        rows = [AggregateRow(scope, model, "p", 1, 10, 5, 7) for scope in chance.sample(scopes, 4)]
        at_s = clock.now_s - 3600 * chance.randrange(4)
        return client.settlement(call_id, 7, tenant=tenant, at_s=at_s, aggregates=tuple(rows))

    async def write(store: Store, number: int) -> None:
        chance = Random(number)
        for piece in range(25):
            size = chance.randrange(1, 9)
            await store.settle_many([settlement(f"{number}-{piece}-{n}", chance) for n in range(size)])

    async def forget(store: Store, first: int) -> None:
        for number in range(first, first + 12):
            await store.erase(f"t{number % 9}")
            before_s = clock.now_s - 7200
            await store.prune(records_before_s=before_s, aggregates_before_s=before_s, limit=5)

    await asyncio.gather(
        *(write(store, 10 * n + lane) for n, store in enumerate(stores[:3]) for lane in range(3)),
        *(forget(store, 4 * n) for n, store in enumerate(stores[3:])),
    )
    totals = await stores[0].totals()
    assert totals.calls == totals.records > 500
    assert totals.cost_nano_usd == totals.records_nano_usd == 7 * totals.calls
    spent = await stores[0].spend_over([f"global/{n}" for n in range(16)], [0, clock.now_s + DAY_S])
    assert 0 < sum(row.requests for row in spent[0]) <= totals.calls
    for store in stores:
        await store.close()
