"""What a copy has to say to Redis beyond the rows: what its scripts keep beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from .support import DAY_S, Client, Clock, dead, delivered
from .test_copy import lived, moved


@pytest.fixture
def other_url(redis_url: str) -> Iterator[str]:
    """One more ledger on the same server."""
    yield f"{redis_url}_other"
    with redis.Redis.from_url(redis_url.partition("?")[0]) as connection:
        namespace = redis_url.rpartition("=")[2]
        for key in connection.scan_iter(f"{{{namespace}_other}}:*", count=1000):
            connection.unlink(key)


async def test_a_copied_call_that_goes_on_elsewhere_is_forgotten_when_it_is_settled(
    redis_url: str, tmp_path: Path, clock: Clock
) -> None:
    source = f"sqlite:///{tmp_path / 'askii.db'}"

    async def deferring(client: Client) -> None:
        await client.store.heartbeat("w", 1)
        await client.reserve("a")
        assert await client.defer("a")
        clock.advance(2)

    async def settling(client: Client) -> None:
        await client.settle("a")
        assert await client.store.operation("k:a") is None
        clock.advance(7200)
        assert await client.store.overdue(10) == []
        assert await client.defer("b", "k:a")

    await lived(source, clock, deferring)
    assert all(table.equal for table in await moved(source, redis_url, clock))
    await lived(redis_url, clock, settling)


async def with_a_dead_letter(client: Client) -> None:
    """It is kept, and its neighbours are not any more."""
    clock, store = client.clock, client.store
    await store.heartbeat("w", 300 * DAY_S)
    await store.register_sinks(["slow"])
    for number in range(1, 9):
        await client.settle(f"a{number}", 10)
    await client.deliver("slow", *(dead(n) if n == 2 else delivered(n) for n in range(1, 7)))
    clock.advance(9 * DAY_S)
    await store.heartbeat("w", 1)
    assert [number for number, _ in await store.records()] == [7, 8]
    clock.advance(2)


async def test_copied_records_are_read_where_those_between_them_are_gone(
    redis_url: str, other_url: str, clock: Clock
) -> None:
    async def read(client: Client) -> None:
        store = client.store
        for after, expected in ((0, [2, 7, 8]), (1, [2, 7, 8]), (2, [7, 8]), (5, [7, 8]), (7, [8]), (8, [])):
            assert [number for number, _ in await store.records(after)] == expected
        assert await client.waiting("slow") == ["a7", "a8"]
        assert (await client.settle("a2", 10)).duplicate
        await client.settle("new", 10)
        assert [number for number, _ in await store.records(7)] == [8, 9]

    await lived(redis_url, clock, with_a_dead_letter)
    assert all(table.equal for table in await moved(redis_url, other_url, clock))
    await lived(other_url, clock, read)


async def test_a_copy_to_redis_counts_the_records_that_are_gone_too(
    redis_url: str, other_url: str, clock: Clock
) -> None:
    async def totals(client: Client) -> Any:
        return await client.store.totals()

    async def as_old_as_sums_get(client: Client) -> None:
        await with_a_dead_letter(client)
        server = client.store._link  # type: ignore[attr-defined]
        await server.call("HINCRBY", f"{client.store._prefix}meta", "calls", 5)  # type: ignore[attr-defined]
        await server.call("HINCRBY", f"{client.store._prefix}meta", "cost_nano_usd", 50)  # type: ignore[attr-defined]

    await lived(redis_url, clock, as_old_as_sums_get)
    before = await lived(redis_url, clock, totals)
    assert before[:4] == (13, 130, 8, 80)
    assert all(table.equal for table in await moved(redis_url, other_url, clock))
    assert await lived(other_url, clock, totals) == before


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_other_engines_take_over_what_redis_has_counted(
    engine: str, redis_url: str, tmp_path: Path, clock: Clock, request: pytest.FixtureRequest
) -> None:
    """What rows came to that Redis has no more counts as if they had been pruned."""
    target = f"sqlite:///{tmp_path / 'askii.db'}"
    if engine == "postgres":
        target = request.getfixturevalue("postgres_ledger").emptied().url

    async def totals(client: Client) -> Any:
        return await client.store.totals()

    await lived(redis_url, clock, with_a_dead_letter)
    assert all(table.equal for table in await moved(redis_url, target, clock))
    assert (await lived(target, clock, totals))[:4] == (8, 80, 8, 80)
