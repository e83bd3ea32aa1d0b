"""Keys in synchronous code: cost, budget, usage, spend and standing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.budgets import Budget
from askii_middleware.compat import BudgetPeriod, CostTracker
from askii_middleware.errors import ConfigurationError, UnknownModelError
from askii_middleware.stores.base import KeyRow
from askii_middleware.tracker import CostTracker as Core

from ..support.service import NOW_S, Clock, make_tracker, url_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def tracker(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[CostTracker]:
    keys = [KeyRow(id="theirs", sha256="0" * 64, tenant="acme", user="ann", team="red", tags=("t1",))]
    made = CostTracker(tracker=make_tracker(url_of(request.param, tmp_path), clock=clock, keys=keys, budgets=()))
    yield made
    made.close()


def use(tracker: CostTracker, key_id: str, usd: float, model: str = "big") -> None:
    """A call of so many USD: a token of `big` costs a millionth of one."""
    tracker.record_usage(key_id=key_id, model=model, provider="openai", input_tokens=round(usd * 1_000_000))


def test_a_cost_is_calculated_without_opening_the_ledger(tmp_path: Path) -> None:
    tracker = CostTracker(tracker=make_tracker(url_of("sqlite", tmp_path)))
    assert tracker.calculate_cost(model="big", input_tokens=800, output_tokens=50) == 0.0009
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownModelError, match="nothing-like-it"):
        tracker.calculate_cost("nothing-like-it", 1, 1)
    with pytest.raises(ValueError, match="input_tokens"):
        tracker.calculate_cost("big", -1, 0)


def test_a_key_without_a_budget_may_spend_and_shows_its_day(tracker: CostTracker) -> None:
    assert tracker.check_budget("k", 1_000_000) is True
    use(tracker, "k", 0.25)
    status = tracker.get_budget_status("k")
    assert (status.current_spend, status.max_budget, status.remaining) == (0.25, None, None)
    assert (status.can_make_request, status.alert_triggered, status.alert_sent) == (True, False, False)


def test_a_key_at_its_limit_may_not_go_on_until_the_period_ends(tracker: CostTracker, clock: Clock) -> None:
    tracker.set_budget("k", 1.0, period=BudgetPeriod.DAILY, alert_threshold=0.5)
    assert (tracker.check_budget("k", 1.0), tracker.check_budget("k", 1.000000001)) == (True, False)
    use(tracker, "k", 0.4)
    assert tracker.get_budget_status("k").alert_triggered is False
    use(tracker, "k", 0.2)
    status = tracker.get_budget_status("k")
    assert (status.current_spend, status.current_spend_askii_coins) == (0.6, 600_000)
    assert (status.remaining, status.percent_used, status.period) == (0.4, 60.0, "daily")
    assert (status.alert_threshold, status.alert_triggered, status.alert_sent) == (0.5, True, True)
    use(tracker, "k", 0.4)
    assert tracker.get_budget_status("k").can_make_request is False
    assert tracker.check_budget("k", 0.000000001) is False
    clock.advance(86_400)
    status = tracker.get_budget_status("k")
    assert (status.current_spend, status.can_make_request, status.alert_triggered) == (0.0, True, False)


def test_a_key_is_bound_by_its_tenants_users_and_teams_budgets_too(tracker: CostTracker) -> None:
    async def limit(scope: str, usd: float | None, core: Core) -> None:
        await core.budget_enforcer.set_budget(Budget(scope=scope, limit_usd=usd))

    for scope in ("tenant=acme", "user=ann", "team=red"):
        tracker.run(partial(limit, scope, 1))
        assert tracker.check_budget("theirs", 1.5) is False
        tracker.run(partial(limit, scope, None))
        assert tracker.check_budget("theirs", 1.5) is True


def test_a_key_whose_tenant_is_suspended_or_that_is_revoked_may_not_go_on(tracker: CostTracker) -> None:
    tracker.run(lambda core: core.suspend_tenant("acme", reason="unpaid"))
    assert tracker.check_budget("theirs", 0) is False
    assert tracker.get_budget_status("theirs").can_make_request is False
    tracker.run(lambda core: core.resume_tenant("acme"))
    assert tracker.check_budget("theirs", 0) is True
    tracker.run(lambda core: core.keys.revoke("theirs"))
    assert tracker.check_budget("theirs", 0) is False


def test_a_budget_on_each_key_binds_all_and_one_on_a_tag_those_that_bear_it(tracker: CostTracker) -> None:
    tracker.set_budget("*", 1.0, period="daily", alert_threshold=0.25)
    use(tracker, "k", 0.25)
    assert (tracker.check_budget("k", 0.75), tracker.check_budget("k", 0.76)) == (True, False)
    status = tracker.get_budget_status("k")
    assert (status.max_budget, status.current_spend, status.alert_threshold) == (1.0, 0.25, 0.25)
    assert (status.alert_triggered, status.alert_sent) == (True, True)

    async def on_the_tag(core: Core) -> None:
        await core.budget_enforcer.set_budget(Budget(scope="tag=t1", limit_usd=0.5))

    tracker.run(on_the_tag)
    assert (tracker.check_budget("theirs", 0.6), tracker.check_budget("k", 0.6)) == (False, True)


def test_usage_is_charged_to_the_keys_own_tenant_user_and_team(tracker: CostTracker) -> None:
    record = tracker.record_usage("theirs", "big", "openai", 10, 5, metadata={"route": "/v1"})
    assert (record.tenant, record.key, record.user, record.team) == ("acme", "theirs", "ann", "red")
    assert (record.tags, record.metadata, record.cost_nano_usd) == (("t1",), {"route": "/v1"}, 20_000)
    assert tracker.record_usage("nobodys", "big", input_tokens=1).tenant == "default"


def test_two_calls_with_the_same_request_id_are_two_charges(tracker: CostTracker) -> None:
    for _ in range(2):
        record = tracker.record_usage("k", "big", input_tokens=1000, request_id="chatcmpl-1", session_id="s")
    assert record.metadata == {"request_id": "chatcmpl-1", "session_id": "s"}
    assert tracker.get_spend("k").total_requests == 2


def test_a_disabled_budget_binds_nobody_and_none_is_no_limit(tracker: CostTracker) -> None:
    tracker.set_budget("k", 0.5, enabled=False)
    assert tracker.check_budget("k", 1.0) is True
    tracker.set_budget("k", None)
    assert tracker.check_budget("k", 1.0) is True
    tracker.set_budget("k", 0.5)
    assert tracker.check_budget("k", 1.0) is False
    with pytest.raises(ConfigurationError, match="alert_at"):
        tracker.set_budget("k", 0.5, alert_threshold=2)


def test_spend_is_summed_over_a_period_or_between_dates(tracker: CostTracker, clock: Clock) -> None:
    use(tracker, "k", 0.5)
    clock.advance(3 * 86_400 + 1800)
    use(tracker, "k", 0.25, "small")
    day, month = tracker.get_spend("k", BudgetPeriod.DAILY), tracker.get_spend(key_id="k", period="monthly")
    assert (day.total_cost, day.by_model) == (0.025, {"small": 0.025})
    assert (month.total_cost, month.total_requests, month.total_tokens) == (0.525, 2, 750_000)
    assert month.by_provider == {"openai": 0.525}
    now = datetime.fromtimestamp(clock.now_s, UTC)
    # The hour in which the span begins counts whole.
    late = tracker.get_spend("k", BudgetPeriod.MONTHLY, start_date=now, end_date=now + timedelta(hours=1))
    naive = tracker.get_spend("k", start_date=datetime(2026, 1, 1), end_date=datetime(2026, 1, 2))  # noqa: DTZ001
    assert (late.total_cost, naive.total_cost) == (0.025, 0.5)
    assert tracker.get_spend("k", end_date=datetime.fromtimestamp(NOW_S, UTC)).total_cost == 0
    with pytest.raises(ValueError, match="ends before it begins"):
        tracker.get_spend("k", start_date=now, end_date=now - timedelta(days=1))


async def test_synchronous_methods_work_inside_a_coroutine(tracker: CostTracker) -> None:
    tracker.set_budget("k", 1.0)
    use(tracker, "k", 1.0)
    assert tracker.check_budget("k", 0.1) is False
    assert (await asyncio.to_thread(tracker.get_budget_status, "k")).remaining == 0


@settings(max_examples=25)
@given(
    limit=st.decimals(min_value=0, max_value=1000, places=9),
    costs=st.lists(st.integers(min_value=0, max_value=50_000_000), max_size=5),
    asked=st.decimals(min_value=0, max_value=1000, places=9),
)
def test_a_check_says_whether_spent_and_asked_are_within_the_limit(
    limit: object, costs: list[int], asked: object
) -> None:
    tracker = CostTracker(tracker=make_tracker("memory://", budgets=()))
    try:
        tracker.set_budget("k", limit)  # type: ignore[arg-type]
        for tokens in costs:
            tracker.record_usage("k", "big", input_tokens=tokens)
        limit_nano, asked_nano = int(limit * 10**9), int(asked * 10**9)  # type: ignore[operator]
        fits = sum(costs) * 1000 + asked_nano <= limit_nano and (asked_nano == 0 or limit_nano > 0)
        expected = fits if asked_nano else limit_nano > 0
        assert tracker.check_budget("k", asked) is expected  # type: ignore[arg-type]
    finally:
        tracker.close()
