"""Alerts: which budgets' thresholds were crossed, the newest first."""

from __future__ import annotations

from typing import Final

from ..alerts import notice_of
from ..stores.base import Alert
from .access import KeyHolder, Principal
from .operation import ADMIN_OR_KEY, Answer, Asked, Exact, Limit, NoBody, Operation, Query, Text
from .own import is_of_tenant, is_own

LOOKED_AT: Final = (1000, 10_000)
"""Of how many of the newest alerts those of one caller or tenant are looked for: of more, where there are few."""


class AlertAnswer(Answer):
    """What is spent has crossed a share of a budget's limit. Amounts are exact; coins at the rate of now."""

    id: str
    timestamp: str
    scope: str
    tenant: str | None
    period: str
    share: float
    status: str
    utilisation: float
    limit_usd: Exact
    spent_usd: Exact
    limit_coins: Exact
    spent_coins: Exact
    resets_at: str | None


class AlertsAnswer(Answer):
    """The newest alerts, the newest first."""

    alerts: tuple[AlertAnswer, ...]


class AlertsQuery(Query):
    tenant: Text | None = None
    limit: Limit = 100


async def list_alerts(asked: Asked[AlertsQuery, NoBody]) -> AlertsAnswer:
    query, tracker, principal = asked.query, asked.desk.tracker, asked.principal
    await tracker.ready()
    found: list[Alert] = []
    for looked_at in LOOKED_AT:
        newest = await tracker.store.recent_alerts(looked_at)
        found = [alert for alert in newest if _concerns(principal, query.tenant, alert.scope)]
        if len(found) >= query.limit or len(newest) < looked_at:
            break
    rate = tracker.rates.current()
    notices = [notice_of(alert, rate) for alert in found[: query.limit]]
    return AlertsAnswer(
        alerts=tuple(
            AlertAnswer(**{name: getattr(notice, name) for name in AlertAnswer.model_fields}) for notice in notices
        )
    )


def _concerns(principal: Principal, tenant: str | None, scope: str) -> bool:
    if isinstance(principal, KeyHolder) and not is_own(principal.row, scope):
        return False
    return tenant is None or is_of_tenant(tenant, scope)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/billing/alerts",
        name="list_alerts",
        summary="Thresholds of budgets that were crossed, the newest first; a key's holder sees its own tenant's.",
        handler=list_alerts,
        query=AlertsQuery,
        answer=AlertsAnswer,
        who=ADMIN_OR_KEY,
    ),
)
