"""What a scrape reads: budgets and the outbox from the ledger, and the journals of this machine. Nothing of it is kept
between scrapes, so no gauge is ever stale, and every worker that shares the ledger shows the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .budgets import Budget, Scope, window
from .currency import NANO
from .exposition import Family, escaped
from .metric_series import label

if TYPE_CHECKING:
    from .admission import BudgetState
    from .tracker import CostTracker

MAX_SCOPE_BYTES = 160
ASKED_AT_ONCE = 250
"""Calls looked up in one operation of the store, which others wait for."""
MANY_BUDGETS = 1000
KEPT_S = 60.0
"""How long it may take until one of more than `MANY_BUDGETS` stored budgets is first shown, if its tenant has not spent
anything yet. What is shown is of the moment in any case.
"""
DEAD_LETTERS = 100
"""Where counting them ends."""


class _Found(NamedTuple):
    tenants: Mapping[str, BudgetState]
    """The tightest line of each."""
    lines: Mapping[tuple[str, str], BudgetState]
    """By scope and period."""
    cut: Mapping[str, bool]
    """Whether there are more tenants or scopes."""
    pending: Mapping[str, int]
    dead: Mapping[str, int]


class LedgerGauges:
    """The gauges as the last scrape found them.

    Args:
        max_series: tenants and scopes that have gauges: those with the highest spend today, then those that budgets
            name. A sum over the rest would say nothing about any of them, so there is none.
        show_tenants, show_models: else what would name them is left out.
    """

    def __init__(self, *, max_series: int, show_tenants: bool = True, show_models: bool = True) -> None:
        self._max_series = max_series
        self._show_tenants = show_tenants
        self._hidden = (() if show_tenants else ("tenant",)) + (() if show_models else ("model", "deployment"))
        self.found: list[Family] = []
        self._budgets: list[Budget] = []
        self._budgets_until_s = 0.0

    async def read(self, tracker: CostTracker, *, ledger: bool = True) -> None:
        """Read all anew; without `ledger`, only what is to be had without it. Raises StoreError."""
        rate = tracker.rates.current().value
        entries, size = await asyncio.to_thread(tracker.journalled)
        local = [
            _gauge("askii_store_up", "Whether the ledger answered this scrape", [("", ledger)]),
            _gauge("askii_exchange_rate", "Coins per USD", [("", rate)]),
            _gauge("askii_journal_entries", "Charges on this machine's disk that wait for the ledger", [("", entries)]),
            _gauge("askii_journal_bytes", "Bytes of these charges", [("", size)]),
        ]
        self.found = local + (_families(await self._ask(tracker), rate) if ledger else [])

    async def _ask(self, tracker: CostTracker) -> _Found:
        store, index = tracker.store, tracker.index
        version, forms = await store.forms()
        if version != index.version:
            index.update(version, forms)
        windows, rate = index.windows(tracker.clock()), tracker.rates.current().ratio
        scopes, more_tenants, more_scopes = await self._scopes(tracker)
        tenants: dict[str, BudgetState] = {}
        lines: dict[tuple[str, str], BudgetState] = {}
        for start in range(0, len(scopes), ASKED_AT_ONCE):
            part = scopes[start : start + ASKED_AT_ONCE]
            told = await store.status_of([index.matches(values) for values in part], windows, rate)
            for values, states in zip(part, told, strict=True):
                limited = [line for line in states if line.limit_nano_usd is not None]
                if limited and values.keys() == {"tenant"}:
                    tenants[values["tenant"]] = min(limited, key=_left)
                for line in limited:
                    key = line.scope, line.period
                    if key in lines or len(lines) < self._max_series:
                        lines[key] = min(line, lines.get(key, line), key=_left)
                    else:
                        more_scopes = True
        pending = await store.pending()
        dead = {sink: len(await store.dead_letters(sink, DEAD_LETTERS)) for sink in pending}
        return _Found(tenants, lines, {"tenant": more_tenants, "scope": more_scopes}, pending, dead)

    async def _scopes(self, tracker: CostTracker) -> tuple[list[dict[str, str]], bool, bool]:
        """Whose budgets to show, as dimension values, and whether tenants and scopes were left out."""
        most = self._max_series
        named = [values for budget in await self._named(tracker) if (values := self._shown(budget)) is not None]
        others = [values for values in named if values.keys() != {"tenant"}]
        alone: list[str] = []
        if self._show_tenants:
            today = window("daily", "UTC", tracker.clock())
            busy = await tracker.store.tenant_spend("daily", today, most + 1)
            alone = list(
                dict.fromkeys([*(tenant for tenant, _ in busy), *(v["tenant"] for v in named if "tenant" in v)])
            )
        asked = [{"tenant": tenant} for tenant in alone[:most]] + others[:most]
        return [{}, *asked], len(alone) > most, len(others) > most

    async def _named(self, tracker: CostTracker) -> Sequence[Budget]:
        if time.monotonic() >= self._budgets_until_s:
            self._budgets = await tracker.store.budgets()
            kept_s = KEPT_S if len(self._budgets) > MANY_BUDGETS else 0.0
            self._budgets_until_s = time.monotonic() + kept_s
        return [*tracker.index.declared.values(), *self._budgets]

    def _shown(self, budget: Budget) -> dict[str, str] | None:
        """The dimension values that a budget names; None for one of `*`, which names nobody, and for what is hidden."""
        scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
        values = {name: str(getattr(scope, name)) for name in scope.shape}
        named = values and "*" not in values.values() and values.keys().isdisjoint(self._hidden)
        return values if named else None


def _families(found: _Found, rate: float) -> list[Family]:
    tenants = [(f'{{tenant_id="{escaped(label(tenant))}"}}', line) for tenant, line in found.tenants.items()]
    lines = [
        (f'{{period="{period}",scope="{escaped(label(scope, MAX_SCOPE_BYTES))}"}}', line)
        for (scope, period), line in found.lines.items()
    ]
    return [
        _gauge(
            "budget_remaining_usd",
            "What is left of a tenant's tightest budget, in USD",
            [(named, _left(line) / NANO) for named, line in tenants],
        ),
        _gauge(
            "budget_limit_usd",
            "The limit of a tenant's tightest budget, in USD",
            [(named, _limit(line) / NANO) for named, line in tenants],
        ),
        _gauge(
            "budget_remaining_askii_coins",
            "What is left of a tenant's tightest budget, in Askii Coins",
            [(named, _left(line) / NANO * rate) for named, line in tenants],
        ),
        _gauge(
            "budget_daily_reset_time",
            "When a tenant's tightest budget resets, Unix seconds",
            [(named, line.resets_at_s) for named, line in tenants],
        ),
        _gauge("askii_budget_limit_usd", "Limit in USD", [(named, _limit(line) / NANO) for named, line in lines]),
        _gauge(
            "askii_budget_remaining_usd", "What is left in USD", [(named, _left(line) / NANO) for named, line in lines]
        ),
        _gauge(
            "askii_budget_series_cut",
            "Whether some of a kind have no gauges",
            [(f'{{kind="{kind}"}}', is_cut) for kind, is_cut in found.cut.items()],
        ),
        _gauge("askii_outbox_pending", "Records that wait for a sink", _by_sink(found.pending)),
        _gauge("askii_outbox_dead", "Records a sink has rejected for good", _by_sink(found.dead)),
    ]


def _by_sink(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    return [(f'{{sink="{escaped(label(sink))}"}}', count) for sink, count in counts.items()]


def _gauge(name: str, text: str, values: Iterable[tuple[str, float]]) -> Family:
    return Family(name, "gauge", text, [(name + labels, float(value), None) for labels, value in values])


def _left(line: BudgetState) -> int:
    return line.remaining_nano_usd or 0


def _limit(line: BudgetState) -> int:
    return line.limit_nano_usd or 0
