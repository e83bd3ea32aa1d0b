"""The proxy's budget checks under their old names: what is spent in coins against limits in USD.

They decide on what they are given and read no ledger. Calls through the middleware or `track_tokens` need none of them:
there one store call decides and holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from ..currency import convert_budget_to_askii_coins
from ..errors import BudgetExceededError


@dataclass(kw_only=True)
class UserAPIKeyAuth:
    """A key as these checks see it.

    Attributes:
        spend: coins.
        max_budget: USD; None: no limit.
    """

    api_key: str | None = None
    key_alias: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    spend: float = 0.0
    max_budget: float | None = None


@dataclass(kw_only=True)
class TeamRow:
    """A team as these checks see it: `spend` in coins, `max_budget` in USD."""

    team_id: str
    spend: float = 0.0
    max_budget: float | None = None


async def _virtual_key_max_budget_check(valid_token: UserAPIKeyAuth, proxy_logging_obj: object = None) -> None:
    """Raise BudgetExceededError where a key's budget is used up."""
    del proxy_logging_obj
    _check(f"key={valid_token.key_alias or 'this'}", valid_token.spend, valid_token.max_budget)


async def _team_max_budget_check(
    team_object: TeamRow | None, valid_token: UserAPIKeyAuth | None = None, proxy_logging_obj: object = None
) -> None:
    """Raise BudgetExceededError where a team's budget is used up."""
    del valid_token, proxy_logging_obj
    if team_object is not None:
        _check(f"team={team_object.team_id}", team_object.spend, team_object.max_budget)


def _check(scope: str, spent_coins: float, limit_usd: float | None) -> None:
    limit_coins = convert_budget_to_askii_coins(limit_usd)
    if limit_coins is None or spent_coins < limit_coins:
        return
    raise BudgetExceededError(
        f"budget of {scope} is spent: {spent_coins:,.0f} of {limit_coins:,.0f} Askii Coins ({limit_usd:g} USD)",
        current_cost=spent_coins,
        max_budget=limit_coins,
        scope=scope,
        reason="spent",
        resets_at_s=inf,
    )


class RouterBudgetLimiting:
    """Which deployments are within their budgets. `askii_middleware.CostTracker.filter_deployments` asks the ledger."""

    def _filter_out_deployments_above_budget(
        self,
        healthy_deployments: Sequence[Mapping[str, Any]],
        provider_configs: Mapping[str, Any] | None = None,
        deployment_configs: Mapping[str, Any] | None = None,
        spend_map: Mapping[str, float] | None = None,
        request_tags: Iterable[str] = (),
        tag_configs: Mapping[str, Any] | None = None,
    ) -> tuple[list[Mapping[str, Any]], str]:
        """Those below every limit, and one line for each reason why another is not.

        Args:
            healthy_deployments: tables with `model_info.id` and `litellm_params.model`, perhaps
                `litellm_params.custom_llm_provider`.
            provider_configs: by provider, a table or object with `max_budget` (USD) and `budget_duration`.
            deployment_configs: the same by deployment's id.
            spend_map: coins by `provider_spend:<provider>:<duration>`, `deployment_spend:<id>:<duration>` and
                `tag_spend:<tag>:<duration>`.
            request_tags: the request's tags: where one is over its limit, no deployment is left.
            tag_configs: as `provider_configs`, by tag.
        """
        spent = spend_map or {}
        tags = [_over("tag", tag, tag_configs, spent) for tag in request_tags]
        allowed, reasons = [], [reason for reason in tags if reason]
        for deployment in healthy_deployments if not reasons else ():
            params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
            model = str(params.get("model", ""))
            provider = params.get("custom_llm_provider") or (model.partition("/")[0] if "/" in model else None)
            found = [
                _over("provider", provider, provider_configs, spent),
                _over("deployment", info.get("id"), deployment_configs, spent),
            ]
            reasons += [reason for reason in found if reason]
            if not any(found):
                allowed.append(deployment)
        return allowed, "".join(f"{reason}\n" for reason in dict.fromkeys(reasons))


def _over(kind: str, name: str | None, configs: Mapping[str, Any] | None, spent: Mapping[str, float]) -> str:
    """Why what has this name may not be used; empty where it may."""
    config = (configs or {}).get(name) if name is not None else None
    if config is None:
        return ""
    table = config if isinstance(config, Mapping) else vars(config)
    limit_usd, duration = table.get("max_budget"), table.get("budget_duration") or table.get("time_period")
    limit_coins = convert_budget_to_askii_coins(limit_usd)
    coins = spent.get(f"{kind}_spend:{name}:{duration}", 0.0)
    if limit_coins is None or coins < limit_coins:
        return ""
    return f"{kind} {name}: {coins:,.0f} of {limit_coins:,.0f} Askii Coins ({limit_usd:g} USD) are spent"
