"""The newest records, a page at a time backwards."""

from __future__ import annotations

import msgspec

from .support import Client


def ids(rows: list[tuple[int, bytes]]) -> list[str]:
    return [msgspec.json.decode(record)["call_id"] for _, record in rows]


async def test_the_newest_records_come_first(client: Client) -> None:
    for n in range(5):
        await client.settle(f"a{n}")
        await client.settle(f"o{n}", tenant="other")
    latest = await client.store.latest(None, 4)
    assert ids(latest) == ["o4", "a4", "o3", "a3"]
    assert [number for number, _ in latest] == sorted((number for number, _ in latest), reverse=True)
    assert latest == (await client.store.records())[::-1][:4]


async def test_the_newest_of_a_tenant_are_its_own(client: Client) -> None:
    for n in range(5):
        await client.settle(f"a{n}")
        await client.settle(f"o{n}", tenant="other")
    assert ids(await client.store.latest("acme", 3)) == ["a4", "a3", "a2"]
    assert ids(await client.store.latest("other", 9)) == ["o4", "o3", "o2", "o1", "o0"]
    assert await client.store.latest("nobody", 9) == []
    assert await client.store.latest("acme", 0) == []


async def test_reading_on_backwards_meets_every_record_once(client: Client) -> None:
    for n in range(23):
        await client.settle(f"a{n}")
        await client.settle(f"o{n}", tenant="other")
    for tenant, expected in (
        ("acme", [f"a{n}" for n in reversed(range(23))]),
        (None, [f"{t}{n}" for n in reversed(range(23)) for t in "oa"]),
    ):
        found: list[str] = []
        before: int | None = None
        while page := await client.store.latest(tenant, 7, before_seq=before):
            found += ids(page)
            before = page[-1][0]
        assert found == expected


async def test_a_hundred_of_each_tenant_are_there_whatever_others_do(client: Client) -> None:
    settlements = [client.settlement(f"a{n}") for n in range(100)]
    settlements += [client.settlement(f"o{n}", tenant="other") for n in range(300)]
    await client.store.settle_many(settlements)
    assert ids(await client.store.latest("acme", 100)) == [f"a{n}" for n in reversed(range(100))]
