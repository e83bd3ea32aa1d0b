"""A tenant's day so far: what an application shows its customers."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ..budget_status import BudgetStatus, status_of
from ..budgets import scope_text, window
from ..currency import NANO, nano_to_coins_text
from ..stores.base import SpendRow
from .access import Admin, KeyHolder, Principal
from .operation import ADMIN_KEY_OR_MEMBER, Answer, Asked, Exact, NoBody, Operation, Query, Text
from .own import is_of_tenant
from .problems import invalid, not_found


class CurrentUsage(Answer):
    """The UTC day so far. Plain numbers are for reading; strings are exact. Null: no budget limits the tenant."""

    tokens_by_model: dict[str, int]
    requests_by_model: dict[str, int]
    cost_today_usd: float
    cost_today_coins: Exact
    budget_remaining_usd: float | None
    """Of the tenant's tightest budget."""
    budget_remaining_coins: Exact | None
    budget_limit_usd: float | None
    budget_utilization_percent: float
    """Spent and held of the tightest budget's limit; 0 without a limit."""
    budget_period: str | None
    budget_resets_at: datetime | None


class ModelInfo(Answer):
    """`primary_model`: which the tenant has used most today, by tokens. `fallback_model`: where others fall back to."""

    primary_model: str | None
    fallback_model: str | None


class StatsAnswer(Answer):
    """A tenant's day so far."""

    tenant_id: str
    exchange_rate: float
    """Coins per USD, now."""
    current_usage: CurrentUsage
    model_info: ModelInfo


class StatsQuery(Query):
    """`tenant` is for the admin; everybody else has one."""

    tenant: Text | None = None


async def get_stats(asked: Asked[StatsQuery, NoBody]) -> StatsAnswer:
    tracker, tenant = asked.desk.tracker, _tenant(asked.principal, asked.query.tenant)
    await tracker.ready()
    rate = tracker.rates.current()
    start_s, end_s = window("daily", "UTC", tracker.clock())
    rows = await tracker.store.spend(scope_text({"tenant": tenant}), start_s, end_s)
    tokens, requests, cost = _by_model(rows)
    states = await tracker.read_lines({"tenant": tenant})
    limited = [state for state in states if is_of_tenant(tenant, state.scope) and state.limit_nano_usd is not None]
    tightest = min(limited, key=lambda state: state.remaining_nano_usd or 0, default=None)
    line: BudgetStatus | None = None if tightest is None else status_of(tightest, rate, "")
    left = None if tightest is None else tightest.remaining_nano_usd
    return StatsAnswer(
        tenant_id=tenant,
        exchange_rate=rate.value,
        current_usage=CurrentUsage(
            tokens_by_model=tokens,
            requests_by_model=requests,
            cost_today_usd=cost / NANO,
            cost_today_coins=nano_to_coins_text(cost, rate),
            budget_remaining_usd=None if left is None else left / NANO,
            budget_remaining_coins=None if left is None else nano_to_coins_text(left, rate),
            budget_limit_usd=None if line is None else float(line.limit_usd or 0),
            budget_utilization_percent=0.0 if line is None else round(line.utilisation * 100, 6),
            budget_period=None if line is None else line.period,
            budget_resets_at=None if line is None else line.resets_at,
        ),
        model_info=ModelInfo(
            primary_model=max(sorted(tokens), key=tokens.__getitem__, default=None),
            fallback_model=tracker.fallbacks.default,
        ),
    )


def _tenant(principal: Principal, asked_for: str | None) -> str:
    if isinstance(principal, Admin):
        if asked_for is None:
            raise invalid("tenant", "is required with the admin token")
        return asked_for
    own = principal.row.tenant if isinstance(principal, KeyHolder) else principal.tenant
    if asked_for not in (None, own):
        raise not_found()
    return own


def _by_model(rows: list[SpendRow]) -> tuple[dict[str, int], dict[str, int], int]:
    tokens: dict[str, int] = {}
    requests: dict[str, int] = {}
    for row in rows:
        tokens[row.model] = tokens.get(row.model, 0) + row.input_tokens + row.output_tokens
        requests[row.model] = requests.get(row.model, 0) + row.requests
    return tokens, requests, sum(row.cost_nano_usd for row in rows)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/usage/stats",
        name="get_usage_stats",
        summary="The caller's tenant: its UTC day so far.",
        handler=get_stats,
        query=StatsQuery,
        answer=StatsAnswer,
        who=ADMIN_KEY_OR_MEMBER,
    ),
)
