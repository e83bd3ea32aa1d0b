from __future__ import annotations

import pytest

from askii_middleware.stores.base import Item

from .support import Client


async def version(client: Client, kind: str) -> int:
    return (await client.store.item_versions()).get(kind, 0)


async def test_values_come_back_by_name_and_byte_for_byte(client: Client) -> None:
    store = client.store
    odd = bytes(range(256))
    assert await store.put_item("price", "zeta|é", odd)
    assert await store.put_item("price", "alpha", b"")
    assert await store.put_item("tenant", "alpha", b"{}")
    assert await store.items("price") == [Item("alpha", b""), Item("zeta|é", odd)]
    assert await store.items("tenant") == [Item("alpha", b"{}")]
    assert await store.items("nothing") == []


async def test_a_value_is_replaced(client: Client) -> None:
    assert await client.store.put_item("price", "m", b"1")
    assert await client.store.put_item("price", "m", b"2")
    assert await client.store.items("price") == [Item("m", b"2")]


async def test_only_new_leaves_the_one_there_is(client: Client) -> None:
    assert await client.store.put_item("price", "m", b"1", only_new=True)
    before = await version(client, "price")
    assert not await client.store.put_item("price", "m", b"2", only_new=True)
    assert await client.store.items("price") == [Item("m", b"1")]
    assert await version(client, "price") == before


async def test_without_a_value_it_is_removed_once(client: Client) -> None:
    await client.store.put_item("price", "m", b"1")
    assert await client.store.put_item("price", "m", None)
    before = await version(client, "price")
    assert not await client.store.put_item("price", "m", None)
    assert not await client.store.put_item("unheard", "m", None)
    assert await client.store.items("price") == []
    assert await version(client, "price") == before
    assert await version(client, "unheard") == 0


async def test_every_change_changes_the_version_of_its_kind_and_of_no_other(client: Client) -> None:
    await client.store.put_item("other", "m", b"1")
    other = await version(client, "other")
    seen = [await version(client, "price")]
    for name, value in (("m", b"1"), ("n", b"1"), ("m", b"2"), ("m", None), ("n", None), ("m", b"1")):
        assert await client.store.put_item("price", name, value)
        seen.append(await version(client, "price"))
    assert len(set(seen)) == 7
    assert await version(client, "other") == other


async def test_after_its_time_a_value_is_as_if_it_was_not_there(client: Client) -> None:
    until_s = client.clock.now_s + 60
    await client.store.put_item("lock", "a", b"1", until_s=until_s)
    await client.store.put_item("lock", "b", b"1")
    client.clock.advance(59)
    assert [item.name for item in await client.store.items("lock")] == ["a", "b"]
    assert not await client.store.put_item("lock", "a", b"2", only_new=True)
    client.clock.advance(1)
    assert await client.store.items("lock") == [Item("b", b"1")]
    assert not await client.store.put_item("lock", "a", None)
    assert await client.store.put_item("lock", "a", b"2", only_new=True, until_s=until_s + 60)
    assert await client.store.items("lock") == [Item("a", b"2"), Item("b", b"1")]


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"], indirect=True)
async def test_the_end_of_a_value_with_a_nul_in_its_name_ends_no_other(client: Client) -> None:
    await client.store.put_item("lock", "a", b"1")
    await client.store.put_item("lock", "a\0b", b"2", until_s=client.clock.now_s + 1)
    client.clock.advance(1)
    assert await client.store.items("lock") == [Item("a", b"1")]


async def test_a_value_that_is_replaced_lives_as_long_as_its_new_time_says(client: Client) -> None:
    until_s = client.clock.now_s + 60
    await client.store.put_item("lock", "a", b"1", until_s=until_s)
    await client.store.put_item("lock", "a", b"2", until_s=until_s + 60)
    await client.store.put_item("lock", "b", b"1", until_s=until_s)
    await client.store.put_item("lock", "b", b"2")
    client.clock.advance(60)
    assert [item.name for item in await client.store.items("lock")] == ["a", "b"]
    client.clock.advance(60)
    assert [item.name for item in await client.store.items("lock")] == ["b"]


async def test_a_value_whose_time_has_come_already_is_not_there(client: Client) -> None:
    await client.store.put_item("lock", "a", b"1")
    assert await client.store.put_item("lock", "a", b"2", until_s=client.clock.now_s)
    assert await client.store.items("lock") == []
    assert await client.store.put_item("lock", "a", b"3", only_new=True)


async def test_the_end_of_a_values_time_changes_the_version_and_so_does_what_comes_after(client: Client) -> None:
    seen = []
    for n in range(4):
        await client.store.put_item("lock", f"a{n}", b"1", until_s=client.clock.now_s + 60)
        seen.append(await version(client, "lock"))
        await client.store.put_item("lock", f"b{n}", b"1", until_s=client.clock.now_s + 60)
        seen.append(await version(client, "lock"))
        client.clock.advance(60)
        seen.append(await version(client, "lock"))
    assert len(set(seen)) == 12
    await client.store.put_item("lock", "a", None)
    assert await version(client, "lock") == seen[-1]
