"""Keys as every ledger keeps them: by id, by tenant, by each of their digests."""

from __future__ import annotations

import msgspec
import pytest

from askii_middleware.errors import StoreError
from askii_middleware.stores.base import KeyRow, Store

from .support import NOON_S

NEW, OLD, OLDER = "aa" * 32, "bb" * 32, "cc" * 32
KEY = KeyRow(
    id="key_1",
    sha256=NEW,
    tenant="acme",
    user="ann",
    name="Ann's laptop, ≥ 2026",
    created_at_s=NOON_S,
    former_sha256=OLD,
    former_until_s=NOON_S + 86_400.5,
)


async def test_a_key_is_found_by_its_present_and_by_its_former_digest(store: Store) -> None:
    await store.put_key(KEY)
    assert await store.find_key(NEW) == KEY
    assert await store.find_key(OLD) == KEY
    assert await store.find_key(OLDER) is None


async def test_what_was_before_the_former_digest_opens_nothing(store: Store) -> None:
    await store.put_key(msgspec.structs.replace(KEY, sha256=OLD, former_sha256=OLDER))
    await store.put_key(KEY)
    assert await store.find_key(OLDER) is None
    assert await store.find_key(OLD) == KEY
    ended = msgspec.structs.replace(KEY, former_sha256=None, former_until_s=None)
    await store.put_key(ended)
    assert await store.find_key(OLD) is None
    assert await store.find_key(NEW) == ended


async def test_a_digest_that_nobody_has_any_more_may_belong_to_another_key(store: Store) -> None:
    await store.put_key(KEY)
    await store.put_key(msgspec.structs.replace(KEY, former_sha256=None))
    other = KeyRow(id="key_2", sha256=OLD, tenant="other")
    await store.put_key(other)
    assert await store.find_key(OLD) == other


@pytest.mark.parametrize(
    ("sha256", "former"), [(NEW, None), (OLD, None), (OLDER, NEW), (OLDER, OLD), (NEW, OLD), (OLD, NEW)]
)
async def test_no_digest_present_or_former_belongs_to_two_keys(store: Store, sha256: str, former: str | None) -> None:
    await store.put_key(KEY)
    with pytest.raises(StoreError, match="key_2"):
        await store.put_key(KeyRow(id="key_2", sha256=sha256, tenant="other", former_sha256=former))
    assert await store.keys() == [KEY]
    assert await store.find_key(OLDER) is None
    assert (await store.find_key(NEW), await store.find_key(OLD)) == (KEY, KEY)


async def test_digests_may_change_places(store: Store) -> None:
    await store.put_key(KEY)
    back = msgspec.structs.replace(KEY, sha256=OLD, former_sha256=NEW)
    await store.put_key(back)
    assert (await store.find_key(NEW), await store.find_key(OLD)) == (back, back)


async def test_a_key_whose_digests_are_the_same_is_one_key(store: Store) -> None:
    same = msgspec.structs.replace(KEY, former_sha256=NEW)
    await store.put_key(same)
    await store.put_key(same)
    assert await store.find_key(NEW) == same


async def test_a_key_is_read_by_its_id(store: Store) -> None:
    await store.put_key(KEY)
    assert await store.key("key_1") == KEY
    assert await store.key("key_2") is None
    assert await store.key(NEW) is None


async def test_keys_are_listed_by_id_a_page_at_a_time(store: Store) -> None:
    rows = [KeyRow(id=f"key_{n}", sha256=f"{n:064x}", tenant=f"t{n % 2}") for n in range(7)]
    for row in reversed(rows):
        await store.put_key(row)
    assert await store.keys() == rows
    assert await store.keys(limit=3) == rows[:3]
    assert await store.keys(after="key_2", limit=3) == rows[3:6]
    assert await store.keys(after="key_2x") == rows[3:]
    assert await store.keys(after="key_6") == []
    assert await store.keys(limit=0) == []


async def test_a_tenants_keys_are_listed_without_those_of_others(store: Store) -> None:
    rows = [KeyRow(id=f"key_{n}", sha256=f"{n:064x}", tenant=f"t{n % 2}") for n in range(7)]
    for row in rows:
        await store.put_key(row)
    assert await store.keys(tenant="t1") == rows[1::2]
    assert await store.keys(tenant="t1", limit=2) == [rows[1], rows[3]]
    assert await store.keys(tenant="t1", after="key_1", limit=1) == [rows[3]]
    assert await store.keys(tenant="t") == []
    await store.put_key(msgspec.structs.replace(rows[1], tenant="t0"))
    assert [row.id for row in await store.keys(tenant="t1")] == ["key_3", "key_5"]
    assert [row.id for row in await store.keys(tenant="t0")] == ["key_0", "key_1", "key_2", "key_4", "key_6"]
