"""The proxy's budget checks: coins that are spent against limits in USD."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from askii_middleware.compat import (
    BudgetExceededError,
    RouterBudgetLimiting,
    TeamRow,
    UserAPIKeyAuth,
    _team_max_budget_check,
    _virtual_key_max_budget_check,
)


async def test_a_key_is_refused_once_its_coins_reach_its_limit() -> None:
    await _virtual_key_max_budget_check(UserAPIKeyAuth(spend=999_999, max_budget=1.0))
    await _virtual_key_max_budget_check(UserAPIKeyAuth(spend=10**12), object())
    with pytest.raises(
        BudgetExceededError, match=r"key=k1 is spent: 1,000,000 of 1,000,000 Askii Coins \(1 USD\)"
    ) as no:
        await _virtual_key_max_budget_check(UserAPIKeyAuth(key_alias="k1", spend=1_000_000, max_budget=1.0))
    assert (no.value.current_cost, no.value.max_budget, no.value.reason) == (1_000_000, 1_000_000, "spent")


async def test_a_team_is_refused_by_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    await _team_max_budget_check(None, UserAPIKeyAuth())
    await _team_max_budget_check(TeamRow(team_id="red", spend=400, max_budget=0.5), None, None)
    monkeypatch.setenv("ASKII_COIN_EXCHANGE_RATE", "800")
    with pytest.raises(BudgetExceededError, match="team=red"):
        await _team_max_budget_check(TeamRow(team_id="red", spend=400, max_budget=0.5))


DEPLOYMENTS = [
    {"model_info": {"id": "d1"}, "litellm_params": {"model": "openai/gpt-4o"}},
    {"model_info": {"id": "d2"}, "litellm_params": {"model": "gpt-4o", "custom_llm_provider": "azure"}},
    {"model_info": {"id": "d3"}, "litellm_params": {"model": "mystery"}},
]


def test_deployments_over_a_providers_or_their_own_limit_are_left_out() -> None:
    allowed, why = RouterBudgetLimiting()._filter_out_deployments_above_budget(
        healthy_deployments=DEPLOYMENTS,
        provider_configs={"openai": {"max_budget": 2.0, "budget_duration": "1d"}},
        deployment_configs={"d2": SimpleNamespace(max_budget=0.5, budget_duration="1d")},
        spend_map={"provider_spend:openai:1d": 2_000_000, "deployment_spend:d2:1d": 499_999},
        request_tags=[],
    )
    assert [each["model_info"]["id"] for each in allowed] == ["d2", "d3"]
    assert why == "provider openai: 2,000,000 of 2,000,000 Askii Coins (2 USD) are spent\n"


def test_a_tag_over_its_limit_leaves_no_deployment() -> None:
    allowed, why = RouterBudgetLimiting()._filter_out_deployments_above_budget(
        DEPLOYMENTS,
        spend_map={"tag_spend:batch:1d": 10},
        request_tags=["other", "batch"],
        tag_configs={"batch": {"max_budget": 0.00001, "budget_duration": "1d"}, "other": {"max_budget": None}},
    )
    assert (allowed, why) == ([], "tag batch: 10 of 10 Askii Coins (1e-05 USD) are spent\n")
    assert RouterBudgetLimiting()._filter_out_deployments_above_budget(DEPLOYMENTS) == (DEPLOYMENTS, "")
