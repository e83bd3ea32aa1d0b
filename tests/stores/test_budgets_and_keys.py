from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from askii_middleware.budgets import Budget
from askii_middleware.errors import StoreError
from askii_middleware.stores.base import KeyRow

from .support import Client, budget


async def test_a_new_store_has_no_forms(client: Client) -> None:
    assert await client.store.forms() == (0, [])


async def test_the_forms_are_those_of_the_stored_budgets(client: Client) -> None:
    await client.store.set_budget(budget("tenant=acme,model=*", 5))
    await client.store.set_budget(budget("global", 5, period="monthly", zone="Europe/Berlin"))
    _, forms = await client.store.forms()
    assert forms == [("", "monthly", "Europe/Berlin"), ("tenant,model", "daily", "UTC")]


async def test_the_version_grows_exactly_when_the_forms_change(client: Client) -> None:
    async def version() -> int:
        return (await client.store.forms())[0]

    await client.store.set_budget(budget("tenant=a", 5))
    first = await version()
    await client.store.set_budget(budget("tenant=a", 6, enabled=False))
    await client.store.set_budget(budget("tenant=*", 6))
    await client.store.remove_budget("tenant=a|daily")
    await client.store.remove_budget("tenant=a|daily")
    assert await version() == first
    await client.store.set_budget(budget("tenant=*", 6, zone="Asia/Tokyo"))
    second = await version()
    assert second > first
    await client.store.set_budget(budget("tenant=b", 6))
    third = await version()
    assert third > second
    await client.store.set_budget(budget("tenant=b", 6, zone="Asia/Tokyo"))
    fourth = await version()
    assert fourth > third
    await client.store.remove_budget("tenant=b|daily")
    assert await version() == fourth
    await client.store.remove_budget("tenant=*|daily")
    last, forms = await client.store.forms()
    assert last > fourth
    assert forms == []


async def test_a_zone_edit_makes_old_requests_stale_until_the_index_follows(client: Client) -> None:
    await client.set(budget("tenant=acme", 100))
    stale = client.index.version
    await client.store.set_budget(budget("tenant=acme", 100, zone="Asia/Tokyo"))
    with pytest.raises(StoreError):
        await client.reserve("a", forms_version=stale)
    await client.refresh()
    assert (await client.reserve("a")).states[0].counter == "tenant=acme|daily|Asia/Tokyo|1767193200"


async def test_budgets_come_back_whole_and_in_order(client: Client) -> None:
    rich = Budget(
        scope="tenant=b",
        limit_coins=Decimal("1e3"),
        period="7d",
        zone="Europe/Berlin",
        alert_at=(0.5, 1.0),
        enabled=False,
    )
    exempt = budget("tenant=a", None)
    await client.store.set_budget(rich)
    await client.store.set_budget(budget("tenant=a", 7))
    await client.store.set_budget(exempt)
    assert await client.store.budgets() == [exempt, rich]


async def test_budgets_are_found_by_their_keys(client: Client) -> None:
    for scope in ("tenant=a", "tenant=b", "tenant=b,model=*"):
        await client.store.set_budget(budget(scope, 7))
    found = await client.store.budgets_of(("tenant=b|daily", "tenant=b|daily", "tenant=b|monthly", "tenant=a|daily"))
    assert sorted(each.key for each in found) == ["tenant=a|daily", "tenant=b|daily"]
    assert await client.store.budgets_of(()) == []
    assert await client.store.budget("tenant=a|daily") == budget("tenant=a", 7)
    await client.store.remove_budget("tenant=a|daily")
    assert await client.store.budget("tenant=a|daily") is None
    assert await client.store.budget("tenant=\0|daily") is None


