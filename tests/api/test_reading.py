"""Stats, reports, alerts and explanations: exact figures, and only what a caller may see."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware import Budget
from askii_middleware.api.explain import NOT_TOLD, OTHERS_DECIDE

from ..support.service import both_stores
from .support import bench

DAY_S = 86_400


@both_stores
async def test_stats_are_a_tenants_utc_day(kind: str, tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.01"), Budget(scope="global", limit_usd="0.0001", soft=True)]
    async with bench(tmp_path, kind, budgets=budgets, fallbacks={"*": ["small"]}) as b:
        await b.key("k1")
        await b.use(tokens=9)
        b.clock.advance(DAY_S)
        await b.use(tokens=1000, output=250)
        await b.use(model="small", tokens=5000)
        await b.use("globex", tokens=777)
        stats = await b.get("/api/v1/usage/stats", headers=b.bearer("k1"))
        assert stats == {
            "tenant_id": "acme",
            "exchange_rate": 1_000_000.0,
            "current_usage": {
                "tokens_by_model": {"big": 1250, "small": 5000},
                "requests_by_model": {"big": 1, "small": 1},
                "cost_today_usd": 0.002,
                "cost_today_coins": "2000",
                "budget_remaining_usd": 0.008,
                "budget_remaining_coins": "8000",
                "budget_limit_usd": 0.01,
                "budget_utilization_percent": 20.0,
                "budget_period": "daily",
                "budget_resets_at": "2026-01-03T00:00:00Z",
            },
            "model_info": {"primary_model": "small", "fallback_model": "small"},
        }
        assert await b.get("/api/v1/usage/stats?tenant=acme") == stats
        assert (await b.ask("GET", "/api/v1/usage/stats")).status_code == 422


async def test_stats_without_a_budget_have_no_infinity(tmp_path: Path) -> None:
    async with bench(tmp_path, budgets=[]) as b:
        usage = (await b.get("/api/v1/usage/stats?tenant=nobody"))["current_usage"]
        assert (usage["budget_remaining_usd"], usage["budget_limit_usd"], usage["budget_utilization_percent"]) == (
            None,
            None,
            0.0,
        )
        assert (await b.get("/api/v1/usage/stats?tenant=nobody"))["model_info"]["primary_model"] is None


async def test_a_tenant_named_like_the_wildcard_is_a_tenant_like_others(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.use("*", tokens=10)
        await b.use("acme", tokens=1)
        usage = (await b.get("/api/v1/usage/stats?tenant=*"))["current_usage"]
        assert usage["tokens_by_model"] == {"big": 10}


# Reports --------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_report_breaks_a_span_down(kind: str, tmp_path: Path) -> None:
    async with bench(tmp_path, kind) as b:
        await b.key("k1", user="ann")
        await b.use(tokens=1000, key="k1", user="ann")
        b.clock.advance(DAY_S)
        await b.use(model="small", tokens=1000, user="bob")
        await b.use("globex", tokens=7)

        def line(value: str, requests: int, tokens: int, usd: str, coins: str) -> dict[str, object]:
            return {
                "value": value,
                "requests": requests,
                "input_tokens": tokens,
                "output_tokens": 0,
                "cost_usd": usd,
                "cost_askii_coins": coins,
            }

        assert await b.get("/api/billing/report?scope=tenant%3Dacme&start_date=2026-01-01&end_date=2026-01-03") == {
            "scope": "tenant=acme",
            "zone": "UTC",
            "period_start": "2026-01-01T00:00:00Z",
            "period_end": "2026-01-04T00:00:00Z",
            "exchange_rate": 1_000_000.0,
            "total": line("total", 2, 2000, "0.0011", "1100"),
            "by_day": [
                line("2026-01-01", 1, 1000, "0.001", "1000"),
                line("2026-01-02", 1, 1000, "0.0001", "100"),
                line("2026-01-03", 0, 0, "0", "0"),
            ],
            "by_model": [line("big", 1, 1000, "0.001", "1000"), line("small", 1, 1000, "0.0001", "100")],
            "by_provider": [line("", 2, 2000, "0.0011", "1100")],
            "by_user": [line("ann", 1, 1000, "0.001", "1000"), line("bob", 1, 1000, "0.0001", "100")],
            "by_tenant": [],
        }
        everything = await b.get("/api/billing/report")
        assert [each["value"] for each in everything["by_tenant"]] == ["acme", "globex"]
        own = await b.get("/api/billing/report", headers=b.bearer("k1"))
        assert (own["scope"], own["total"]["cost_usd"], own["by_user"], own["by_tenant"]) == ("key=k1", "0.001", [], [])


@pytest.mark.parametrize(
    "query",
    [
        *("scope=model%3Dbig", "scope=nonsense", "zone=Mars", "zone=..%2F..%2Fetc%2Fpasswd"),
        *("end_date=2026-01-01", "start_date=2026-01-02&end_date=2026-01-01", "start_date=2020-01-01", "format=xml"),
    ],
)
async def test_reports_that_cannot_be_made_are_refused(query: str, tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        assert (await b.ask("GET", f"/api/billing/report?{query}")).status_code == 422


# Alerts ---------------------------------------------------------------------------------------------------------------


@both_stores
async def test_a_key_sees_the_alerts_of_its_own_tenant_and_key(kind: str, tmp_path: Path) -> None:
    scopes = ("tenant=*", "key=*", "user=*", "team=*", "global", "tenant=*,user=*", "tenant=*,model=big")
    budgets = [Budget(scope=scope, limit_usd="0.001", alert_at=(0.5,)) for scope in scopes]
    async with bench(tmp_path, kind, budgets=budgets) as b:
        await b.key("k1", user="ann", team="core")
        await b.use(tokens=600, key="k1", user="ann", team="core")
        await b.use(tokens=900, key="k9", user="bob", team="core")
        await b.use("globex", tokens=700, key="k2", user="ann")
        own = (await b.get("/api/billing/alerts", headers=b.bearer("k1")))["alerts"]
        assert {alert["scope"] for alert in own} == {
            *("tenant=acme", "key=k1", "tenant=acme,user=ann", "tenant=acme,model=big"),
        }
        tenant = next(alert for alert in own if alert["scope"] == "tenant=acme")
        assert (tenant["spent_usd"], tenant["limit_usd"], tenant["spent_coins"]) == ("0.0006", "0.001", "600")
        assert (tenant["share"], tenant["utilisation"], tenant["resets_at"]) == (0.5, 0.6, "2026-01-02T00:00:00Z")
        everything = (await b.get("/api/billing/alerts"))["alerts"]
        assert {"global", "user=bob", "tenant=globex"} <= {alert["scope"] for alert in everything}
        assert len((await b.get("/api/billing/alerts?limit=2"))["alerts"]) == 2
        globex = (await b.get("/api/billing/alerts?tenant=globex"))["alerts"]
        assert {alert["tenant"] for alert in globex} == {"globex"}


# Explanations ---------------------------------------------------------------------------------------------------------


@both_stores
async def test_an_explanation_tells_a_key_of_its_own_budgets_only(kind: str, tmp_path: Path) -> None:
    budgets = [
        Budget(scope=scope, limit_usd=limit) for scope, limit in (("tenant=*", 1), ("global", "0.5"), ("user=*", 1))
    ]
    async with bench(tmp_path, kind, budgets=budgets) as b:
        await b.key("k1", user="ann")
        path = "/api/billing/explain?model=big&input_tokens=1000&output_tokens=500"
        fits = await b.get(path, headers=b.bearer("k1"))
        assert (fits["verdict"], fits["called"], fits["hold_usd"], fits["hold_coins"]) == (
            "whole",
            "big",
            "0.002",
            "2000",
        )
        (candidate,) = fits["candidates"]
        assert [line["scope"] for line in candidate["budgets"]] == ["tenant=acme"]
        await b.use("globex", tokens=499_000)
        refused = await b.get(path, headers=b.bearer("k1"))
        assert (refused["verdict"], refused["reason"], refused["deciding"], refused["why"]) == (
            *("refused", "spent", None, OTHERS_DECIDE),
        )
        assert "0.499" not in str(refused)
        told = await b.get(f"{path}&tenant=acme&user=ann&key=k1")
        assert told["deciding"]["scope"] == "global"
        assert told["deciding"]["spent_usd"] == "0.499"


async def test_an_explanation_keeps_an_operators_reason_from_clients(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.key("k1")
        await b.tracker.suspend_tenant("acme", reason="owes us money")
        told = await b.get("/api/billing/explain?model=big", headers=b.bearer("k1"))
        assert (told["verdict"], told["why"]) == ("refused", NOT_TOLD)
        assert "owes" not in str(told)
        assert "owes us money" in (await b.get("/api/billing/explain?model=big&tenant=acme"))["why"]


async def test_a_model_without_a_price_is_named(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        answer = await b.ask("GET", "/api/billing/explain?model=unheard-of&tenant=acme")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "model_not_priced")


async def test_a_tenants_alerts_are_found_behind_a_thousand_of_others(tmp_path: Path) -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=1, alert_at=(0.001,))]
    async with bench(tmp_path, "memory", budgets=budgets, alert_channels=()) as b:
        await b.key("k1")
        await b.use(key="k1")
        for n in range(1001):
            await b.use(f"t{n}")
        for answer in (
            await b.get("/api/billing/alerts", headers=b.bearer("k1")),
            await b.get("/api/billing/alerts?tenant=acme"),
        ):
            assert [alert["tenant"] for alert in answer["alerts"]] == ["acme"]
