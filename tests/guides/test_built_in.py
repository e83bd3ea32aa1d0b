"""What the guides build by hand, as it is built in: budgets of users and teams, utilisation, reports, reminders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import AlertNotice, Budget, BudgetExceededError, CallbackChannel, CostTracker, Identity, Scope

from ..support.service import make_tracker, soon, url_of


@pytest.fixture(params=["memory", "sqlite"])
async def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CostTracker]:
    async with make_tracker(url_of(request.param, tmp_path), budgets=()) as made:
        yield made


async def spend(tracker: CostTracker, usd: float, **identity: Any) -> None:
    block = tracker.track_tokens("acme", "big", expected_input_tokens=round(usd * 1e6), max_output_tokens=1, **identity)
    async with block as usage:
        usage["input_tokens"] = round(usd * 1e6)


async def test_a_users_budget_refuses_what_does_not_fit(tracker: CostTracker) -> None:
    await tracker.budget_enforcer.set_budget(Budget(scope=Scope(user="user123"), limit_usd=10))
    await spend(tracker, 0.5, user="user123")
    (line,) = await tracker.budget_enforcer.status("user=user123")
    assert (line.remaining_coins, line.remaining_usd) == (Decimal(9_500_000), Decimal("9.5"))
    with pytest.raises(BudgetExceededError) as refused:
        await spend(tracker, 9.6, user="user123")
    assert (refused.value.scope, refused.value.max_budget) == ("user=user123", 10_000_000)
    await spend(tracker, 9.6, user="user124")


async def test_a_teams_budget_is_shared_by_its_users_whose_spend_is_known(tracker: CostTracker) -> None:
    await tracker.budget_enforcer.set_budget(Budget(scope=Scope(team="team456"), limit_usd=4))
    await spend(tracker, 1, team="team456", user="user1")
    await spend(tracker, 2, team="team456", user="user2")
    (line,) = await tracker.budget_enforcer.status("team=team456")
    assert (line.limit_coins, line.spent_coins) == (Decimal(4_000_000), Decimal(3_000_000))
    assert [(await tracker.get_spend(f"user={name}", "daily")).total_cost for name in ("user1", "user2")] == [1, 2]
    with pytest.raises(BudgetExceededError, match="team=team456"):
        await spend(tracker, 1.5, team="team456", user="user1")


@pytest.mark.parametrize(("usd", "status"), [(7.9, "ok"), (8, "caution"), (9, "warning"), (10, "exceeded")])
async def test_utilisation_has_the_same_words_at_the_same_shares(tracker: CostTracker, usd: float, status: str) -> None:
    await tracker.budget_enforcer.set_budget(Budget(scope=Scope(user="u"), limit_usd=10))
    await tracker.record_usage(Identity(tenant="acme", user="u"), "big", input_tokens=round(usd * 1e6))
    (found,) = await tracker.check_budget_utilization("user=u")
    assert found.status == status
    assert found.utilization_percent == pytest.approx(usd * 10)


async def test_a_report_has_both_currencies_and_a_breakdown(tracker: CostTracker) -> None:
    await spend(tracker, 1, user="user1")
    await spend(tracker, 2, user="user2")
    report = await tracker.cost_report({"user1": "user=user1", "user2": "user=user2"})
    assert (report["total_cost_askii_coins"], report["total_cost_usd"]) == (3_000_000, 3)
    assert [(line["scope"], line["cost_usd"], line["model"]) for line in report["breakdown"]] == [
        ("user1", 1, "big"),
        ("user2", 2, "big"),
    ]


async def test_deployments_over_budget_are_left_out_with_their_reason(tracker: CostTracker) -> None:
    await tracker.budget_enforcer.set_budget(Budget(scope="provider=openai", limit_usd=0.001))
    deployments = [{"model": "big", "provider": "openai", "deployment": "d1"}, {"model": "big", "deployment": "d2"}]
    allowed, why = await tracker.filter_deployments("acme", deployments, input_tokens=5000, output_tokens=0)
    assert ([each["deployment"] for each in allowed if not isinstance(each, str)], list(why)) == (["d2"], ["d1"])


async def test_a_crossed_threshold_is_told_once_without_a_task_that_asks(tmp_path: Path) -> None:
    told: list[AlertNotice] = []

    async def tell(alert: AlertNotice) -> None:
        told.append(alert)

    budgets = [Budget(scope=Scope(key="k1"), limit_usd=1, alert_at=(0.5,))]
    async with make_tracker(
        url_of("sqlite", tmp_path), budgets=budgets, alert_channels=[CallbackChannel(tell)]
    ) as tracker:
        for _ in range(4):
            await spend(tracker, 0.2, key="k1")
        await soon(lambda: told)
        await tracker.flush()
    assert [alert.scope for alert in told] == ["key=k1"]
