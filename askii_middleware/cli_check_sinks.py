"""What `askii check` asks receivers of usage: would they bill what they are sent?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .budgets import Budget, Scope, window
from .errors import StoreError
from .identity import Identity
from .sinks.checking import Checked

if TYPE_CHECKING:
    from .settings import Settings
    from .tracker import CostTracker

MAX_TENANTS = 10_000
"""Of those who spent something this month; keys and budgets are asked all."""


async def check_sinks(settings: Settings, tracker: CostTracker, found: Callable[[str, str, str], None]) -> None:
    """One line for each finding of each sink that can look at its receiver. Needs the store open."""
    able = [sink for sink in tracker.sinks if isinstance(sink, Checked)]
    if not able:
        return
    tenants: list[str] = []
    try:
        tenants = await known_tenants(settings, tracker)
    except StoreError as error:
        found("sinks", "warning", f"the tenants cannot be listed: {error}")
    subscriptions = {tenant: tracker.subscription(Identity(tenant=tenant)) for tenant in tenants}
    for sink in able:
        for result, detail in await sink.check(subscriptions):
            found(f"sink {sink.name}", "failed" if result == "unreachable" else result, detail)


async def known_tenants(settings: Settings, tracker: CostTracker) -> list[str]:
    """Those that have a key or a budget, spent something this month, or are the default."""
    store = tracker.store
    keys = {row.id: row for row in (*settings.keys, *await store.keys())}
    named = {row.tenant for row in keys.values() if not row.revoked}
    named |= {settings.default_tenant} if settings.default_tenant else set()
    named |= {tenant for budget in (*settings.budgets, *await store.budgets()) if (tenant := _tenant(budget))}
    month = window("monthly", "UTC", tracker.clock())
    spent = await store.top_spend("tenant=", month.start_s, month.end_s, MAX_TENANTS)
    named |= {sums.value for sums in spent}
    return sorted(named)


def _tenant(budget: Budget) -> str | None:
    """The tenant that a budget names; None where it names none, or each."""
    scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
    return None if scope.tenant == "*" else scope.tenant
