"""Secrets and the key directory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, cast

import pytest

from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.keys import MAX_SECRET_CHARS, KeyDirectory, KeyProblem, hash_secret, new_secret
from askii_middleware.stores.base import KeyRow, Store

ACME, GLOBEX, OTHER = "sk-askii-acme", "sk-askii-globex", "sk-askii-other"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Rows:
    """The two questions a directory asks a store, over rows in a dict, counting the questions."""

    def __init__(self, rows: Iterable[KeyRow] = ()) -> None:
        self.rows = {row.id: row for row in rows}
        self.asked: list[str] = []
        self.away = False

    async def find_key(self, sha256: str) -> KeyRow | None:
        self.asked.append(sha256)
        if self.away:
            raise StoreError("away")
        return next((row for row in self.rows.values() if sha256 in (row.sha256, row.former_sha256)), None)

    async def key(self, key_id: str) -> KeyRow | None:
        self.asked.append(key_id)
        if self.away:
            raise StoreError("away")
        return self.rows.get(key_id)

    def put(self, row: KeyRow) -> None:
        self.rows[row.id] = row


def key(secret: str, id_: str = "k1", **fields: Any) -> KeyRow:
    return KeyRow(id=id_, sha256=hash_secret(secret), tenant=fields.pop("tenant", "acme"), **fields)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def directory(clock: Clock, declared: Iterable[KeyRow] = (), store: Rows | None = None, **options: Any) -> KeyDirectory:
    return KeyDirectory(declared, cast("Store | None", store), clock=clock, **options)


# Secrets -------------------------------------------------------------------------------------------------------------


def test_a_new_secret_has_our_prefix_and_43_url_safe_characters() -> None:
    assert re.fullmatch(r"sk-askii-[A-Za-z0-9_-]{43}", new_secret())
    assert len({new_secret() for _ in range(100)}) == 100


def test_a_secret_is_filed_under_its_hex_sha256() -> None:
    assert hash_secret("sk-askii-x") == sha256(b"sk-askii-x").hexdigest()
    assert hash_secret("sk-askii-\udc80") != hash_secret("sk-askii-?")


# Declared keys -------------------------------------------------------------------------------------------------------


async def test_a_declared_key_is_found_by_its_secret(clock: Clock) -> None:
    row = key(ACME, team="research")
    keys = directory(clock, [row, key(GLOBEX, "k2", tenant="globex")])
    assert keys.find_cached(ACME) is None
    assert await keys.find(ACME) == row
    assert keys.find_cached(ACME) == row


async def test_an_unknown_secret_is_remembered_as_unknown(clock: Clock) -> None:
    keys = directory(clock, [key(ACME)])
    assert await keys.find(OTHER) is KeyProblem.UNKNOWN
    assert keys.find_cached(OTHER) is KeyProblem.UNKNOWN


async def test_a_revoked_key_is_told_from_an_unknown_one(clock: Clock) -> None:
    keys = directory(clock, [key(ACME, revoked=True)])
    assert await keys.find(ACME) is KeyProblem.REVOKED
    assert keys.find_cached(ACME) is KeyProblem.REVOKED


async def test_a_key_expires_at_its_moment_also_while_it_is_remembered(clock: Clock) -> None:
    keys = directory(clock, [key(ACME, expires_at_s=1001.0)])
    assert isinstance(await keys.find(ACME), KeyRow)
    clock.now_s = 1000.999
    assert isinstance(keys.find_cached(ACME), KeyRow)
    clock.now_s = 1001.0
    assert keys.find_cached(ACME) is KeyProblem.EXPIRED
    assert await keys.find(ACME) is KeyProblem.EXPIRED


async def test_an_endless_secret_is_unknown_without_being_hashed_or_remembered(clock: Clock) -> None:
    rows = Rows()
    keys = directory(clock, [key(ACME)], rows)
    assert await keys.find(ACME + "x" * MAX_SECRET_CHARS) is KeyProblem.UNKNOWN
    assert rows.asked == []


# Stored keys ---------------------------------------------------------------------------------------------------------


async def test_the_store_is_asked_once_within_the_time_to_live_and_again_after_it(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, store=rows, ttl_s=2.0)
    for _ in range(3):
        assert await keys.find(ACME) == key(ACME)
        assert await keys.find(OTHER) is KeyProblem.UNKNOWN
    assert rows.asked == [hash_secret(ACME), hash_secret(OTHER)]
    clock.now_s += 1.999
    assert keys.find_cached(ACME) == key(ACME)
    clock.now_s += 0.001
    assert keys.find_cached(ACME) is None
    assert keys.find_cached(OTHER) is None
    await keys.find(ACME)
    assert len(rows.asked) == 3


async def test_a_revocation_arrives_within_the_time_to_live(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, store=rows, ttl_s=2.0)
    await keys.find(ACME)
    rows.put(key(ACME, revoked=True))
    clock.now_s += 2.0
    assert await keys.find(ACME) is KeyProblem.REVOKED


async def test_a_new_key_opens_within_the_time_to_live_of_its_being_unknown(clock: Clock) -> None:
    rows = Rows()
    keys = directory(clock, store=rows)
    assert await keys.find(ACME) is KeyProblem.UNKNOWN
    rows.put(key(ACME))
    clock.now_s += 2.0
    assert await keys.find(ACME) == key(ACME)
    rows.rows.clear()
    clock.now_s += 2.0
    assert await keys.find(ACME) is KeyProblem.UNKNOWN


async def test_a_clock_set_back_makes_no_answer_live_longer(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, store=rows)
    await keys.find(ACME)
    clock.now_s -= 500
    assert keys.find_cached(ACME) is None


async def test_forgetting_makes_changes_visible_at_once(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, store=rows)
    await keys.find(ACME)
    rows.put(key(ACME, revoked=True))
    keys.forget()
    assert await keys.find(ACME) is KeyProblem.REVOKED


async def test_a_row_under_another_digest_opens_nothing(clock: Clock) -> None:
    class Careless(Rows):
        async def find_key(self, sha256: str) -> KeyRow | None:
            return key(ACME)

    assert await directory(clock, store=Careless()).find(OTHER) is KeyProblem.UNKNOWN


# Declared and stored -------------------------------------------------------------------------------------------------


async def test_the_stored_row_wins_over_the_declared_one_of_the_same_id(clock: Clock) -> None:
    stored = key(ACME, tenant="new")
    assert await directory(clock, [key(ACME, tenant="old")], Rows([stored])).find(ACME) == stored


async def test_after_a_rotation_the_declared_secret_no_longer_opens(clock: Clock) -> None:
    rows = Rows([key(GLOBEX, "k1")])
    keys = directory(clock, [key(ACME, "k1")], rows)
    assert await keys.find(ACME) is KeyProblem.UNKNOWN
    assert await keys.find(GLOBEX) == key(GLOBEX, "k1")
    rows.rows.clear()  # `askii keys rm`: the file's is back
    clock.now_s += 2.0
    assert await keys.find(ACME) == key(ACME, "k1")


@pytest.mark.parametrize(
    ("declared", "stored"),
    [
        (key(ACME, revoked=True), key(ACME)),
        (key(ACME), key(ACME, revoked=True)),
        (key(ACME, revoked=True), key(ACME, "k2")),
        (key(ACME), key(GLOBEX, revoked=True)),
        (key(ACME, revoked=True), key(GLOBEX)),
    ],
    ids=["in the file", "in the store", "in the file under another id", "after a rotation", "before a rotation"],
)
async def test_a_revocation_on_either_side_wins(clock: Clock, declared: KeyRow, stored: KeyRow) -> None:
    assert await directory(clock, [declared], Rows([stored])).find(ACME) is KeyProblem.REVOKED


async def test_revoking_a_key_in_the_file_also_closes_its_rotated_secret(clock: Clock) -> None:
    keys = directory(clock, [key(ACME, revoked=True)], Rows([key(GLOBEX, "k1")]))
    assert await keys.find(GLOBEX) is KeyProblem.REVOKED


async def test_a_declared_key_costs_one_look_by_its_id_within_the_time_to_live(clock: Clock) -> None:
    rows = Rows()
    keys = directory(clock, [key(ACME, "k1"), key(GLOBEX, "k2")], rows)
    for _ in range(3):
        await keys.find(ACME)
    await keys.find(GLOBEX)
    assert rows.asked == ["k1", hash_secret(ACME), "k2", hash_secret(GLOBEX)]
    clock.now_s += 2.0
    await keys.find(ACME)
    assert rows.asked.count("k1") == 2


def test_keys_that_are_declared_later_change_none_that_are_known(clock: Clock) -> None:
    keys = directory(clock, [key(ACME, "k1")])
    keys.declare([key(GLOBEX, "k1"), key(OTHER, "k2")])
    assert dict(keys.declared) == {"k1": key(ACME, "k1"), "k2": key(OTHER, "k2")}
    with pytest.raises(ConfigurationError, match="'k2' and 'k3' have the same sha256"):
        keys.declare([key(OTHER, "k3")])


# Rotated keys --------------------------------------------------------------------------------------------------------


def rotated(**fields: Any) -> KeyRow:
    """ACME is the secret from before, GLOBEX the present one."""
    return key(GLOBEX, "k1", former_sha256=hash_secret(ACME), former_until_s=1060.0, **fields)


@pytest.mark.parametrize("declared", [True, False])
async def test_the_secret_before_opens_the_rotated_key_until_the_overlap_is_over(clock: Clock, declared: bool) -> None:
    keys = directory(clock, [key(ACME, "k1")] if declared else [], Rows([rotated()]))
    assert await keys.find(ACME) == await keys.find(GLOBEX) == rotated()
    clock.now_s = 1059.999
    assert await keys.find(ACME) == rotated()
    clock.now_s = 1060.0
    assert keys.find_cached(ACME) is KeyProblem.EXPIRED
    assert await keys.find(ACME) is KeyProblem.EXPIRED
    assert await keys.find(GLOBEX) == rotated()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_revocation_closes_both_secrets_of_a_rotated_key(clock: Clock, declared: bool) -> None:
    keys = directory(clock, [key(ACME, "k1")] if declared else [], Rows([rotated(revoked=True)]))
    assert await keys.find(ACME) is KeyProblem.REVOKED
    assert await keys.find(GLOBEX) is KeyProblem.REVOKED


async def test_a_key_that_expires_within_the_overlap_expires_with_both_secrets(clock: Clock) -> None:
    keys = directory(clock, store=Rows([rotated(expires_at_s=1030.0)]))
    clock.now_s = 1030.0
    assert await keys.find(ACME) is KeyProblem.EXPIRED
    assert await keys.find(GLOBEX) is KeyProblem.EXPIRED


async def test_a_former_digest_without_a_moment_opens_nothing(clock: Clock) -> None:
    row = key(GLOBEX, "k1", former_sha256=hash_secret(ACME))
    assert await directory(clock, store=Rows([row])).find(ACME) is KeyProblem.EXPIRED


async def test_an_answer_that_was_asked_for_before_a_change_is_not_remembered_after_it(clock: Clock) -> None:
    class Slow(Rows):
        async def find_key(self, sha256: str) -> KeyRow | None:
            found = await super().find_key(sha256)
            if found is not None and not found.revoked:
                self.put(key(ACME, revoked=True))
                keys.forget()
            return found

    keys = directory(clock, store=Slow([key(ACME)]))
    assert await keys.find(ACME) == key(ACME)
    assert keys.find_cached(ACME) is None
    assert await keys.find(ACME) is KeyProblem.REVOKED


# Bounds --------------------------------------------------------------------------------------------------------------


async def test_a_flood_of_invented_secrets_is_bounded_and_pushes_no_good_key_out(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, store=rows, max_entries=10)
    await keys.find(ACME)
    for n in range(50):
        await keys.find(f"sk-askii-{n}")
    asked = len(rows.asked)
    assert keys.find_cached(ACME) == key(ACME)
    assert len(rows.asked) == asked
    assert [n for n in range(50) if keys.find_cached(f"sk-askii-{n}")] == list(range(40, 50))


async def test_known_keys_are_bounded_too_and_the_oldest_goes_first(clock: Clock) -> None:
    rows = Rows(key(f"sk-askii-{n}", f"k{n}") for n in range(12))
    keys = directory(clock, store=rows, max_entries=10)
    for n in range(12):
        await keys.find(f"sk-askii-{n}")
    assert [n for n in range(12) if keys.find_cached(f"sk-askii-{n}")] == list(range(2, 12))


# A store that is away ------------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_a_key_cannot_be_looked_up(clock: Clock) -> None:
    rows = Rows([key(ACME)])
    keys = directory(clock, [key(GLOBEX, "k2")], rows)
    await keys.find(ACME)
    rows.away = True
    assert await keys.find(ACME) == key(ACME)
    clock.now_s += 2.0
    for secret in (ACME, GLOBEX, OTHER):
        with pytest.raises(StoreError):
            await keys.find(secret)
    rows.away = False
    assert await keys.find(ACME) == key(ACME)


async def test_where_it_is_allowed_the_last_answer_and_declared_keys_open_for_a_while(clock: Clock) -> None:
    rows = Rows([key(ACME), key(OTHER, "gone", revoked=True)])
    keys = directory(clock, [key(GLOBEX, "k2")], rows, stale_s=60.0)
    await keys.find(ACME)
    await keys.find(OTHER)
    rows.away = True
    clock.now_s += 59.0
    assert await keys.find(ACME) == key(ACME)
    assert await keys.find(GLOBEX) == key(GLOBEX, "k2")
    assert await keys.find(OTHER) is KeyProblem.REVOKED
    with pytest.raises(StoreError):
        await keys.find("sk-askii-never-seen")
    clock.now_s += 1.0
    with pytest.raises(StoreError):
        await keys.find(ACME)


async def test_a_stale_key_still_expires_and_a_rotated_one_stays_closed(clock: Clock) -> None:
    rows = Rows([key(ACME, expires_at_s=1010.0), key(OTHER, "k2")])
    keys = directory(clock, [key(GLOBEX, "k2"), key("sk-askii-off", "k3", revoked=True)], rows, stale_s=60.0)
    await keys.find(ACME)
    assert await keys.find(GLOBEX) is KeyProblem.UNKNOWN
    rows.away = True
    clock.now_s += 10.0
    assert await keys.find(ACME) is KeyProblem.EXPIRED
    assert await keys.find(GLOBEX) is KeyProblem.UNKNOWN
    assert await keys.find("sk-askii-off") is KeyProblem.REVOKED
