"""What was spent, exactly, and what would still fit."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget, Scope
from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.errors import ConfigurationError
from askii_middleware.identity import Identity
from askii_middleware.tracker import CostTracker

from .support.service import NOW_S, Clock, amounts, both_stores, opened, records_of

DAY = datetime(2026, 1, 1, tzinfo=UTC)


async def some_spend(tracker: CostTracker, clock: Clock) -> None:
    """acme: 0.0011 USD today in two models, 0.5 USD yesterday; other: 0.002 USD."""
    clock.now_s = NOW_S - 3600
    await tracker.record_usage("acme", "big", input_tokens=500_000)
    clock.now_s = NOW_S + 3 * 3600
    await tracker.record_usage("acme", "big", input_tokens=600, output_tokens=200)
    await tracker.record_usage(Identity(tenant="acme", user="u1", team="t1", key="k1"), "small", input_tokens=1000)
    await tracker.record_usage("other", "big", output_tokens=1000)


@both_stores
async def test_spend_of_a_period_is_the_sum_of_its_records(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_spend(tracker, clock)
        spent = await tracker.get_spend("tenant=acme", "daily")
        assert (spent.cost_nano_usd, spent.total_cost, spent.total_cost_coins) == (1_100_000, 0.0011, 1100.0)
        assert (spent.total_requests, spent.total_tokens) == (2, 1800)
        assert spent.by_model == {"big": 0.001, "small": 0.0001}
        assert spent.nano_usd_by_model == {"big": 1_000_000, "small": 100_000}
        assert spent.tokens_by_model == {"big": 800, "small": 1000}
        assert spent.by_provider == {"": 0.0011}
        assert (spent.period_start, spent.period_end) == (DAY, datetime(2026, 1, 2, tzinfo=UTC))
        total = await tracker.get_spend(Scope(tenant="acme"), "total")
        assert total.cost_nano_usd == 501_100_000
        assert total.cost_nano_usd == sum(
            record.cost_nano_usd for record in await records_of(tracker) if record.tenant == "acme"
        )


@both_stores
async def test_spend_of_keys_users_and_teams_and_between_moments(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_spend(tracker, clock)
        for scope in ("key=k1", "user=u1", "team=t1"):
            assert (await tracker.get_spend(scope, "monthly")).cost_nano_usd == 100_000
        before = await tracker.get_spend("tenant=acme", start=datetime(2025, 12, 31), end=DAY)  # noqa: DTZ001 - naive
        assert before.cost_nano_usd == 500_000_000
        since = await tracker.get_spend("tenant=acme", start=DAY)
        assert since.cost_nano_usd == 1_100_000
        assert (await tracker.get_spend("tenant=nobody", "daily")).total_requests == 0


@both_stores
async def test_spend_of_one_model_or_provider_is_a_part_of_the_whole(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_spend(tracker, clock)
        await tracker.record_usage("acme", "small", input_tokens=20, provider="openai")
        for scope, nano_usd in (
            ("tenant=acme", 1_102_000),
            ("tenant=acme,model=big", 1_000_000),
            ("tenant=acme,model=openai/SMALL", 102_000),
            ("tenant=acme,provider=openai", 2000),
            ("tenant=acme,model=small,provider=openai", 2000),
            ("tenant=acme,model=big,provider=openai", 0),
            ("user=u1,model=small", 100_000),
            ("user=u1,model=big", 0),
        ):
            spent = await tracker.get_spend(scope, "daily")
            assert (spent.cost_nano_usd, spent.total_tokens > 0) == (nano_usd, nano_usd > 0), scope


@pytest.mark.parametrize(
    ("scope", "options", "error"),
    [
        ("tenant=acme,team=t1", {"period": "daily"}, ValueError),
        ("end_user=u1", {"period": "daily"}, ValueError),
        ("tenant=acme", {"period": "daily", "zone": "Mars/Olympus"}, ConfigurationError),
        ("tenant=acme", {"start": DAY.date(), "end": date(2025, 12, 31)}, ValueError),
        ("tenant=acme,tag=x", {"period": "daily"}, ValueError),
        ("acme", {"period": "daily"}, ConfigurationError),
        ("tenant=acme", {}, ValueError),
        ("tenant=acme", {"period": "daily", "start": DAY}, ValueError),
        ("tenant=acme", {"start": DAY, "end": DAY}, ValueError),
        ("tenant=acme", {"start": date.max, "end": date.max}, ValueError),
        ("tenant=acme", {"period": "hourly"}, ConfigurationError),
    ],
)
async def test_questions_that_have_no_answer_are_refused(
    scope: str, options: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(error):
            await tracker.get_spend(scope, **options)


@both_stores
async def test_a_tenants_stats_have_the_guides_names(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    options: dict[str, Any] = {"clock": clock, "fallbacks": {"*": ["small"]}}
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd=1)], **options) as tracker:
        await some_spend(tracker, clock)
        monkeypatch.setenv(RATE_VARIABLE, "1000")
        assert await tracker.get_tenant_stats("acme") == {
            "tenant_id": "acme",
            "total_tokens_by_model": {"big": 800, "small": 1000},
            "daily_cost_usd": 0.0011,
            "remaining_budget_usd": 0.9989,
            "daily_cost_askii_coins": 1.1,
            "remaining_budget_askii_coins": 998.9,
            "fallback_model": "small",
        }
        other = await tracker.get_tenant_stats("other")
        assert (other["remaining_budget_usd"], other["remaining_budget_askii_coins"]) == (float("inf"), float("inf"))


async def test_a_tenant_with_a_strange_name_has_stats_of_its_own(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as tracker:
        for tenant in ("*", "a,b=c", "tenant=acme", "é%20|"):
            await tracker.record_usage(tenant, "big", input_tokens=1000)
            stats = await tracker.get_tenant_stats(tenant)
            assert (stats["daily_cost_usd"], stats["remaining_budget_usd"]) == (0.001, 0.999)


async def test_a_budget_that_another_process_has_set_counts_in_the_stats(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path, budgets=[]) as ours, opened("sqlite", tmp_path, budgets=[]) as theirs:
        assert (await ours.get_tenant_stats("acme"))["remaining_budget_usd"] == float("inf")
        await theirs.budget_enforcer.set_budget(Budget(scope="tenant=acme", limit_usd=2, period="monthly"))
        assert (await ours.get_tenant_stats("acme"))["remaining_budget_usd"] == 2.0
        assert not await ours.check_budget("tenant=acme", 3)


@both_stores
async def test_checking_a_budget_decides_like_an_admission_and_holds_nothing(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.001")]) as tracker:
        assert await tracker.check_budget("tenant=acme", "0.001")
        assert not await tracker.check_budget("tenant=acme", "0.001000001")
        assert await tracker.check_budget(Scope(tenant="other"), 5)
        assert await amounts(tracker) == (0, 0)
        await tracker.record_usage("acme", "big", input_tokens=1000)
        assert await tracker.check_budget("tenant=acme", 0)
        assert not await tracker.check_budget("tenant=acme", "0.000000001")
        for amount in (-1, "lots", float("nan")):
            with pytest.raises(ValueError, match="is not"):
                await tracker.check_budget("tenant=acme", amount)


@both_stores
async def test_a_scopes_budgets_are_summed_up_in_one_status(kind: str, tmp_path: Path) -> None:
    budgets = [
        Budget(scope="global", limit_usd="0.01", soft=True),
        Budget(scope="team=red", limit_usd=None, period="yearly"),
        Budget(scope="team=red", limit_usd="0.02"),
        Budget(scope="team=red", limit_usd="0.05", period="monthly"),
    ]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        who = Identity(tenant="acme", team="red")
        await tracker.record_usage(who, "big", input_tokens=17_000)
        summary = await tracker.get_budget_status(Scope(team="red"))
        assert (summary.scope, summary.status, summary.can_make_request) == ("team=red", "exceeded", True)
        assert summary.tightest is not None
        assert (summary.tightest.period, summary.tightest.remaining_usd) == ("daily", Decimal("0.003"))
        assert len(summary.budgets) == 4
        used = await tracker.check_budget_utilization("team=red")
        assert [(u.scope, u.period, u.status, u.spent_share, u.held_share) for u in used] == [
            ("global", "daily", "exceeded", 1.7, 0.0),
            ("team=red", "daily", "caution", 0.85, 0.0),
            ("team=red", "monthly", "ok", 0.34, 0.0),
        ]
        assert used[1].message == "caution: 85.0 % of the daily budget of team=red is spent, 0.0 % held"
        block = tracker.track_tokens(who, "big", expected_input_tokens=3000, max_output_tokens=0)
        async with block as usage:
            held = (await tracker.check_budget_utilization("team=red"))[1]
            assert (held.utilization_percent, held.held_share, held.status) == (100.0, 0.15, "caution")
            assert not (await tracker.get_budget_status("team=red")).can_make_request
            usage["input_tokens"] = 0
        assert (await tracker.get_budget_status("team=red")).can_make_request


async def test_without_budgets_nothing_is_used_and_everything_can_be_asked(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[]) as tracker:
        summary = await tracker.get_budget_status("user=ann,model=big")
        assert (summary.scope, summary.status, summary.can_make_request) == ("user=ann,model=big", "ok", True)
        assert (summary.tightest, summary.budgets) == (None, ())
        assert await tracker.check_budget_utilization("user=ann") == []


@both_stores
async def test_a_cost_report_has_both_currencies_and_a_breakdown(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with opened(kind, tmp_path, clock=clock) as tracker:
        await some_spend(tracker, clock)
        monkeypatch.setenv(RATE_VARIABLE, "1234567")
        report = await tracker.cost_report({"Acme": "tenant=acme", "Other": Scope(tenant="other")})
        assert report == {
            "total_cost_usd": 0.0031,
            "total_cost_askii_coins": 3827.1577,
            "exchange_rate": 1234567.0,
            "breakdown": [
                {
                    "scope": "Acme",
                    "model": "big",
                    "cost_usd": 0.001,
                    "cost_askii_coins": 1234.567,
                    "tokens": 800,
                },
                {
                    "scope": "Acme",
                    "model": "small",
                    "cost_usd": 0.0001,
                    "cost_askii_coins": 123.4567,
                    "tokens": 1000,
                },
                {
                    "scope": "Other",
                    "model": "big",
                    "cost_usd": 0.002,
                    "cost_askii_coins": 2469.134,
                    "tokens": 1000,
                },
            ],
        }
        listed = await tracker.cost_report(["tenant=acme", Scope(tenant="other")], "total")
        assert {row["scope"] for row in listed["breakdown"]} == {"tenant=acme", "tenant=other"}


@both_stores
async def test_deployments_are_filtered_by_what_fits_and_say_why_not(kind: str, tmp_path: Path) -> None:
    budgets = [
        Budget(scope="tenant=acme", limit_usd="0.001"),
        Budget(scope="tenant=*,deployment=eu", limit_usd="0.0001"),
    ]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        eu = {"model": "small", "deployment": "eu"}
        us = {"model": "small", "deployment": "us"}
        allowed, reasons = await tracker.filter_deployments(
            "acme", ["big", "small", "free", "nobody-knows", eu, us], input_tokens=2000, output_tokens=0
        )
        assert allowed == ["small", "free", us]
        assert set(reasons) == {"big", "nobody-knows", "eu"}
        assert "budget of tenant=acme is spent" in reasons["big"]
        assert "no price" in reasons["nobody-knows"]
        assert "tenant=acme,deployment=eu" in reasons["eu"]
        assert (await amounts(tracker))[1] == 0
        async with tracker.track_tokens("acme", "big", expected_input_tokens=950, max_output_tokens=0) as usage:
            _, reasons = await tracker.filter_deployments(
                Identity(tenant="acme"), ["small"], input_tokens=2000, output_tokens=0
            )
            assert "is held by running calls" in reasons["small"]
            usage["input_tokens"] = 0
        with pytest.raises(ValueError, match="input_tokens"):
            await tracker.filter_deployments("acme", ["big"], input_tokens=-1)
        with pytest.raises(ValueError, match="model"):
            await tracker.filter_deployments("acme", [{"deployment": "eu"}])
