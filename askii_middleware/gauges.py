"""What a scrape reads from the ledger: budgets and the outbox. Nothing is kept between scrapes, so no gauge is ever
stale, and every worker that shares the ledger shows the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .budgets import Budget, Scope, window
from .currency import NANO

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .admission import BudgetState
    from .tracker import CostTracker

MAX_LABEL_CHARS = 128
READ_AT_ONCE = 16
"""Tenants between two turns of the event loop: a scrape must not keep the calls waiting."""

_TENANT = {
    "budget_remaining_usd": "What is left of a tenant's tightest budget, in USD",
    "budget_limit_usd": "The limit of a tenant's tightest budget, in USD",
    "budget_remaining_askii_coins": "What is left of a tenant's tightest budget, in Askii Coins",
    "budget_daily_reset_time": "When a tenant's tightest budget resets, Unix seconds",
}


def label(value: str) -> str:
    """Text that the exposition can hold: a lone surrogate in one label would make the whole of it unreadable."""
    return value[:MAX_LABEL_CHARS].encode(errors="replace").decode()


class LedgerGauges(Collector):
    """The gauges as the last scrape found them; none while the ledger is away."""

    def __init__(self, *, max_series: int) -> None:
        self._max_series = max_series
        self._found: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self._found

    def forget(self) -> None:
        self._found = []

    async def read(self, tracker: CostTracker) -> None:
        """Read the budgets of the tenants with spend today, the busiest first, and of every scope that a budget names,
        at most `max_series` of each kind. Raises StoreError.
        """
        lines: dict[tuple[str, str], BudgetState] = {}
        tenants: dict[str, BudgetState] = {}
        store, index, rate = tracker.store, tracker.index, tracker.rates.current()
        index.update(*await store.forms())
        windows = index.windows(tracker.clock())
        for turn, values in enumerate(await self._scopes(tracker)):
            if not turn % READ_AT_ONCE:
                await asyncio.sleep(0)
            found = await store.status(index.matches(values), windows, rate.ratio)
            limited = [line for line in found if line.limit_nano_usd is not None]
            for line in limited:
                key = (line.scope, line.period)
                if key in lines or len(lines) < self._max_series:
                    lines[key] = min(line, lines.get(key, line), key=_left)
            if limited and values.keys() == {"tenant"}:
                tenants[values["tenant"]] = min(limited, key=_left)
        self._found = self._families(tenants, lines, await store.pending(), rate.value)

    async def _scopes(self, tracker: CostTracker) -> list[dict[str, str]]:
        """Whose budgets to show, as dimension values."""
        today = window("daily", "UTC", tracker.clock())
        busy = await tracker.store.tenant_spend("daily", today, self._max_series)
        budgets = [*tracker.index.declared.values(), *await tracker.store.budgets()]
        named = [values for budget in budgets if (values := _named(budget)) is not None]
        tenants = dict.fromkeys([*(tenant for tenant, _ in busy), *(v["tenant"] for v in named if "tenant" in v)])
        others = [values for values in named if values.keys() != {"tenant"}]
        alone = [{"tenant": tenant} for tenant in list(tenants)[: self._max_series]]
        return [{}, *alone, *others[: self._max_series]]

    def _families(
        self,
        tenants: Mapping[str, BudgetState],
        lines: Mapping[tuple[str, str], BudgetState],
        pending: Mapping[str, int],
        rate: float,
    ) -> list[Metric]:
        by_tenant = [GaugeMetricFamily(name, text, labels=["tenant_id"]) for name, text in _TENANT.items()]
        for tenant, line in tenants.items():
            left, limit = _left(line) / NANO, (line.limit_nano_usd or 0) / NANO
            for family, value in zip(by_tenant, (left, limit, left * rate, float(line.resets_at_s)), strict=True):
                family.add_metric([label(tenant)], value)
        limits = GaugeMetricFamily("askii_budget_limit_usd", "Limit in USD", labels=["scope", "period"])
        lefts = GaugeMetricFamily("askii_budget_remaining_usd", "What is left in USD", labels=["scope", "period"])
        for (scope, period), line in lines.items():
            limits.add_metric([label(scope), period], (line.limit_nano_usd or 0) / NANO)
            lefts.add_metric([label(scope), period], _left(line) / NANO)
        outbox = GaugeMetricFamily("askii_outbox_pending", "Records that wait for a sink", labels=["sink"])
        for sink, count in pending.items():
            outbox.add_metric([label(sink)], count)
        return [*by_tenant, limits, lefts, outbox]


def _left(line: BudgetState) -> int:
    return line.remaining_nano_usd or 0


def _named(budget: Budget) -> dict[str, str] | None:
    """The dimension values that a budget names; None for one of `*`, which names nobody."""
    scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
    values = {name: str(getattr(scope, name)) for name in scope.shape}
    return values if values and "*" not in values.values() else None
