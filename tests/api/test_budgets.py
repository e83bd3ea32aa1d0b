"""Budgets: of a key in the guides' shape, and of any scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from askii_middleware import Budget, BudgetExceededError

from ..support.service import both_stores
from .support import bench

LIMIT = {"key_id": "k1", "max_budget": 0.01, "alert_threshold": 0.5, "period": "daily", "enabled": True}


@both_stores
async def test_a_keys_budget_is_set_shown_and_enforced(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1")
        put = await b.ask("PUT", "/api/billing/budget/k1", json=LIMIT)
        assert put.status_code == 200, put.text
        await b.use(key="k1", tokens=6000)
        assert await b.get("/api/billing/budget/k1", headers=b.bearer("k1")) == {
            **LIMIT,
            "source": "store",
            "zone": "UTC",
            "current_spend": 0.006,
            "remaining": 0.004,
            "can_make_request": True,
            "alert_triggered": True,
            "limit_usd": "0.01",
            "limit_coins": "10000",
            "spent_usd": "0.006",
            "spent_coins": "6000",
            "held_usd": "0",
            "remaining_usd": "0.004",
            "remaining_coins": "4000",
            "resets_at": "2026-01-02T00:00:00Z",
        }
        await b.use(key="k1", tokens=4000)
        spent = await b.get("/api/billing/budget/k1")
        assert (spent["remaining"], spent["can_make_request"]) == (0.0, False)
        with pytest.raises(BudgetExceededError):
            async with b.tracker.track_tokens("acme", "big", key="k1", expected_input_tokens=1, max_output_tokens=1):
                pass


async def test_without_a_budget_there_is_no_limit(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        await b.use(key="k1", tokens=5)
        found = await b.get("/api/billing/budget/k1")
        assert (found["max_budget"], found["remaining"], found["enabled"], found["source"]) == (None, None, False, None)
        assert (found["current_spend"], found["can_make_request"], found["alert_triggered"]) == (0.000005, True, False)


async def test_no_limit_exempts_from_the_budget_of_each_key(tmp_path: Path) -> None:
    async with bench(tmp_path, budgets=[Budget(scope="key=*", limit_usd="0.001", alert_at=(0.9,))]) as b:
        await b.key("k1")
        found = await b.get("/api/billing/budget/k1")
        assert (found["max_budget"], found["source"], found["alert_threshold"]) == (0.001, "config", 0.9)
        await b.ask("PUT", "/api/billing/budget/k1", json={**LIMIT, "max_budget": None})
        found = await b.get("/api/billing/budget/k1")
        assert (found["max_budget"], found["remaining"], found["enabled"], found["source"]) == (
            None,
            None,
            True,
            "store",
        )


async def test_a_disabled_budget_shows_its_limit_and_refuses_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        await b.use(key="k1", tokens=20_000)
        put = (await b.ask("PUT", "/api/billing/budget/k1", json={**LIMIT, "enabled": False})).json()
        assert (put["max_budget"], put["enabled"], put["current_spend"], put["can_make_request"]) == (
            0.01,
            False,
            0.02,
            True,
        )


async def test_of_several_periods_the_tightest_is_shown_or_the_one_asked_for(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        await b.ask("PUT", "/api/billing/budget/k1", json={**LIMIT, "max_budget": 5, "period": "monthly"})
        await b.ask("PUT", "/api/billing/budget/k1", json=LIMIT)
        assert (await b.get("/api/billing/budget/k1"))["period"] == "daily"
        monthly = await b.get("/api/billing/budget/k1?period=monthly")
        assert (monthly["period"], monthly["max_budget"]) == ("monthly", 5.0)
        weekly = await b.get("/api/billing/budget/k1?period=weekly")
        assert (weekly["period"], weekly["max_budget"], weekly["enabled"]) == ("weekly", None, False)


async def test_what_else_refuses_a_key_shows_in_its_budget(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        limit = {"scope": "tenant=acme", "limit_usd": 0}
        for method, path, body in (
            ("POST", "/api/tenants/acme/suspend", {}),
            ("PUT", "/api/billing/budgets", limit),
            ("DELETE", "/api/keys/k1", None),
        ):
            assert (await b.get("/api/billing/budget/k1"))["can_make_request"] is True
            assert (await b.ask(method, path, json=body)).status_code == 200
            assert (await b.get("/api/billing/budget/k1"))["can_make_request"] is False
            await b.ask("POST", "/api/tenants/acme/resume")
            await b.ask("DELETE", "/api/billing/budgets?scope=tenant%3Dacme")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"key_id": "k2"}, "key_id"),
        ({"max_budget": -1}, "max_budget"),
        ({"max_budget": 1e300}, "max_budget"),
        ({"max_budget": True}, "max_budget"),
        ({"alert_threshold": 1.1}, "alert_threshold"),
        ({"period": "hourly"}, "period"),
        ({"enabled": "yes"}, "enabled"),
        ({"limit": 1}, "limit"),
    ],
)
async def test_what_is_no_budget_is_refused_by_field(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        answer = await b.ask("PUT", "/api/billing/budget/k1", json={**LIMIT, **change})
        assert answer.status_code == 422
        assert {wrong["name"].partition(".")[0] for wrong in answer.json()["error"]["fields"]} == {field}


# Any scope ------------------------------------------------------------------------------------------------------------


@both_stores
async def test_budgets_of_any_scope_are_set_listed_and_removed(kind: str, tmp_path: Path) -> None:
    declared = [Budget(scope="tenant=*", limit_usd="1.5"), Budget(scope="global", limit_coins=7, period="monthly")]
    async with bench(tmp_path, kind, budgets=declared) as b:
        body = {"scope": "tenant=acme,model=gpt-4o", "limit_usd": "0.000000001", "alert_at": [0.8, 1.0]}
        put = await b.ask("PUT", "/api/billing/budgets", json=body)
        expected = {
            "scope": "tenant=acme,model=gpt-4o",
            "period": "daily",
            "limit_usd": "0.000000001",
            "limit_coins": None,
            "zone": "UTC",
            "alert_at": [0.8, 1.0],
            "soft": False,
            "max_values": None,
            "enabled": True,
            "source": "store",
        }
        assert (put.status_code, put.json()) == (200, expected)
        await b.ask("PUT", "/api/billing/budgets", json={"scope": "tenant=*", "limit_usd": 2})
        found = await b.get("/api/billing/budgets")
        assert [
            (each["scope"], each["limit_usd"], each["limit_coins"], each["source"]) for each in found["budgets"]
        ] == [
            ("global", None, "7", "config"),
            ("tenant=*", "2", None, "store"),
            ("tenant=acme,model=gpt-4o", "0.000000001", None, "store"),
        ]
        assert found["next"] is None
        removed = (await b.ask("DELETE", "/api/billing/budgets?scope=tenant%3D*")).json()
        assert (removed["removed"], removed["now"]["limit_usd"], removed["now"]["source"]) == (True, "1.5", "config")
        assert (await b.ask("DELETE", "/api/billing/budgets?scope=tenant%3D*")).status_code == 404


async def test_budgets_come_in_pages(tmp_path: Path) -> None:
    async with bench(tmp_path, budgets=[Budget(scope=f"tenant=t{n}", limit_usd=n) for n in range(5)]) as b:
        first = await b.get("/api/billing/budgets?limit=2")
        assert [each["limit_usd"] for each in first["budgets"]] == ["0", "1"]
        last = await b.get("/api/billing/budgets", params={"limit": 3, "after": first["next"]})
        assert [each["limit_usd"] for each in last["budgets"]] == ["2", "3", "4"]
        assert last["next"] is None
        one = await b.get("/api/billing/budgets", params={"scope": "tenant=t3"})
        assert [each["scope"] for each in one["budgets"]] == ["tenant=t3"]


async def test_a_scopes_lines_are_shown_in_both_currencies(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.use(tokens=250_000)
        found = await b.get("/api/billing/budgets/status", params={"scope": "tenant=acme"})
        (line,) = found["budgets"]
        assert (found["can_make_request"], line["source"], line["status"]) == (True, "config", "ok")
        assert (line["limit_usd"], line["spent_usd"], line["remaining_usd"]) == ("1", "0.25", "0.75")
        assert (line["limit_coins"], line["spent_coins"], line["remaining_coins"]) == ("1000000", "250000", "750000")
        assert (await b.ask("GET", "/api/billing/budgets/status?scope=nothing%3D1")).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {"scope": "planet=mars", "limit_usd": 1},
        {"scope": "tenant=acme", "limit_usd": 1, "limit_coins": 1},
        {"scope": "tenant=acme", "limit_usd": "1e400"},
        {"scope": "tenant=acme", "limit_usd": 10_000_000_000},
        {"scope": "tenant=acme", "limit_usd": "NaN"},
        {"scope": "tenant=acme", "limit_usd": "Infinity"},
        {"scope": "tenant=acme", "zone": "Mars/Base"},
        {"scope": "tenant=acme", "zone": "../../etc/passwd"},
        {"scope": "tenant=acme", "alert_at": [0]},
        {"limit_usd": 1},
    ],
)
async def test_what_is_no_budget_of_a_scope_is_refused(body: dict[str, Any], tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("PUT", "/api/billing/budgets", json=body)
        assert answer.status_code == 422, answer.text
