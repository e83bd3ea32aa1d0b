"""Budgets at run time: set, shown, removed, and where each comes from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.budgets import Budget, Scope
from askii_middleware.calls import CallSpec
from askii_middleware.errors import BudgetExceededError, ConfigurationError, UnknownModelError
from askii_middleware.identity import Identity
from askii_middleware.tracker import CostTracker

from .support.service import PRICES, Clock, both_stores, opened


async def charge(tracker: CostTracker, usd_per_mille: int, tenant: str = "acme") -> None:
    """Charge so many thousandths of a USD."""
    await tracker.record_usage(tenant, "big", input_tokens=1000 * usd_per_mille)


@both_stores
async def test_a_status_has_exact_amounts_in_both_currencies(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[Budget(scope="tenant=*", limit_usd="0.1")]) as tracker:
        await tracker.record_usage("acme", "small", input_tokens=33_333)
        async with tracker.track_tokens("acme", "small", expected_input_tokens=1, max_output_tokens=0) as usage:
            (line,) = await tracker.budget_enforcer.status("tenant=acme")
            assert (line.scope, line.period, line.source) == ("tenant=acme", "daily", "config")
            assert (line.limit_usd, line.spent_usd, line.held_usd, line.remaining_usd) == (
                Decimal("0.1"),
                Decimal("0.0033333"),
                Decimal("0.0000001"),
                Decimal("0.0966666"),
            )
            assert (line.limit_coins, line.spent_coins, line.held_coins, line.remaining_coins) == (
                Decimal(100_000),
                Decimal("3333.3"),
                Decimal("0.1"),
                Decimal("96666.6"),
            )
            assert line.resets_at == datetime(2026, 1, 2, tzinfo=UTC)
            assert line.utilisation == pytest.approx(0.033334)
            usage["input_tokens"] = 0


@both_stores
async def test_a_limit_changes_at_once_and_the_spend_is_kept(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[]) as tracker:
        enforcer = tracker.budget_enforcer
        await charge(tracker, 5)  # before there is any budget: no counter
        await enforcer.set_daily_budget("acme", 0.010)
        await charge(tracker, 8)
        (line,) = await enforcer.status(Scope(tenant="acme"))
        assert (line.spent_usd, line.remaining_usd, line.source) == (Decimal("0.008"), Decimal("0.002"), "store")
        await enforcer.set_daily_budget("acme", "0.005")
        (line,) = await enforcer.status(Scope(tenant="acme"))
        assert (line.spent_usd, line.remaining_usd) == (Decimal("0.008"), Decimal(0))
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "big", expected_input_tokens=1).__aenter__()
        await enforcer.set_daily_budget("acme", None)
        (line,) = await enforcer.status(Scope(tenant="acme"))
        assert (line.limit_usd, line.remaining_usd, line.limit_coins, line.utilisation) == (None, None, None, 0.0)
        assert line.spent_usd == Decimal("0.008")
        assert await enforcer.remove_budget("tenant=acme")
        assert not await enforcer.remove_budget(Scope(tenant="acme"))
        assert await enforcer.status("tenant=acme") == []


@both_stores
async def test_what_is_set_at_run_time_wins_and_its_removal_returns_to_what_is_declared(
    kind: str, tmp_path: Path
) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd=1), Budget(scope="tenant=*", limit_usd=5)]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        enforcer = tracker.budget_enforcer

        async def shown(tenant: str) -> tuple[object, str]:
            (line,) = await enforcer.status(Scope(tenant=tenant))
            return line.limit_usd, line.source

        await enforcer.set_budget(Budget(scope="tenant=*", limit_usd=7))
        assert await shown("acme") == (1, "config")  # the exact one governs, and that is declared
        assert await shown("other") == (7, "store")
        await enforcer.set_daily_budget("acme", 2)
        assert await shown("acme") == (2, "store")
        await enforcer.set_budget(Budget(scope="tenant=acme", limit_usd=2, enabled=False))
        assert await shown("acme") == (7, "store")
        await enforcer.remove_budget("tenant=acme")
        await enforcer.remove_budget("tenant=*")
        assert await shown("acme") == (1, "config")
        assert await shown("other") == (5, "config")


async def test_every_budget_that_binds_is_shown(tmp_path: Path) -> None:
    budgets = [
        Budget(scope="global", limit_usd=100, period="total"),
        Budget(scope="tenant=*", limit_usd=5),
        Budget(scope="tenant=*", limit_coins="1e7", period="monthly"),
        Budget(scope="team=*", limit_usd=9),
    ]
    async with opened("memory", tmp_path, budgets=budgets) as tracker:
        lines = await tracker.budget_enforcer.status("tenant=acme")
        assert {(line.scope, line.period, line.limit_usd) for line in lines} == {
            ("global", "total", Decimal(100)),
            ("tenant=acme", "daily", Decimal(5)),
            ("tenant=acme", "monthly", Decimal(10)),
        }


EVERYWHERE = [
    *("global", "tenant=acme", "key=k1", "user=ann", "team=red", "end_user=eve", "tag=batch", "model=big"),
    *("provider=openai", "deployment=eu", "tenant=acme,model=big", "team=red,tag=batch", "tenant=acme,key=k1,user=ann"),
]


@both_stores
@pytest.mark.parametrize("text", EVERYWHERE)
async def test_a_budget_on_any_scope_is_set_shown_and_removed(kind: str, text: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, budgets=[]) as tracker:
        enforcer = tracker.budget_enforcer
        await enforcer.set_budget(Budget(scope=text, limit_usd=3, period="weekly", zone="Asia/Kathmandu"))
        (line,) = await enforcer.status(text)
        assert (line.scope, line.period, line.zone, line.limit_usd, line.source) == (
            *(text, "weekly", "Asia/Kathmandu"),
            *(Decimal(3), "store"),
        )
        assert await enforcer.status(Scope(tenant="other", model="small")) == ([line] if text == "global" else [])
        assert await enforcer.remove_budget(text, "weekly")
        assert await enforcer.status(text) == []


@both_stores
async def test_every_scope_of_a_call_is_charged_and_binds_the_next(kind: str, tmp_path: Path) -> None:
    who = Identity(tenant="acme", key="k1", user="ann", team="red", end_user="eve", tags=("batch", "night"))
    budgets = [Budget(scope=text, limit_usd=1) for text in EVERYWHERE if "provider" not in text and "eu" not in text]
    async with opened(kind, tmp_path, budgets=budgets) as tracker:
        await tracker.record_usage(who, "big", input_tokens=7000)
        for budget in budgets:
            lines = {line.scope: line for line in await tracker.budget_enforcer.status(budget.scope)}
            assert lines[str(budget.scope)].spent_usd == Decimal("0.007")


async def test_a_star_stands_for_many_counters_and_has_no_status(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        for scope in ("tenant=*", "tenant=acme,model=*"):
            with pytest.raises(ConfigurationError, match="name one of them"):
                await tracker.budget_enforcer.status(scope)


@both_stores
@pytest.mark.parametrize("spelling", ["openai/GPT-4o-2024-11-20", "gpt-4o", "GPT-4O", "openai/gpt-4o"])
async def test_every_spelling_of_a_model_is_one_budget(kind: str, spelling: str, tmp_path: Path) -> None:
    prices = {"gpt-4o": PRICES["big"]}
    async with opened(kind, tmp_path, budgets=[], prices=prices) as tracker:
        enforcer = tracker.budget_enforcer
        await enforcer.set_budget(Budget(scope=Scope(tenant="acme", model=spelling), limit_usd="0.001"))
        await tracker.record_usage("acme", "gpt-4o-2024-11-20", input_tokens=400)
        for other in (spelling, "gpt-4o"):
            (line,) = await enforcer.status(Scope(tenant="acme", model=other))
            assert (line.scope, line.spent_usd) == ("tenant=acme,model=gpt-4o", Decimal("0.0004"))
            spent = await tracker.get_spend(Scope(tenant="acme", model=other), "daily")
            assert (spent.cost_nano_usd, spent.scope) == (400_000, "tenant=acme,model=gpt-4o")
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "gpt-4o", expected_input_tokens=601).__aenter__()
        assert await enforcer.remove_budget(f"model={spelling},tenant=acme")


async def test_a_price_that_names_no_provider_leaves_the_budgets_on_providers_in_force(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="provider=openai", limit_usd="0.000010")]) as tracker:
        spec = CallSpec(model="big", provider="openai", input_tokens=11, output_tokens=0)
        with pytest.raises(BudgetExceededError):
            await tracker.admit(Identity(tenant="acme"), spec)
        await tracker.admit(Identity(tenant="acme"), replace(spec, input_tokens=10))
        (line,) = await tracker.budget_enforcer.status("provider=openai")
        assert line.held_usd == Decimal("0.000010")


async def test_a_models_status_shows_the_budgets_of_its_provider_too(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="provider=openai", limit_usd=2)]) as tracker:
        assert [line.scope for line in await tracker.budget_enforcer.status("model=gpt-4o")] == ["provider=openai"]
        assert await tracker.budget_enforcer.status("model=gpt-4o,provider=azure") == []


@pytest.mark.parametrize(
    ("mille", "word"), [(0, "ok"), (79, "ok"), (80, "caution"), (90, "warning"), (100, "exceeded"), (300, "exceeded")]
)
async def test_what_is_spent_has_a_word_and_what_is_held_has_none(mille: int, word: str, tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.1")]) as tracker:
        await charge(tracker, mille)
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        assert (line.status, line.spent_share, line.held_share) == (word, mille / 100, 0.0)
        if mille < 80:
            async with tracker.track_tokens("acme", "big", expected_input_tokens=20_000, max_output_tokens=0) as usage:
                (line,) = await tracker.budget_enforcer.status("tenant=acme")
                assert (line.status, line.held_share) == (word, 0.2)
                usage["input_tokens"] = 0


async def test_soft_budgets_alerts_and_bounds_survive_the_store(tmp_path: Path) -> None:
    budget = Budget(scope="tag=*", limit_usd=1, soft=True, alert_at=(0.5, 1.0), max_values=7)
    async with opened("sqlite", tmp_path, budgets=[]) as tracker:
        await tracker.budget_enforcer.set_budget(budget)
        (line,) = await tracker.budget_enforcer.status("tag=x")
        assert (line.soft, line.scope) == (True, "tag=x")
    async with opened("sqlite", tmp_path, budgets=[]) as tracker:
        (kept,) = await tracker.store.budgets()
        assert kept.terms == budget.terms


async def test_a_new_day_starts_at_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with opened("sqlite", tmp_path, clock=clock) as tracker:
        await charge(tracker, 5)
        clock.advance(86_400)
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        assert (line.spent_usd, line.resets_at) == (Decimal(0), datetime(2026, 1, 3, tzinfo=UTC))


async def test_a_limit_of_nothing_is_fully_used(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd=0)]) as tracker:
        (line,) = await tracker.budget_enforcer.status("tenant=acme")
        assert (line.utilisation, line.remaining_usd) == (1.0, Decimal(0))


@pytest.mark.parametrize("amount", [-1, "lots", float("nan"), float("inf"), 10**10])
async def test_an_amount_that_is_none_is_refused(amount: Any, tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with pytest.raises(ConfigurationError, match="limit_usd"):
            await tracker.budget_enforcer.set_daily_budget("acme", amount)
        with pytest.raises(ConfigurationError, match="scope"):
            await tracker.budget_enforcer.status("colour=red")


async def test_the_fallback_of_everything_can_be_set_if_it_has_a_price(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, budgets=[Budget(scope="tenant=acme", limit_usd="0.0001")]) as tracker:
        enforcer = tracker.budget_enforcer
        assert enforcer.fallback_model is None
        with pytest.raises(UnknownModelError):
            enforcer.fallback_model = "nobody-knows"
        enforcer.fallback_model = "small"
        async with tracker.track_tokens("acme", "big", expected_input_tokens=500, max_output_tokens=0) as usage:
            assert usage.model == "small"
            usage["input_tokens"] = 0
        enforcer.fallback_model = None
        with pytest.raises(BudgetExceededError):
            await tracker.track_tokens("acme", "big", expected_input_tokens=500).__aenter__()


async def test_the_calculator_prices_in_usd(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        calculate = tracker.cost_calculator.calculate
        assert await calculate(model="big", input_tokens=1000, output_tokens=500, tenant_id="acme") == 0.002
        assert await calculate(model="free", input_tokens=1000, output_tokens=500) == 0.0
        with pytest.raises(UnknownModelError):
            await calculate(model="nobody-knows", input_tokens=1, output_tokens=1)
        for wrong in (-1, 1.5, True):
            with pytest.raises(ValueError, match="input_tokens takes"):
                await calculate(model="big", input_tokens=wrong, output_tokens=1)  # type: ignore[arg-type]
