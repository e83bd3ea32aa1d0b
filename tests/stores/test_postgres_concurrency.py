"""Calls at once on one ledger in PostgreSQL: what travels together is decided one by one."""

from __future__ import annotations

import asyncio

from askii_middleware.stores import open_store
from askii_middleware.stores.base import Settled
from askii_middleware.stores.postgres import PostgresStore, wire

from .support import Client, Clock, budget


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
