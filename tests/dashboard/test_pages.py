"""Every page over a real ledger: what it shows, what its forms do, and what it says where there is nothing."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal

import pytest
from starlette.applications import Starlette

from askii_middleware import Budget
from askii_middleware.budgets import Scope
from askii_middleware.dashboard import pages
from askii_middleware.errors import StoreError
from askii_middleware.identity import Identity
from askii_middleware.keys import SECRET_PREFIX
from askii_middleware.model_price import ModelPrice

from .seeded import BUDGETS, seed
from .site import TOKEN, Picky, seen_in, site

PAGES = ("/", "/tenants", "/tenant?name=acme", "/budgets", "/budgets/edit", "/keys", "/keys/new", "/prices")
ALL_PAGES = (*PAGES, "/prices/edit", "/dead-letters", "/live")


@pytest.mark.parametrize("path", ALL_PAGES)
async def test_every_page_works_over_an_empty_ledger(path: str) -> None:
    async with site(budgets=()) as made:
        answer = await made.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/", "Send a call through the middleware"),
        ("/tenants", "Create a key"),
        ("/tenant?name=acme", "Nothing limits this tenant"),
        ("/budgets", "Add a budget for each tenant"),
        ("/keys", "There are no keys yet"),
        ("/prices", "Add a price"),
        ("/dead-letters", "No sink receives the records"),
    ],
)
async def test_a_page_without_content_says_what_to_do(path: str, advice: str) -> None:
    async with site(budgets=(), prices={}) as made:
        assert advice in (await made.get(path)).text


async def test_the_overview_shows_todays_spend_in_usd_and_coins() -> None:
    async with site(budgets=[Budget(scope="global", limit_usd="0.01"), Budget(scope="tenant=*", limit_usd=1)]) as made:
        await made.call("acme", "big", 1000, 100)  # 1,000 x 1,000 + 100 x 10,000 nano-USD
        await made.call("globex", "mini", 1000, 100)  # a tenth
        text = (await made.get("/")).text
    assert "$0.0022" in text  # both together
    assert "2,200 coins" in text
    assert "$0.0020" in text
    assert "2,000 tokens in, 200 out" in text
    assert "22 %" in text  # of the budget on everything
    assert text.index(">acme<") < text.index(">globex<")


async def test_the_live_part_is_sent_only_when_it_has_changed() -> None:
    async with site() as made:
        first = await made.get("/live")
        seen = re.search(r"seen=([0-9a-f]{16})", first.text)
        assert seen is not None
        same = await made.get(f"/live?seen={seen[1]}")
        await made.call()
        other = await made.get(f"/live?seen={seen[1]}")
    assert (same.status_code, same.content) == (204, b"")
    assert other.status_code == 200
    assert "$0.0020" in other.text


async def test_todays_refusals_and_fallbacks_are_on_the_overview() -> None:
    async with site() as made:
        made.tracker.metrics.refused("tenant", "spent")
        made.tracker.metrics.refused("key", "spent")
        made.tracker.metrics.fell_back("big", "mini", "budget")
        text = (await made.get("/")).text
    assert "2 refused." in text
    assert "2 for want of money" in text
    assert "big \N{RIGHTWARDS ARROW} mini 1\N{MULTIPLICATION SIGN}" in text


async def test_a_tenants_page_has_its_days_models_and_calls() -> None:
    async with site() as made:
        await made.tracker.record_usage(Identity(tenant="acme", user="ada"), "big", input_tokens=7, output_tokens=1)
        await made.call("other", "mini")
        text = (await made.get("/tenant?name=acme")).text
    assert text.count('scope="row" class="num">20') == 30  # a row for each day
    assert "2025-12-03" in text
    assert "2026-01-01" in text
    assert "$0.000017" in text
    assert "ada" in text
    assert "mini" not in text


async def test_a_tenant_is_suspended_and_resumed_by_forms() -> None:
    async with site() as made:
        answer = await made.post("/tenant/suspend", tenant="a/b c", reason="unpaid")
        assert answer.headers["location"] == "/askii/tenant?name=a%2Fb+c&done=suspended"
        assert made.tracker.tenants.find("a/b c") is not None
        text = (await made.client.get(answer.headers["location"])).text
        assert "unpaid" in text
        answer = await made.post("/tenant/resume", tenant="a/b c")
        assert made.tracker.tenants.find("a/b c") is None
        assert "may make calls again" in (await made.client.get(answer.headers["location"])).text


async def test_a_budget_is_added_edited_and_removed_by_forms() -> None:
    async with site() as made:
        fields = {"scope": "tenant=acme", "period": "monthly", "unit": "usd", "limit": "12.5", "enabled": "1"}
        answer = await made.post("/budgets", **fields, alert_at="80, 100 %", zone="Europe/Berlin")
        assert answer.headers["location"] == "/askii/budgets?done=set&find=tenant%3Dacme"
        (budget,) = await made.tracker.store.budgets()
        assert budget.terms.limit_nano_usd == 12_500_000_000
        assert budget.alert_at == (0.8, 1.0)
        assert budget.zone == "Europe/Berlin"

        form = (await made.get("/budgets/edit?scope=tenant%3Dacme&period=monthly")).text
        for value in ('value="12.5"', 'value="80, 100"', 'value="Europe/Berlin"'):
            assert value in form
        changed = {**fields, "unit": "coins", "limit": "1_000_000", "soft": "1", "fixed": "1", "seen": seen_in(form)}
        await made.post("/budgets", **changed)
        (budget,) = await made.tracker.store.budgets()
        assert (budget.terms.limit_coins, budget.soft, budget.limit_usd) == ("1000000", True, None)

        answer = await made.post("/budgets/remove", scope="tenant=acme", period="monthly")
        assert answer.headers["location"] == "/askii/budgets?done=removed"
        assert await made.tracker.store.budgets() == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"limit": "ten"}, "is not a number"),
        ({"limit": "-1"}, "at least 0"),
        ({"limit": ""}, "give an amount"),
        ({"scope": ""}, "say what the budget is for"),
        ({"scope": "colour=red"}, "colour=red"),
        ({"period": "hourly"}, "hourly"),
        ({"zone": "Mars/Base"}, "Mars/Base"),
        ({"alert_at": "120"}, "is not a percentage"),
        ({"alert_at": "nan"}, "is not a percentage"),
        ({"max_values": "many"}, "is not a whole number"),
        ({"unit": "eur"}, "choose USD"),
    ],
)
async def test_a_wrong_budget_is_told_with_what_was_typed(wrong: dict[str, str], told: str) -> None:
    async with site() as made:
        typed = {"scope": "tenant=acme", "period": "daily", "unit": "usd", "limit": "1", "enabled": "1", **wrong}
        answer = await made.post("/budgets", **typed)
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert told in answer.text
        assert all(f'value="{value}"' in answer.text for name, value in wrong.items() if value and name != "unit")
        assert await made.tracker.store.budgets() == []


async def test_budgets_are_listed_with_their_source_a_page_at_a_time() -> None:
    declared = [Budget(scope=f"tenant=t{n:03}", limit_usd=1) for n in range(60)]
    async with site(budgets=declared) as made:
        await made.tracker.budget_enforcer.set_budget(Budget(scope="tenant=t001", limit_usd="0.000000001"))
        first = (await made.get("/budgets")).text
        assert first.count("configuration</span>") == 49
        assert first.count(">set here<") == 1
        assert "$0.000000001" in first
        after = re.search(r'href="(/askii/budgets\?after=[^"]+)"', first)
        assert after is not None
        second = (await made.client.get(after[1])).text
        assert second.count("configuration</span>") == 10
        found = (await made.get("/budgets?find=t059")).text
        assert found.count("configuration</span>") == 1


async def test_a_budget_in_use_shows_how_much_of_it_is_used() -> None:
    async with site(budgets=[Budget(scope="tenant=acme", limit_usd="0.004")]) as made:
        await made.call("acme")
        assert "50 %" in (await made.get("/budgets")).text


async def test_a_key_is_made_rotated_and_revoked_and_its_secret_shown_once() -> None:
    async with site() as made:
        answer = await made.post(
            "/keys", tenant="acme", key_id="k1", name="Shop", models="BIG, mini", tags="x", days="1.5"
        )
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        (secret,) = set(re.findall(re.escape(SECRET_PREFIX) + r"[\w-]{43}", answer.text))
        found = await made.tracker.keys.get("k1")
        assert found is not None
        row = found.row
        assert (row.tenant, row.name, row.tags, row.models) == ("acme", "Shop", ("x",), ("big", "mini"))
        assert row.expires_at_s == made.clock() + 1.5 * 86_400
        listed = (await made.get("/keys?tenant=acme")).text
        assert "k1" in listed
        assert secret not in listed

        rotated = await made.post("/keys/rotate", key_id="k1", overlap="3600", seen=seen_in(listed))
        (newer,) = set(re.findall(re.escape(SECRET_PREFIX) + r"[\w-]{43}", rotated.text))
        assert newer != secret
        found = await made.tracker.keys.get("k1")
        assert found is not None
        assert found.row.former_until_s == made.clock() + 3600

        answer = await made.post("/keys/revoke", key_id="k1", tenant="acme")
        assert answer.headers["location"] == "/askii/keys?done=revoked&tenant=acme"
        found = await made.tracker.keys.get("k1")
        assert found is not None
        assert found.row.revoked


@pytest.mark.parametrize(
    "wrong", [{"tenant": ""}, {"days": "soon"}, {"days": "-1"}, {"days": "1e9"}, {"key_id": "a b"}, {"days": "NaN"}]
)
async def test_a_wrong_key_is_told_and_not_made(wrong: dict[str, str]) -> None:
    async with site() as made:
        answer = await made.post("/keys", **{"tenant": "acme", **wrong})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert SECRET_PREFIX not in answer.text
        assert await made.tracker.keys.list() == []


async def test_what_a_key_is_bound_to_says_what_it_is() -> None:
    async with site() as made:
        await made.tracker.keys.create("acme", user="ada", team="core", tags=["batch"], models=["mini"])
        told = re.sub(r"<[^>]*>|\s+", " ", (await made.get("/keys")).text)
        for bound in ("user ada", "team core", "tag batch", "model mini"):
            assert bound in re.sub(" +", " ", told)


async def test_a_tenants_budgets_say_whose_they_are() -> None:
    async with site(budgets=[Budget(scope="global", limit_usd=9), Budget(scope="tenant=*", limit_usd=1)]) as made:
        text = (await made.get("/tenant?name=acme")).text
        assert "<strong>everything, daily" in text
        assert "<strong>this tenant, daily" in text
        assert 'href="/askii/budgets?find=tenant%3Dacme"' in text


async def test_a_key_that_is_not_there_is_not_rotated() -> None:
    async with site() as made:
        assert (await made.post("/keys/rotate", key_id="nobody", overlap="0")).status_code == 404
        assert (await made.post("/keys/rotate", key_id="nobody", overlap="1e400")).status_code == 400
        assert (await made.post("/keys/revoke", key_id="nobody")).headers["location"] == "/askii/keys?done=none"


async def test_keys_come_a_page_at_a_time() -> None:
    async with site() as made:
        for n in range(55):
            await made.tracker.keys.create("acme" if n % 5 else "globex", key_id=f"k{n:02}")
        first = (await made.get("/keys")).text
        assert len(re.findall(r"<code>k\d\d</code>", first)) == 50
        assert 'href="/askii/keys?after=k49"' in first
        second = (await made.get("/keys?after=k49")).text
        assert re.findall(r"<code>(k\d\d)</code>", second) == ["k50", "k51", "k52", "k53", "k54"]
        mine = (await made.get("/keys?tenant=globex")).text
        assert len(re.findall(r"<code>k\d\d</code>", mine)) == 11


async def test_a_price_is_set_by_a_form_and_what_the_form_does_not_show_stays() -> None:
    async with site() as made:
        await made.tracker.price_desk.set(
            {"own": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=2, web_search_usd_per_1k=3)}
        )
        form = (await made.get("/prices/edit?model=own")).text
        assert "web_search_usd_per_1k 3" in form
        answer = await made.post("/prices", model="own", fixed="1", input_usd_per_mtok="0.25")
        assert answer.headers["location"] == "/askii/prices?done=set&find=own"
        prices = {each.model: each.price for each in await made.tracker.price_desk.list()}
        assert prices["own"].input_usd_per_mtok == Decimal("0.25")
        assert prices["own"].output_usd_per_mtok is None
        assert prices["own"].web_search_usd_per_1k == 3
        assert (await made.post("/prices/remove", model="own")).headers["location"] == "/askii/prices?done=removed"
        assert "own" not in {each.model for each in await made.tracker.price_desk.list()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"input_usd_per_mtok": "cheap"},
        {"input_usd_per_mtok": "-1"},
        {"input_usd_per_mtok": ""},
        {"input_usd_per_mtok": "1001"},
        {"input_usd_per_mtok": "Infinity"},
    ],
)
async def test_a_wrong_price_is_told_and_not_set(wrong: dict[str, str]) -> None:
    async with site() as made:
        before = await made.tracker.price_desk.list()
        answer = await made.post("/prices", **{"model": "own", "input_usd_per_mtok": "1", **wrong})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert await made.tracker.price_desk.list() == before


async def test_dead_letters_are_shown_by_sink_and_sent_again() -> None:
    sink = Picky("acme")
    async with site(sinks=[sink]) as made:
        await made.call("acme")
        await made.call("globex")
        text = (await made.get("/dead-letters")).text
        assert "1 dead" in text
        assert "422: external_subscription_id: not found" in text
        assert "1 dead letters" in (await made.get("/")).text
        sink.refused = "nobody"
        answer = await made.post("/dead-letters/retry", sink="billing")
        assert answer.headers["location"] == "/askii/dead-letters?retried=1"
        assert "1 record is due again" in (await made.client.get(answer.headers["location"])).text
        assert await made.tracker.store.dead_letters("billing") == []
        assert (await made.post("/dead-letters/retry", sink="nobody")).status_code == 404


async def test_a_month_of_calls_is_summed_up_the_same_on_all_pages() -> None:
    async with site(budgets=BUDGETS) as made:
        await seed(made.tracker, made.clock)
        report = await made.tracker.get_spend(Scope(tenant="acme"), "daily")
        shown = f"{report.total_cost:.2f}"
        assert f"${shown}" in (await made.get("/")).text
        assert f"${shown}" in (await made.get("/tenant?name=acme")).text
        assert "hooli" in (await made.get("/tenants")).text
        assert "invoice 2025-11 is open" in (await made.get("/tenants")).text


async def test_a_ledger_that_is_away_is_an_error_page_and_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as made:

        async def away(*_: object, **__: object) -> None:
            raise StoreError("connection refused to 10.0.0.7")

        monkeypatch.setattr(made.tracker.store, "spend_over", away)
        answer = await made.get("/")
    assert answer.status_code == 503
    assert "The ledger cannot be reached" in answer.text
    assert "10.0.0.7" not in answer.text


async def test_a_ledger_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_S", 0.02)
    async with site() as made:

        async def hanging(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(made.tracker.store, "spend_over", hanging)
        answer = await asyncio.wait_for(made.get("/"), 5)
    assert answer.status_code == 503
    assert "The ledger cannot be reached" in answer.text


async def test_what_is_not_there_is_an_error_page() -> None:
    async with site() as made:
        for path in ("/tenant?name=", "/budgets/edit?scope=x&period=daily", "/prices/edit?model=nothing"):
            answer = await made.get(path)
            assert answer.status_code == 404, path
            assert "To the overview" in answer.text


async def test_an_address_without_a_page_is_an_error_page_for_whoever_is_signed_in() -> None:
    async with site() as made:
        for path in ("/budget", "/tenants/", "/keys/revoke/all"):
            answer = await made.get(path)
            assert (answer.status_code, "No such page" in answer.text) == (404, True), path
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    async with site(signed_in=False) as made:
        assert "No such page" not in (await made.get("/budget")).text


@pytest.mark.parametrize("mount", ["", "/askii", "/a/b"])
async def test_every_link_stays_below_the_mount_path(mount: str) -> None:
    async with site(mount=mount, signed_in=False) as made:
        answer = await made.client.post(f"{mount}/sign-in", data={"token": TOKEN})
        assert answer.headers["location"] == f"{mount}/"
        assert f"Path={mount or '/'};" in answer.headers["set-cookie"] + ";"
        text = (await made.client.get(f"{mount}/budgets")).text
        links = re.findall(r'(?:href|src|action)="([^"]*)"', text)
        assert len(links) > 10
        assert [link for link in links if not link.startswith((f"{mount}/", "#main"))] == []
        style = next(link for link in links if link.endswith("app.css"))
        assert (await made.client.get(style)).status_code == 200


async def test_the_mount_path_without_its_slash_leads_to_the_overview() -> None:
    async with site() as made:
        scope_path = await made.raw_get("/askii", root_path="/askii", app=Starlette(routes=made.routes))
    assert scope_path == (307, b"")
