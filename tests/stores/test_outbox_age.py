"""How old the oldest record is that a sink still waits for. The same from every store."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from askii_middleware.delivery_age import LOOKED_AT, oldest_s
from askii_middleware.stores.base import partition_of

from .support import NOON_S, Client, again, dead, delivered

OTHER = partition_of("other")


async def use(client: Client, call_id: str, ago_s: float, tenant: str = "acme") -> None:
    at = datetime.fromtimestamp(NOON_S - ago_s, UTC).isoformat(timespec="milliseconds")
    record = msgspec.json.encode({"call_id": call_id, "cost_nano_usd": 10, "timestamp": at})
    await client.settle(call_id, 10, tenant=tenant, record=record)


@pytest.fixture
async def outbox(client: Client) -> Client:
    """A client with three records of one tenant and one of another, and a sink `s` that has seen none."""
    await client.store.register_sinks(["s"])
    for call_id, ago_s in (("a", 900.0), ("b", 600.0), ("c", 300.0)):
        await use(client, call_id, ago_s)
    await use(client, "other", 700.0, "other")
    return client


async def age_s(client: Client) -> float | None:
    at_s = await oldest_s(client.store, "s")
    return None if at_s is None else NOON_S - at_s


async def test_the_oldest_of_all_tenants_is_found_and_then_the_next(outbox: Client) -> None:
    assert await age_s(outbox) == 900
    await outbox.deliver("s", delivered(1))
    assert await age_s(outbox) == 700
    await outbox.deliver("s", delivered(1, OTHER))
    assert await age_s(outbox) == 600


async def test_a_record_that_waits_for_a_moment_of_its_own_still_waits(outbox: Client) -> None:
    await outbox.deliver("s", again(1, 3600.0), delivered(2), delivered(3))
    assert await age_s(outbox) == 900


async def test_what_was_rejected_for_good_waits_no_more(outbox: Client) -> None:
    await outbox.deliver("s", dead(1), dead(2), delivered(3), delivered(1, OTHER))
    assert await age_s(outbox) is None
    assert await outbox.store.retry_dead("s") == 2
    assert await age_s(outbox) == 900


async def test_one_that_fails_again_and_again_is_found_behind_many_new_ones(outbox: Client) -> None:
    await outbox.deliver("s", again(1, 3600.0))
    for number in range(LOOKED_AT + 10):
        await use(outbox, f"new-{number}", 100.0)
    assert await age_s(outbox) == 900


async def test_a_record_that_nobody_can_read_has_no_age(client: Client) -> None:
    await client.store.register_sinks(["s"])
    await client.settle("a", 10)
    assert (await client.store.pending())["s"] == 1
    assert await oldest_s(client.store, "s") is None
    await use(client, "b", 60.0)
    assert await age_s(client) == 60