async def test_budgets_are_listed_in_pages_by_key(client: Client) -> None:
    names = [f"tenant=t{number:02d}" for number in range(25)]
    for name in names:
        await client.store.set_budget(budget(name, 1))
    seen: list[str] = []
    while page := await client.store.budgets(after=f"{seen[-1]}|daily" if seen else "", limit=10):
        assert len(page) <= 10
        seen += [str(each.scope) for each in page]
    assert seen == names
    assert await client.store.budgets(limit=0) == []
    assert await client.store.budgets(limit=-1) == []
    assert [str(each.scope) for each in await client.store.budgets(after="tenant=t23|")] == names[23:]
    assert [str(each.scope) for each in await client.store.budgets(after="tenant=t23\0")] == names[23:]


async def test_budgets_whose_scope_has_a_text_in_it_are_found(client: Client) -> None:
    for scope in ("tenant=daily", "tenant=acme", "tenant=acme,model=*", "global"):
        await client.store.set_budget(budget(scope, 7))

    async def found(text: str, after: str = "", limit: int | None = None) -> list[str]:
        return [str(each.scope) for each in await client.store.budgets(contains=text, after=after, limit=limit)]

    assert await found("daily") == ["tenant=daily"]
    assert await found("acme") == ["tenant=acme,model=*", "tenant=acme"]
    assert await found("acme", limit=1) == ["tenant=acme,model=*"]
    assert await found("acme", after="tenant=acme,model=*|daily") == ["tenant=acme"]
    assert await found("=*") == ["tenant=acme,model=*"]
    assert await found("%") == await found("\0") == await found("ü") == await found("|") == []


async def test_removing_a_budget_says_whether_there_was_one(client: Client) -> None:
    await client.store.set_budget(budget("tenant=a", 7))
    assert await client.store.remove_budget("tenant=a|daily")
    assert not await client.store.remove_budget("tenant=a|daily")
    assert await client.store.budgets() == []


async def test_status_shows_the_lines_that_bind_and_holds_nothing(client: Client) -> None:
    client.declare(budget("tenant=*", 1000), budget("global", 5000))
    await client.reserve("a", 300)
    for _ in range(2):
        states = {s.scope: (s.limit_nano_usd, s.spent_nano_usd, s.held_nano_usd) for s in await client.status()}
        assert states == {"tenant=acme": (1000, 0, 300), "global": (5000, 0, 300)}
    assert await client.spent_held_of("other") == {"tenant=other": (0, 0), "global": (0, 300)}


async def test_status_computes_windows_that_were_not_sent(client: Client) -> None:
    client.declare(budget("tenant=*", 1000))
    (state,) = await client.store.status(client.matches(), {}, (1, 1))
    assert state.limit_nano_usd == 1000


KEY = KeyRow(
    id="key_1",
    sha256="ab" * 32,
    tenant="acme",
    user="u",
    team="t",
    tags=("x", "y"),
    models=("gpt-4o",),
    expires_at_s=1.5,
)


async def test_keys_are_found_by_digest_and_listed_by_id(client: Client) -> None:
    other = KeyRow(id="key_0", sha256="cd" * 32, tenant="other")
    await client.store.put_key(KEY)
    await client.store.put_key(other)
    assert await client.store.keys() == [other, KEY]
    assert await client.store.find_key("ab" * 32) == KEY
    assert await client.store.find_key("ef" * 32) is None


async def test_a_key_is_replaced_by_its_id(client: Client) -> None:
    await client.store.put_key(KEY)
    await client.store.put_key(msgspec.structs.replace(KEY, revoked=True))
    assert (await client.store.find_key(KEY.sha256) or KEY).revoked
    await client.store.put_key(msgspec.structs.replace(KEY, sha256="ef" * 32))
    assert await client.store.find_key("ab" * 32) is None
    assert len(await client.store.keys()) == 1


async def test_two_keys_cannot_have_one_secret(client: Client) -> None:
    await client.store.put_key(KEY)
    with pytest.raises(StoreError, match="key_2"):
        await client.store.put_key(msgspec.structs.replace(KEY, id="key_2"))
    assert await client.store.keys() == [KEY]


async def test_ping_and_a_second_open_do_no_harm(client: Client) -> None:
    await client.settle("a")
    await client.store.ping()
    await client.store.open()
    assert (await client.store.totals()).calls == 1
