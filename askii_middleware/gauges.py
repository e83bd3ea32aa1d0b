"""What a scrape reads: budgets and the outbox from the ledger, and the journals of this machine. Nothing of it is kept
between scrapes, so no gauge is ever stale, and every worker that shares the ledger shows the same. Only whose budgets
are shown is decided once a minute, where there are too many for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .budgets import Budget, Scope, window
from .currency import NANO
from .delivery_age import oldest_s
from .exposition import Family, escaped
from .metric_series import label
from .stores.base import MAX_ASKED

if TYPE_CHECKING:
    from .admission import BudgetState
    from .stores.base import Store
    from .tracker import CostTracker

MAX_SCOPE_BYTES = 160
MANY_BUDGETS = 1000
KEPT_S = 60.0
"""How long it may take until one of more than `MANY_BUDGETS` stored budgets is first shown, if its tenant has not spent
anything yet, or one of more than `max_series` tenants that is among the busiest now: to find these means to go through
all of the day's sums. What is shown is of the moment in any case.
"""
DEAD_LETTERS = 100
"""Where counting them ends: they come with their records."""


class _Line(NamedTuple):
    """A budget that has a limit."""

    left: int
    limit: int
    """Both in nano-USD."""
    resets_at_s: float


class _Sink(NamedTuple):
    """What is on its way to a sink."""

    pending: int
    oldest_s: float
    """How long the oldest of these has waited."""
    dead: int


class _Found(NamedTuple):
    tenants: Mapping[str, _Line]
    """The tightest line of each."""
    lines: Mapping[tuple[str, str], _Line]
    """By scope and period."""
    cut: Mapping[str, bool]
    """Whether there are more tenants or scopes."""
    sinks: Mapping[str, _Sink]


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
        self._busiest: list[str] = []
        self._busiest_until_s = 0.0

    def rank_anew(self) -> None:
        """Find out who the busiest tenants are at the next scrape."""
        self._busiest_until_s = 0.0

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
        tenants: dict[str, _Line] = {}
        lines: dict[tuple[str, str], _Line] = {}
        for start in range(0, len(scopes), MAX_ASKED):
            part = scopes[start : start + MAX_ASKED]
            told = await store.status_of([index.matches(values) for values in part], windows, rate)
            for values, states in zip(part, told, strict=True):
                limited = [
                    (state.scope, state.period, _line(state)) for state in states if state.limit_nano_usd is not None
                ]
                if limited and values.keys() == {"tenant"}:
                    tenants[values["tenant"]] = min(line for _, _, line in limited)
                for scope, period, line in limited:
                    key = scope, period
                    known = lines.get(key)
                    if known is None and len(lines) >= self._max_series:
                        more_scopes = True
                    elif known is None or line < known:
                        lines[key] = line
        cut = {"tenant": more_tenants, "scope": more_scopes}
        return _Found(tenants, lines, cut, await _sinks(store, tracker.clock()))

    async def _scopes(self, tracker: CostTracker) -> tuple[list[dict[str, str]], bool, bool]:
        """Whose budgets to show, as dimension values, and whether tenants and scopes were left out. Global budgets bind
        each of them and need no place of their own, so that 1,000 tenants fit in one operation of the store.
        """
        most = self._max_series
        named = [values for budget in await self._named(tracker) if (values := self._shown(budget)) is not None]
        others = [values for values in named if values.keys() != {"tenant"}]
        alone: list[str] = []
        if self._show_tenants:
            busiest = await self._ranked(tracker)
            alone = list(dict.fromkeys([*busiest, *(v["tenant"] for v in named if "tenant" in v)]))
        asked = [{"tenant": tenant} for tenant in alone[:most]] + others[:most]
        return asked or [{}], len(alone) > most, len(others) > most

    async def _ranked(self, tracker: CostTracker) -> Sequence[str]:
        """The tenants with the highest spend today, one more than have gauges."""
        if time.monotonic() >= self._busiest_until_s:
            today, most = window("daily", "UTC", tracker.clock()), self._max_series
            busy = await tracker.store.top_spend("tenant=", today.start_s, today.end_s, most + 1)
            self._busiest = [sums.value for sums in busy]
            kept_s = KEPT_S if len(self._busiest) > most else 0.0
            self._busiest_until_s = time.monotonic() + kept_s
        return self._busiest

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


async def _sinks(store: Store, now_s: float) -> dict[str, _Sink]:
    found = {}
    for name, pending in (await store.pending()).items():
        since_s = await oldest_s(store, name) if pending else None
        dead = len(await store.dead_letters(name, DEAD_LETTERS))
        found[name] = _Sink(pending, 0.0 if since_s is None else max(now_s - since_s, 0.0), dead)
    return found


def _families(found: _Found, rate: float) -> list[Family]:
    tenants = [(f'{{tenant_id="{escaped(label(tenant))}"}}', line) for tenant, line in found.tenants.items()]
    lines = [
        (f'{{period="{period}",scope="{escaped(label(scope, MAX_SCOPE_BYTES))}"}}', line)
        for (scope, period), line in found.lines.items()
    ]
    sinks = [(f'{{sink="{escaped(label(name))}"}}', sink) for name, sink in found.sinks.items()]
    return [
        _gauge(
            "budget_remaining_usd",
            "What is left of a tenant's tightest budget, in USD",
            [(named, line.left / NANO) for named, line in tenants],
        ),
        _gauge(
            "budget_limit_usd",
            "The limit of a tenant's tightest budget, in USD",
            [(named, line.limit / NANO) for named, line in tenants],
        ),
        _gauge(
            "budget_remaining_askii_coins",
            "What is left of a tenant's tightest budget, in Askii Coins",
            [(named, line.left / NANO * rate) for named, line in tenants],
        ),
        _gauge(
            "budget_daily_reset_time",
            "When a tenant's tightest budget resets, Unix seconds",
            [(named, line.resets_at_s) for named, line in tenants],
        ),
        _gauge("askii_budget_limit_usd", "Limit in USD", [(named, line.limit / NANO) for named, line in lines]),
        _gauge(
            "askii_budget_remaining_usd", "What is left in USD", [(named, line.left / NANO) for named, line in lines]
        ),
        _gauge(
            "askii_budget_series_cut",
            "Whether some of a kind have no gauges",
            [(f'{{kind="{kind}"}}', is_cut) for kind, is_cut in found.cut.items()],
        ),
        _gauge(
            "askii_outbox_pending", "Records that wait for a sink", [(named, sink.pending) for named, sink in sinks]
        ),
        _gauge(
            "askii_outbox_oldest_seconds",
            "Age of the oldest record that waits for a sink; 0 where none does",
            [(named, sink.oldest_s) for named, sink in sinks],
        ),
        _gauge(
            "askii_outbox_dead",
            f"Records a sink has rejected for good; {DEAD_LETTERS} are {DEAD_LETTERS} or more",
            [(named, sink.dead) for named, sink in sinks],
        ),
    ]


def _gauge(name: str, text: str, values: Iterable[tuple[str, float]]) -> Family:
    return Family(name, "gauge", text, [(name + labels, float(value), None) for labels, value in values])


def _line(state: BudgetState) -> _Line:
    return _Line(state.remaining_nano_usd or 0, state.limit_nano_usd or 0, state.resets_at_s)
