"""Calls that go on elsewhere: held for by nobody's heartbeat, found by their key, charged once."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from askii_middleware.stores import open_store
from askii_middleware.stores.base import MAX_KEY_CHARS, MAX_PAYLOAD_BYTES, Operation, UnwritableError
from askii_middleware.stores.rules import OVERDUE_S

from .credit_support import draw, promote, use
from .processes import RATE
from .support import DAY_S, NOON_S, Client, Clock, budget
from .test_sqlite_processes import audit, hear, running, tell


async def test_an_operations_hold_outlives_its_worker(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 60)
    await client.reserve("a", 60, worker="x", deadline_s=120.0)
    assert await client.defer("a", for_s=3600)
    client.clock.advance(600)
    await client.store.heartbeat("w", 60)
    assert await client.spent_held() == (0, 60)
    assert (await client.reserve("b", 41)).candidate is None
    totals = await client.store.totals()
    assert (totals.lost, totals.held_nano_usd) == (0, 60)
    assert await client.settle("a", 50) == (0, False, False)
    assert await client.spent_held() == (50, 0)


async def test_its_hold_ends_an_hour_after_it_is_overdue_and_a_settlement_is_late_then(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60, deadline_s=10.0)
    await client.defer("a", for_s=100)
    client.clock.advance(100 + OVERDUE_S - 1)
    assert await client.spent_held() == (0, 60)
    client.clock.advance(1)
    assert await client.spent_held() == (0, 0)
    assert (await client.reserve("b", 100)).candidate == 0
    assert (await client.settle("a", 50)).late
    assert await client.spent_held() == (50, 100)


async def test_an_operation_is_found_by_its_key_until_it_is_settled(client: Client) -> None:
    await client.reserve("a")
    await client.defer("a", "openai:resp_1", for_s=100, payload=b"\x00\xff")
    expected = Operation(key="openai:resp_1", call_id="a", tenant="acme", until_s=NOON_S + 100, payload=b"\x00\xff")
    assert await client.store.operation("openai:resp_1") == expected
    assert await client.store.operation("openai:resp_2") is None
    await client.settle("a")
    assert await client.store.operation("openai:resp_1") is None


async def test_a_release_forgets_the_operation_and_its_hold(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60)
    await client.defer("a")
    await client.store.release("a")
    assert await client.store.operation("k:a") is None
    assert await client.spent_held() == (0, 0)


async def test_a_reserve_that_replaces_an_operations_hold_forgets_the_operation(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60)
    await client.defer("a")
    assert (await client.reserve("b", 100, replaces="a")).candidate == 0
    assert await client.store.operation("k:a") is None


async def test_a_repeated_defer_changes_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60)
    assert await client.defer("a", for_s=100)
    first = await client.store.operation("k:a")
    assert await client.defer("a", for_s=900, payload=b"other")
    assert await client.defer("a", "another key")
    assert await client.store.operation("k:a") == first
    assert await client.store.operation("another key") is None
    assert await client.spent_held() == (0, 60)


async def test_a_key_that_another_call_has_is_refused_and_the_first_stays(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 10)
    await client.reserve("b", 20, deadline_s=50.0)
    assert await client.defer("a", "k")
    assert not await client.defer("b", "k")
    found = await client.store.operation("k")
    assert found is not None
    assert found.call_id == "a"
    client.clock.advance(50)
    assert await client.spent_held() == (0, 10)


@pytest.mark.parametrize("end", ["settled", "released"])
async def test_a_call_that_is_over_is_not_deferred(client: Client, end: str) -> None:
    await client.reserve("a")
    if end == "settled":
        await client.settle("a")
    else:
        await client.store.release("a")
    assert await client.defer("a")
    assert await client.store.operation("k:a") is None
    assert (await client.store.totals()).held_nano_usd == 0


async def test_a_call_without_a_hold_can_be_deferred_and_is_charged_to_its_matches(client: Client) -> None:
    client.declare(budget("tenant=*", 100))
    assert await client.defer("a")
    assert await client.spent_held() == (0, 0)
    assert await client.settle("a", 30) == (0, False, False)
    assert await client.store.operation("k:a") is None
    assert await client.spent_held() == (30, 0)


async def test_a_call_that_is_deferred_before_it_has_its_hold_is_forgotten_when_it_is_settled(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    drawn = await draw(client, 1, 600)
    for call_id in ("reserved", "promoted"):
        assert await client.defer(call_id)
    assert (await client.reserve("reserved")).candidate == 0
    await promote(client, "promoted", 250, use(drawn), drawn)
    for call_id in ("reserved", "promoted"):
        await client.settle(call_id)
        assert await client.store.operation(f"k:{call_id}") is None
    client.clock.advance(7200)
    assert await client.store.overdue(10) == []


@pytest.mark.parametrize("dead", ["worker", "deadline", "lost"])
async def test_a_hold_that_counts_no_more_is_not_revived_but_its_operation_is_known(client: Client, dead: str) -> None:
    client.declare(budget("tenant=*", 100))
    await client.store.heartbeat("x", 600 if dead == "deadline" else 60)
    await client.reserve("a", 60, worker="x", deadline_s=60.0)
    client.clock.advance(60)
    if dead == "lost":
        await client.store.heartbeat("w", 60)
    assert await client.defer("a")
    assert await client.store.operation("k:a") is not None
    assert await client.spent_held() == (0, 0)
    assert (await client.reserve("b", 100)).candidate == 0
    client.clock.advance(-30)
    assert await client.spent_held() == (0, 100)
    assert (await client.settle("a", 50)).late
    assert await client.store.operation("k:a") is None


async def test_what_is_overdue_comes_by_age_and_no_more_than_asked_for(client: Client) -> None:
    for call_id, for_s in (("late", 20), ("early", 10), ("later", 30), ("never", 1e9)):
        await client.reserve(call_id)
        await client.defer(call_id, for_s=for_s)
    assert await client.store.overdue(10) == []
    client.clock.advance(30)
    assert [o.call_id for o in await client.store.overdue(10)] == ["early", "late", "later"]
    assert [o.call_id for o in await client.store.overdue(2)] == ["early", "late"]
    assert await client.store.overdue(0) == []
    await client.settle("early")
    assert [o.call_id for o in await client.store.overdue(10)] == ["late", "later"]


async def test_an_operation_nobody_could_settle_is_forgotten_with_its_hold(client: Client) -> None:
    await client.reserve("a")
    await client.defer("a", for_s=100)
    client.clock.advance(100 + 8 * DAY_S - 1)
    await client.store.heartbeat("w", 60)
    assert await client.store.operation("k:a") is not None
    client.clock.advance(1)
    await client.store.heartbeat("w2", 60)
    assert await client.store.operation("k:a") is None


@pytest.mark.parametrize(
    ("key", "payload"),
    [("k" * (MAX_KEY_CHARS + 1), b""), ("k", b"p" * (MAX_PAYLOAD_BYTES + 1))],
    ids=["key", "payload"],
)
async def test_what_is_too_long_is_refused_and_changes_nothing(client: Client, key: str, payload: bytes) -> None:
    client.declare(budget("tenant=*", 100))
    await client.reserve("a", 60, deadline_s=50.0)
    with pytest.raises(UnwritableError, match="longer than"):
        await client.defer("a", key, payload=payload)
    assert await client.store.operation(key) is None
    client.clock.advance(50)
    assert await client.spent_held() == (0, 0)


async def test_the_longest_key_and_payload_are_kept(client: Client) -> None:
    await client.reserve("a")
    key, payload = "k" * MAX_KEY_CHARS, b"\xff" * MAX_PAYLOAD_BYTES
    assert await client.defer("a", key, payload=payload)
    found = await client.store.operation(key)
    assert found is not None
    assert found.payload == payload


async def test_the_name_of_the_worker_that_holds_for_operations_is_nobodys(client: Client) -> None:
    await client.reserve("a", worker="w")
    await client.defer("a")
    await client.store.heartbeat("w", 0)
    assert (await client.store.totals()).held_nano_usd == 100


# Files and processes -------------------------------------------------------------------------------------------------


async def test_an_operation_survives_the_kill_of_its_worker_and_is_charged_by_another(tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    clock = Clock(time.time())
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.set(budget("tenant=*", 1000))
    async with running("defer", str(path)) as worker:
        assert await hear(worker) == "ready"
        worker.kill()
        await worker.wait()
    clock.now_s = time.time() + 600
    await client.store.heartbeat("heir", 60)
    assert await client.spent_held() == (0, 100)
    found = await client.store.operation("k:deferred")
    assert found is not None
    assert await client.settle("deferred", 93, rate=RATE) == (0, False, False)
    totals = await client.store.totals()
    assert (totals.calls, totals.cost_nano_usd, totals.held_nano_usd, totals.lost) == (1, 93, 0, 0)
    audit(path)
    await client.store.close()


async def test_of_two_workers_that_see_the_end_at_the_same_moment_one_charges(tmp_path: Path) -> None:
    path = tmp_path / "askii.db"
    clock = Clock(time.time())
    client = Client(open_store(f"sqlite:///{path}", clock=clock), clock)
    await client.store.open()
    await client.set(budget("tenant=*", 10**6))
    await client.store.heartbeat("w", 3600)
    names = [f"c{n}" for n in range(50)]
    for name in names:
        await client.reserve(name)
        await client.defer(name)
    async with running("sight", str(path), "p1") as one, running("sight", str(path), "p2") as two:
        assert [await hear(process) for process in (one, two)] == ["ready"] * 2
        await asyncio.gather(tell(one), tell(two))
        charged = [json.loads(await hear(process)) for process in (one, two)]
    assert sorted(charged[0] + charged[1]) == sorted(names)
    totals = await client.store.totals()
    assert (totals.calls, totals.cost_nano_usd, totals.held_nano_usd) == (50, 50 * 93, 0)
    audit(path)
    await client.store.close()
