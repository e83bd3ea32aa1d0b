"""The questions a tracker answers about what was spent. Reads only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .admission import BudgetState, BudgetTerms, Match, decide, fitting
from .admitting import Admitter, exceeded
from .budget_status import BudgetStatus, BudgetSummary, BudgetUtilization, statuses, summed_up, utilization_of
from .budgets import BudgetIndex, Scope, day_start_s, scope_text, window, zone_of
from .calls import CallSpec
from .counting import check_model, whole_count
from .currency import NANO, RateSource, nano_to_coins, usd_to_nano
from .errors import LAST_S, ConfigurationError, UnknownModelError
from .fallbacks import Fallbacks
from .identity import Identity
from .names import ModelNames
from .options import OptionBuilder
from .stores.base import SpendRow, Store
from .usage_report import aggregated, hours_edge

if TYPE_CHECKING:
    from .modes import Modes
    from .tenants import TenantBook

Deployment = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendSummary:
    """Spend of one scope over a span. Costs in USD, with the same in coins at the current rate."""

    scope: str
    total_cost: float
    total_cost_coins: float
    total_requests: int
    total_tokens: int
    by_model: dict[str, float] = field(default_factory=dict)
    by_provider: dict[str, float] = field(default_factory=dict)
    tokens_by_model: dict[str, int] = field(default_factory=dict)
    cost_nano_usd: int
    nano_usd_by_model: dict[str, int] = field(default_factory=dict)
    period_start: datetime
    period_end: datetime


class Reports(ABC):
    """Mixed into `CostTracker`; uses its store, prices, budgets and rate."""

    store: Store
    index: BudgetIndex
    names: ModelNames
    rates: RateSource
    fallbacks: Fallbacks
    clock: Callable[[], float]
    modes: Modes
    tenants: TenantBook
    _admitter: Admitter
    _builder: OptionBuilder

    @abstractmethod
    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""

    def values_of(self, scope: Scope | str) -> dict[str, str | tuple[str, ...] | None]:
        """A scope as the dimension values of a call: its model by canonical name, and where no provider is named, that
        of the model's price. Raises ConfigurationError for what is no scope, and for `*`, which is many.
        """
        scope = self.names.scope(Scope.parse(scope) if isinstance(scope, str) else scope)
        values: dict[str, str | tuple[str, ...] | None] = {name: getattr(scope, name) for name in scope.shape}
        if "*" in values.values():
            raise ConfigurationError(f"scope {scope.text!r}: `*` has a counter for each value; name one of them")
        if scope.model is not None and scope.provider is None:
            price = self._builder.price_of(scope.model)
            values["provider"] = (price.provider or None) if price else None
        return values

    async def budget_lines(self, values: Mapping[str, str | tuple[str, ...] | None]) -> list[BudgetState]:
        """The budget lines that bind a call with these dimension values, now; also budgets that another process has
        just set.
        """
        await self.ready()
        return await self.read_lines(values)

    async def read_lines(self, values: Mapping[str, str | tuple[str, ...] | None]) -> list[BudgetState]:
        """`budget_lines` of a store that is open, without starting anything."""
        self.index.update(*await self.store.forms())
        return await self.store.status(
            self.index.matches(values), self.index.windows(self.clock()), self.rates.current().ratio
        )

    async def get_spend(
        self,
        scope: Scope | str,
        period: str | None = None,
        *,
        start: date | None = None,
        end: date | None = None,
        zone: str = "UTC",
    ) -> SpendSummary:
        """Spend of a scope in its current `period`, or between `start` and `end`.

        Args:
            scope: `global`, a tenant, key, user or team, or a tenant's user; and of that perhaps one model, one
                provider or both.
            period: as a budget's.
            start: a date, which means the whole day in `zone`; or a moment (an aware datetime, or a naive one in
                `zone`).
            end: the same; a day is included, a moment is not. None: until now.
            zone: whose midnights bound days and periods.

        Sums are kept by UTC hours, and an hour belongs to the span it begins in: `period_start` and `period_end` say
        which were counted. Raises ValueError for other scopes and wrong spans, ConfigurationError for a zone that is
        none, StoreError.
        """
        scope = self.names.scope(Scope.parse(scope) if isinstance(scope, str) else scope)
        scopes = aggregated(replace(scope, model=None, provider=None))
        if (period is None) == (start is None):
            raise ValueError("give a period, or start and end")
        if period is not None:
            start_s, end_s = map(hours_edge, window(period, zone, self.clock()))
        else:
            start_s = _edge_s(start, zone, 0) if start else 0
            end_s = _edge_s(end, zone, 1) if end else int(self.clock()) + 1
            if end_s <= start_s:
                raise ValueError("the span ends before it begins")
        await self.ready()
        (rows,) = await self.store.spend_over(scopes, (start_s, end_s))
        rows = [row for row in rows if scope.model in (None, row.model) and scope.provider in (None, row.provider)]
        text = scope_text({name: getattr(scope, name) for name in scope.shape})
        return self._summary(text, rows, start_s, end_s)

    def _summary(self, scope: str, rows: list[SpendRow], start_s: int, end_s: int) -> SpendSummary:
        by_model: dict[str, int] = defaultdict(int)
        by_provider: dict[str, int] = defaultdict(int)
        tokens: dict[str, int] = defaultdict(int)
        for row in rows:
            by_model[row.model] += row.cost_nano_usd
            by_provider[row.provider] += row.cost_nano_usd
            tokens[row.model] += row.input_tokens + row.output_tokens
        total = sum(row.cost_nano_usd for row in rows)
        return SpendSummary(
            scope=scope,
            total_cost=total / NANO,
            total_cost_coins=float(nano_to_coins(total, self.rates.current())),
            total_requests=sum(row.requests for row in rows),
            total_tokens=sum(tokens.values()),
            by_model={name: cost / NANO for name, cost in by_model.items()},
            by_provider={name: cost / NANO for name, cost in by_provider.items()},
            tokens_by_model=dict(tokens),
            cost_nano_usd=total,
            nano_usd_by_model=dict(by_model),
            period_start=datetime.fromtimestamp(start_s, UTC),
            period_end=datetime.fromtimestamp(min(end_s, LAST_S), UTC),
        )

    async def get_tenant_stats(self, tenant_id: str) -> dict[str, Any]:
        """A tenant's day so far (UTC): `total_tokens_by_model`, `daily_cost_usd`, `remaining_budget_usd` (inf without
        a budget), `fallback_model`, and the amounts again in coins.
        """
        spent = await self.get_spend(Scope(tenant=tenant_id), "daily")
        rate = self.rates.current()
        states = await self.budget_lines({"tenant": tenant_id})
        left = [state.remaining_nano_usd for state in states if state.remaining_nano_usd is not None]
        return {
            "tenant_id": tenant_id,
            "total_tokens_by_model": spent.tokens_by_model,
            "daily_cost_usd": spent.total_cost,
            "remaining_budget_usd": min(left) / NANO if left else float("inf"),
            "daily_cost_askii_coins": spent.total_cost_coins,
            "remaining_budget_askii_coins": float(nano_to_coins(min(left), rate)) if left else float("inf"),
            "fallback_model": self.fallbacks.default,
        }

    async def check_budget(self, scope: Scope | str, usd: float | str) -> bool:
        """Whether a call that costs so much would be admitted now. Looks only: nothing is held, so the answer may be
        out of date before it arrives.
        """
        nano_usd = usd_to_nano(usd)
        return fitting(await self.budget_lines(self.values_of(scope)), nano_usd) is not None

    async def get_budget_status(self, scope: Scope | str) -> BudgetSummary:
        """How the budgets that bind a call of this scope stand, all together. Raises ConfigurationError for what is no
        scope.
        """
        await self.ready()
        values = self.values_of(scope)
        asked = self.names.scope(Scope.parse(scope) if isinstance(scope, str) else scope)
        states = await self.read_lines(values)
        return summed_up(asked.text, await self.told(states, self.index.matches(values)))

    async def told(self, states: Iterable[BudgetState], matches: Sequence[Match]) -> list[BudgetStatus]:
        """The lines that matches met, as people read them. Raises StoreError."""
        return statuses(states, matches, await self.stored_terms(matches), self.rates.current())

    async def stored_terms(self, matches: Iterable[Match]) -> dict[str, BudgetTerms]:
        """The stored budgets among those that may govern the matches, by key. Raises StoreError."""
        keys = {ref.key for match in matches for level in match.levels for ref in level}
        return {budget.key: budget.terms for budget in await self.store.budgets_of(keys)}

    async def check_budget_utilization(self, scope: Scope | str) -> list[BudgetUtilization]:
        """How much of each budget that binds a call of this scope is used, the fullest first. Those without a limit
        are left out. Raises ConfigurationError for what is no scope.
        """
        lines = [line for line in (await self.get_budget_status(scope)).budgets if line.limit_usd is not None]
        return sorted(map(utilization_of, lines), key=lambda found: -found.utilization_percent)

    async def filter_deployments(
        self,
        identity: str | Identity,
        deployments: Iterable[Deployment],
        *,
        input_tokens: int = 0,
        output_tokens: int | None = None,
    ) -> tuple[list[Deployment], dict[str, str]]:
        """The deployments that a call of this size could go to within all budgets, in their order, and why the others
        cannot take it, by name: for a suspended tenant, all of them. Looks only: nothing is held.

        Args:
            identity: who would call, or the tenant's name.
            deployments: models' names, or tables with `model` and perhaps `provider` and `deployment`, which is then
                the name.
            input_tokens: the prompt's bound.
            output_tokens: the answer's bound; None: the model's own maximum.
        """
        await self.ready()
        self.index.update(*await self.store.forms())
        who = identity if isinstance(identity, Identity) else Identity(tenant=identity)
        now_s, rate = self.clock(), self.rates.current()
        windows = self.index.windows(now_s)
        suspended = self.tenants.find(who.tenant) if self.modes.of(who.tenant) == "enforce" else None
        allowed: list[Deployment] = []
        reasons: dict[str, str] = {}
        for deployment in deployments:
            table = {"model": deployment} if isinstance(deployment, str) else deployment
            spec = CallSpec(
                model=check_model(table.get("model")),
                provider=table.get("provider"),
                deployment=table.get("deployment"),
                input_tokens=whole_count("input_tokens", input_tokens),
                output_tokens=None if output_tokens is None else whole_count("output_tokens", output_tokens),
            )
            if suspended is not None:
                reasons[spec.deployment or spec.model] = str(suspended)
                continue
            try:
                option = self._builder.options(spec, who.tenant)[0]
            except UnknownModelError as error:
                reasons[spec.deployment or spec.model] = str(error)
                continue
            candidate = self._admitter.candidate(option, who, spec)
            states = await self.store.status(candidate.matches, windows, rate.ratio)
            answer = decide([candidate], [states], admitted_at_s=now_s)
            if answer.candidate is None:
                reasons[spec.deployment or spec.model] = exceeded(answer, rate).message
            else:
                allowed.append(deployment)
        return allowed, reasons

    async def cost_report(
        self, scopes: Mapping[str, Scope | str] | list[Scope | str], period: str = "daily"
    ) -> dict[str, Any]:
        """Spend of several scopes in both currencies, with a breakdown by scope and model."""
        named = scopes if isinstance(scopes, Mapping) else {str(scope): scope for scope in scopes}
        rate = self.rates.current()
        summaries = {name: await self.get_spend(scope, period) for name, scope in named.items()}
        total = sum(summary.cost_nano_usd for summary in summaries.values())
        return {
            "total_cost_usd": total / NANO,
            "total_cost_askii_coins": float(nano_to_coins(total, rate)),
            "exchange_rate": rate.value,
            "breakdown": [
                {
                    "scope": name,
                    "model": model,
                    "cost_usd": cost,
                    "cost_askii_coins": float(nano_to_coins(summary.nano_usd_by_model[model], rate)),
                    "tokens": summary.tokens_by_model[model],
                }
                for name, summary in summaries.items()
                for model, cost in summary.by_model.items()
            ],
        }


def _edge_s(moment: date, zone: str, days: int) -> int:
    """Where a span begins or ends: a moment, or the midnight `days` after a day's first."""
    try:
        if not isinstance(moment, datetime):
            return hours_edge(day_start_s(moment + timedelta(days=days), zone))
        return int((moment if moment.tzinfo else moment.replace(tzinfo=zone_of(zone))).timestamp())
    except OverflowError:
        raise ValueError(f"there is no span that begins or ends at {moment}") from None
