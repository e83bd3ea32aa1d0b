"""Keys as operators make, list, rotate and revoke them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.identify import key_directory
from askii_middleware.key_ring import MAX_MODELS, MAX_OVERLAP_S, MAX_PAGE, KeyRing, NewKey
from askii_middleware.keys import KeyProblem, hash_secret
from askii_middleware.settings import Settings
from askii_middleware.stores.base import KeyRow
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, both_stores, make_tracker, opened, url_of

DAY_S = 86_400.0


def declared(id_: str, secret: str = "", **fields: Any) -> KeyRow:
    digest = hash_secret(secret or f"sk-askii-{id_}")
    return KeyRow(id=id_, sha256=digest, tenant=fields.pop("tenant", "acme"), **fields)


async def holder(tracker: CostTracker, secret: str) -> str | KeyProblem:
    found = await tracker.keys.directory.find(secret)
    return found if isinstance(found, KeyProblem) else found.id


async def ids(ring: KeyRing, **options: Any) -> list[str]:
    return [listed.row.id for listed in await ring.list(**options)]


@asynccontextmanager
async def two_workers(folder: Path, clock: Clock) -> AsyncIterator[tuple[CostTracker, CostTracker]]:
    url = url_of("sqlite", folder)
    async with make_tracker(url, clock=clock) as one, make_tracker(url, clock=clock) as other:
        yield one, other


# Making --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_new_key_opens_with_its_secret_and_is_stored_without_it(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        made = await tracker.keys.create(
            "acme",
            name="Batch jobs",
            user="u1",
            team="t1",
            tags=("night",),
            models=("OpenAI/GPT-4o", "gpt-4o", "small"),
            expires_at_s=NOW_S + 10,
        )
        assert made.row == KeyRow(
            id=made.row.id,
            sha256=hash_secret(made.secret),
            tenant="acme",
            user="u1",
            team="t1",
            tags=("night",),
            models=("gpt-4o", "small"),
            expires_at_s=NOW_S + 10,
            name="Batch jobs",
            created_at_s=NOW_S,
        )
        assert made.row.id.startswith("key_")
        assert await tracker.keys.directory.find(made.secret) == made.row
        found = await tracker.keys.get(made.row.id)
        assert found is not None
        assert (found.row, found.source) == (made.row, "store")
        assert made.secret not in repr(made)


async def test_an_id_that_is_taken_is_refused_and_its_key_stays(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, keys=[declared("in-file")]) as tracker:
        first = await tracker.keys.create("acme", key_id="mine")
        for taken in ("mine", "in-file"):
            with pytest.raises(ConfigurationError, match=f"a key with the id '{taken}' exists"):
                await tracker.keys.create("globex", key_id=taken)
        assert await holder(tracker, first.secret) == "mine"
        assert await holder(tracker, "sk-askii-in-file") == "in-file"


async def test_of_many_that_want_one_id_at_once_one_gets_it(tmp_path: Path) -> None:
    async with two_workers(tmp_path, Clock()) as workers:
        tries = await asyncio.gather(
            *(workers[n % 2].keys.create(f"tenant-{n}", key_id="wanted") for n in range(8)), return_exceptions=True
        )
        (won,) = [one for one in tries if isinstance(one, NewKey)]
        assert sum(isinstance(one, ConfigurationError) for one in tries) == 7
        assert await workers[1].store.key("wanted") == won.row


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": ""},
        {"tenant": "deleted"},
        {"tenant": "x" * 257},
        {"tenant": "acme", "key_id": ""},
        {"tenant": "acme", "key_id": "a/b"},
        {"tenant": "acme", "key_id": ".."},
        {"tenant": "acme", "key_id": "x" * 257},
        {"tenant": "acme", "key_id": "a\nb"},
        {"tenant": "acme", "name": " "},
        {"tenant": "acme", "name": "a\x1b[2J"},
        {"tenant": "acme", "user": ""},
        {"tenant": "acme", "tags": ["t"] * 17},
        {"tenant": "acme", "tags": [""]},
        {"tenant": "acme", "models": [f"m{n}" for n in range(MAX_MODELS + 1)]},
        {"tenant": "acme", "models": [""]},
        {"tenant": "acme", "models": ["m" * 257]},
        {"tenant": "acme", "expires_at_s": NOW_S},
        {"tenant": "acme", "expires_at_s": float("nan")},
        {"tenant": "acme", "expires_at_s": float("inf")},
    ],
)
async def test_fields_out_of_bounds_make_no_key(fields: dict[str, Any], tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match=r".+"):
            await tracker.keys.create(**fields)
        assert await tracker.keys.list() == []


# Rotating ------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_rotated_key_keeps_its_id_and_opens_with_both_secrets_for_the_overlap(
    kind: str, tmp_path: Path
) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        first = await tracker.keys.create("acme", key_id="k", user="u1")
        second = await tracker.keys.rotate("k", overlap_s=60.0)
        assert second.secret != first.secret
        assert [await holder(tracker, made.secret) for made in (first, second)] == ["k", "k"]
        clock.advance(60)
        assert [await holder(tracker, made.secret) for made in (first, second)] == [KeyProblem.EXPIRED, "k"]
        third = await tracker.keys.rotate("k")
        assert [await holder(tracker, made.secret) for made in (first, second, third)] == [
            *(KeyProblem.UNKNOWN, "k", "k"),
        ]
        found = await tracker.keys.get("k")
        assert found is not None
        assert (found.row.user, found.row.former_until_s) == ("u1", NOW_S + 60 + DAY_S)


async def test_without_an_overlap_the_secret_before_ends_at_once(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        first = await tracker.keys.create("acme", key_id="k")
        assert await holder(tracker, first.secret) == "k"
        second = await tracker.keys.rotate("k", overlap_s=0)
        assert [await holder(tracker, made.secret) for made in (first, second)] == [KeyProblem.UNKNOWN, "k"]


async def test_a_declared_key_that_is_rotated_becomes_a_stored_one(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("memory", tmp_path, clock=clock, keys=[declared("k", team="t1")]) as tracker:
        made = await tracker.keys.rotate("k", overlap_s=60.0)
        assert [await holder(tracker, secret) for secret in ("sk-askii-k", made.secret)] == ["k", "k"]
        clock.advance(60)
        assert [await holder(tracker, secret) for secret in ("sk-askii-k", made.secret)] == [KeyProblem.EXPIRED, "k"]
        (listed,) = await tracker.keys.list()
        assert (listed.row.team, listed.source) == ("t1", "store")


async def test_the_budget_and_the_history_of_a_key_survive_its_rotation(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        made = await tracker.keys.create("acme", key_id="k")
        async with tracker.track_tokens("acme", "big", expected_input_tokens=1, key=made.row.id) as usage:
            usage["input_tokens"] = 1000
        await tracker.keys.rotate("k")
        assert (await tracker.get_spend("key=k", "daily")).cost_nano_usd == 1_000_000


async def test_keys_that_are_not_there_or_revoked_cannot_be_rotated(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, keys=[declared("off", revoked=True)]) as tracker:
        with pytest.raises(ConfigurationError, match="no key has the id 'nobody'"):
            await tracker.keys.rotate("nobody")
        with pytest.raises(ConfigurationError, match="'off' is revoked"):
            await tracker.keys.rotate("off")
        assert await tracker.store.items("key:change") == []


@pytest.mark.parametrize("overlap_s", [-1.0, MAX_OVERLAP_S + 1, float("nan"), float("inf")])
async def test_an_overlap_is_bounded(overlap_s: float, tmp_path: Path) -> None:
    async with opened("memory", tmp_path, keys=[declared("k")]) as tracker:
        with pytest.raises(ValueError, match="an overlap takes 0 to 31 days"):
            await tracker.keys.rotate("k", overlap_s=overlap_s)


# Revoking ------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_within_two_seconds(
    kind: str, tmp_path: Path
) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock, keys=[declared("in-file")]) as tracker:
        made = await tracker.keys.create("acme", key_id="k")
        await tracker.keys.rotate("k")
        for secret, key_id in ((made.secret, "k"), ("sk-askii-in-file", "in-file")):
            assert await holder(tracker, secret) == key_id
            assert await tracker.keys.revoke(key_id) is True
            assert tracker.keys.directory.find_cached(secret) is None
            assert await holder(tracker, secret) is KeyProblem.REVOKED
        assert await tracker.keys.revoke("nobody") is False
        assert {listed.row.id: listed.row.revoked for listed in await tracker.keys.list()} == {
            "in-file": True,
            "k": True,
        }


async def test_another_worker_refuses_a_revoked_key_after_its_time_to_live(tmp_path: Path) -> None:
    clock = Clock()
    async with two_workers(tmp_path, clock) as (one, other):
        made = await one.keys.create("acme", key_id="k")
        assert await holder(other, made.secret) == "k"
        await one.keys.revoke("k")
        clock.advance(2)
        assert await holder(other, made.secret) is KeyProblem.REVOKED


async def test_a_revocation_is_never_lost_beside_rotations(tmp_path: Path) -> None:
    async with two_workers(tmp_path, Clock()) as (one, other):
        for n in range(5):
            key_id = f"k{n}"
            await one.keys.create("acme", key_id=key_id)
            await asyncio.gather(
                other.keys.rotate(key_id), one.keys.revoke(key_id), other.keys.rotate(key_id), return_exceptions=True
            )
            row = await one.store.key(key_id)
            assert row is not None
            assert row.revoked


async def test_a_key_revoked_in_the_file_is_listed_as_revoked_whatever_is_stored(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, keys=[declared("k", revoked=True)]) as tracker:
        await tracker.store.put_key(declared("k"))
        (listed,) = await tracker.keys.list()
        assert (listed.row.revoked, listed.source) == (True, "store")


# Listing -------------------------------------------------------------------------------------------------------------


@both_stores
async def test_pages_go_through_stored_and_declared_keys_by_id_and_miss_none(kind: str, tmp_path: Path) -> None:
    rows = [declared(f"d{n}") for n in range(7)] + [declared("other", tenant="globex")]
    async with opened(kind, tmp_path, keys=rows) as tracker:
        for n in range(7):
            await tracker.keys.create("acme", key_id=f"c{n}")
            await tracker.keys.create("acme", key_id=f"e{n}")
        await tracker.keys.rotate("d3")
        every = sorted([*(f"{letter}{n}" for letter in "cde" for n in range(7)), "other"])
        assert await ids(tracker.keys) == every
        for limit in (1, 2, 3, 5, 8):
            found: list[str] = []
            while page := await ids(tracker.keys, after=found[-1] if found else "", limit=limit):
                assert len(page) <= limit
                found += page
            assert found == every
        assert await ids(tracker.keys, tenant="globex") == ["other"]


async def test_a_declared_key_that_was_stored_for_another_tenant_is_that_ones(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, keys=[declared("k", tenant="acme")]) as tracker:
        await tracker.store.put_key(declared("k", tenant="globex"))
        assert await ids(tracker.keys, tenant="acme") == []
        assert await ids(tracker.keys, tenant="globex") == ["k"]


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
async def test_a_page_is_bounded(limit: int, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ValueError, match="limit takes 1 to 1000"):
            await tracker.keys.list(limit=limit)


# One set of keys -----------------------------------------------------------------------------------------------------


async def test_who_identifies_callers_and_who_lists_keys_know_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(keys=(declared("settings"), declared("both", "sk-askii-theirs")))
    async with opened("memory", tmp_path, keys=[declared("tracker"), declared("both")]) as tracker:
        assert key_directory(settings, tracker.keys) is tracker.keys.directory
        assert await ids(tracker.keys) == ["both", "settings", "tracker"]
        # As everywhere, what the constructor was given wins over what is in the file.
        assert await holder(tracker, "sk-askii-both") == "both"
        assert await holder(tracker, "sk-askii-theirs") is KeyProblem.UNKNOWN


def test_two_declared_keys_with_one_secret_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'a' and 'b' have the same sha256"):
        make_tracker("memory://", keys=[declared("a", "sk-askii-x"), declared("b", "sk-askii-x")])


@both_stores
async def test_a_rotation_of_what_was_seen_is_done_once_and_its_overlap_lasts(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:
        made = await tracker.keys.create("acme", key_id="k1")
        seen = made.row.sha256
        tries = (tracker.keys.rotate("k1", expected_sha256=seen) for _ in range(3))
        done = await asyncio.gather(*tries, return_exceptions=True)
        refused = [str(each) for each in done if isinstance(each, ConfigurationError)]
        assert refused == ["the key 'k1' has been rotated since: look at it again"] * 2
        assert await tracker.keys.directory.find(made.secret) == (await tracker.store.key("k1"))
        (new,) = [each for each in done if isinstance(each, NewKey)]
        assert (await tracker.keys.rotate("k1", expected_sha256=new.row.sha256)).row.former_sha256 == new.row.sha256


@both_stores
async def test_a_new_secret_is_shown_although_the_ledger_goes_away_right_after_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(kind, tmp_path) as tracker:
        await tracker.keys.create("acme", key_id="k1")
        put_item = tracker.store.put_item

        async def gone(*arguments: Any, **options: Any) -> bool:
            if arguments[2] is None:
                raise StoreError("the disk is full")
            return await put_item(*arguments, **options)

        monkeypatch.setattr(tracker.store, "put_item", gone)
        made = await tracker.keys.rotate("k1", overlap_s=0)
        assert await holder(tracker, made.secret) == "k1"
