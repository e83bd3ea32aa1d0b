"""Forms that are sent twice, or after somebody else was faster: nothing is done twice or replaced unseen."""

from __future__ import annotations

import asyncio
import re

import pytest

from askii_middleware import Budget
from askii_middleware.key_ring import ListedKey

from .site import seen_in, site


async def test_a_form_that_is_sent_twice_makes_one_key_and_rotates_once() -> None:
    async with site() as made:
        made_up = re.search(r'name="made_up" value="(key_[0-9a-f]{12})"', (await made.get("/keys/new")).text)
        assert made_up is not None
        answers = [await made.post("/keys", tenant="acme", made_up=made_up[1]) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 422]
        assert [key.row.id for key in await made.tracker.keys.list()] == [made_up[1]]
        assert made_up[1] not in re.findall(r'name="made_up" value="([^"]*)"', answers[1].text)

        form = {"key_id": made_up[1], "overlap": "86400", "seen": seen_in((await made.get("/keys")).text)}
        first = await made.post("/keys/rotate", **form)
        rotated = await made.tracker.keys.get(made_up[1])
        second = await made.post("/keys/rotate", **form)
        assert (first.status_code, second.status_code) == (200, 409)
        assert await made.tracker.keys.get(made_up[1]) == rotated
        assert rotated is not None
        assert rotated.row.sha256 not in (await made.get("/keys")).text


async def test_of_two_browsers_that_rotate_at_the_same_moment_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as made:
        await made.tracker.keys.create("acme", key_id="k1")
        before = await made.tracker.keys.get("k1")
        form = {"key_id": "k1", "overlap": "86400", "seen": seen_in((await made.get("/keys")).text)}
        both, get = asyncio.Barrier(2), made.tracker.keys.get

        async def looked_at_together(key_id: str) -> ListedKey | None:
            found = await get(key_id)
            await both.wait()
            return found

        monkeypatch.setattr(made.tracker.keys, "get", looked_at_together)
        answers = await asyncio.gather(*(made.post("/keys/rotate", **form) for _ in range(2)))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        after = await get("k1")
        assert before is not None
        assert after is not None
        assert after.row.former_sha256 == before.row.sha256


async def test_a_budget_is_not_replaced_unseen() -> None:
    async with site() as made:
        fields = {"scope": "tenant=acme", "period": "daily", "unit": "usd", "limit": "5", "enabled": "1"}

        async def limits() -> list[int | None]:
            return [budget.terms.limit_nano_usd for budget in await made.tracker.store.budgets()]

        for _ in range(2):  # the same once more is no harm
            assert (await made.post("/budgets", **fields)).status_code == 303
        new = await made.post("/budgets", **{**fields, "limit": "7"})
        assert (new.status_code, await limits()) == (422, [5_000_000_000])
        assert "with a limit of 5 USD now" in new.text

        mine = seen_in((await made.get("/budgets/edit?scope=tenant%3Dacme&period=daily")).text)
        await made.tracker.budget_enforcer.set_budget(Budget(scope="tenant=acme", limit_usd=6))
        late = await made.post("/budgets", **{**fields, "limit": "7", "fixed": "1", "seen": mine})
        assert (late.status_code, await limits()) == (422, [6_000_000_000])
        assert 'value="7"' in late.text
        again = await made.post("/budgets", **{**fields, "limit": "7", "fixed": "1", "seen": seen_in(late.text)})
        assert (again.status_code, await limits()) == (303, [7_000_000_000])

        mine = seen_in((await made.get("/budgets/edit?scope=tenant%3Dacme&period=daily")).text)
        await made.post("/budgets/remove", scope="tenant=acme", period="daily")
        gone = await made.post("/budgets", **{**fields, "limit": "8", "fixed": "1", "seen": mine})
        assert (gone.status_code, await limits()) == (422, [])
        assert "removed this budget meanwhile" in gone.text
