"""Budget lines of several calls in one look at the ledger, and what today has cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from ..aggregates import EVERYTHING
from ..budget_status import BudgetStatus, status_of
from ..budgets import scope_text
from ..stores.base import SpendSums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..tracker import CostTracker

DAY_S = 86_400


class Hour(NamedTuple):
    """One hour of today, UTC."""

    hour: int
    cost_nano_usd: int
    requests: int


class Today(NamedTuple):
    """All calls since midnight UTC."""

    cost_nano_usd: int
    requests: int
    input_tokens: int
    output_tokens: int
    hours: tuple[Hour, ...]
    models: tuple[tuple[str, int, int], ...]
    """Model, nano-USD and requests, the dearest first."""


def midnight_s(now_s: float) -> float:
    """The beginning of the UTC day that holds a moment."""
    return now_s // DAY_S * DAY_S


async def today(tracker: CostTracker, models: int) -> Today:
    """What today has cost, by hour and by its `models` dearest models. Raises StoreError."""
    start_s = midnight_s(tracker.clock())
    spans = await tracker.store.spend_over(EVERYTHING, [start_s + 3600 * hour for hour in range(25)])
    rows = [row for span in spans for row in span]
    by_model: dict[str, list[int]] = {}
    for row in rows:
        sums = by_model.setdefault(row.model, [0, 0])
        sums[0] += row.cost_nano_usd
        sums[1] += row.requests
    dearest = sorted(by_model.items(), key=lambda pair: (-pair[1][0], pair[0]))[:models]
    return Today(
        cost_nano_usd=sum(row.cost_nano_usd for row in rows),
        requests=sum(row.requests for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        hours=tuple(
            Hour(hour, sum(row.cost_nano_usd for row in span), sum(row.requests for row in span))
            for hour, span in enumerate(spans)
        ),
        models=tuple((model, cost, requests) for model, (cost, requests) in dearest),
    )


async def top_tenants(tracker: CostTracker, days: int, limit: int) -> list[tuple[str, SpendSums]]:
    """The tenants that cost most in the last `days` UTC days, today included. Raises StoreError."""
    end_s = midnight_s(tracker.clock()) + DAY_S
    found = await tracker.store.top_spend("tenant=", end_s - days * DAY_S, end_s, limit)
    return [(sums.value, sums) for sums in found]


async def lines_of(tracker: CostTracker, asked: Sequence[Mapping[str, str]]) -> list[list[BudgetStatus]]:
    """The budget lines that bind each of these calls, given by their dimension values. Raises StoreError."""
    if not asked:
        return []
    index, rate = tracker.index, tracker.rates.current()
    index.update(*await tracker.store.forms())
    told = await tracker.store.status_of(
        [index.matches(values) for values in asked], index.windows(tracker.clock()), rate.ratio
    )
    return [[status_of(state, rate, "") for state in states] for states in told]


def tightest(lines: Sequence[BudgetStatus], scope: str | None = None) -> BudgetStatus | None:
    """The line of which the largest share is used, among those that have a limit; with `scope`, of those on it."""
    limited = [line for line in lines if line.limit_usd is not None and scope in (None, line.scope)]
    return max(limited, key=lambda line: line.utilisation, default=None)


def tenant_scope(tenant: str) -> str:
    """A tenant's own scope, as text."""
    return scope_text({"tenant": tenant})


def today_date(now_s: float) -> datetime:
    """Midnight of today, UTC."""
    return datetime.fromtimestamp(midnight_s(now_s), UTC)


def days_back(now_s: float, days: int) -> datetime:
    """Midnight of the first of so many days that end today, UTC."""
    return today_date(now_s) - timedelta(days=days - 1)
