"""`tracker.budget_enforcer` and `tracker.cost_calculator`: the handles the guides use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from .admission import BudgetState, applicable
from .budgets import Budget, Scope
from .counting import whole_count
from .currency import NANO, Rate, nano_to_coins
from .errors import LAST_S, UnknownModelError
from .usage import TokenUsage

if TYPE_CHECKING:
    from .tracker import CostTracker


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget line now. Amounts are exact; None where there is no limit."""

    scope: str
    period: str
    limit_usd: Decimal | None
    spent_usd: Decimal
    held_usd: Decimal
    remaining_usd: Decimal | None
    limit_coins: Decimal | None
    spent_coins: Decimal
    held_coins: Decimal
    remaining_coins: Decimal | None
    resets_at: datetime
    source: str
    """`store` where it was set at run time, `config` where it is declared."""

    @property
    def utilisation(self) -> float:
        """(spent + held) / limit; 0.0 without a limit, 1.0 for a limit of 0."""
        if self.limit_usd is None:
            return 0.0
        return float((self.spent_usd + self.held_usd) / self.limit_usd) if self.limit_usd else 1.0


def usd(nano_usd: int) -> Decimal:
    """Nano-USD as an exact amount in USD."""
    return Decimal(nano_usd).scaleb(-9)


def status_of(state: BudgetState, rate: Rate, source: str) -> BudgetStatus:
    """A store's line as people read it."""
    limit, remaining = state.limit_nano_usd, state.remaining_nano_usd
    return BudgetStatus(
        scope=state.scope,
        period=state.period,
        limit_usd=None if limit is None else usd(limit),
        spent_usd=usd(state.spent_nano_usd),
        held_usd=usd(state.held_nano_usd),
        remaining_usd=None if remaining is None else usd(remaining),
        limit_coins=None if limit is None else nano_to_coins(limit, rate),
        spent_coins=nano_to_coins(state.spent_nano_usd, rate),
        held_coins=nano_to_coins(state.held_nano_usd, rate),
        remaining_coins=None if remaining is None else nano_to_coins(remaining, rate),
        resets_at=datetime.fromtimestamp(min(state.resets_at_s, LAST_S), UTC),
        source=source,
    )


class BudgetEnforcer:
    """Sets and shows budgets. What is set here lives in the store and reaches every worker at its next call."""

    def __init__(self, tracker: CostTracker) -> None:
        self._tracker = tracker

    @property
    def fallback_model(self) -> str | None:
        """The model every other text model falls back to when a budget is short."""
        return self._tracker.fallbacks.default

    @fallback_model.setter
    def fallback_model(self, model: str | None) -> None:
        if model is not None and self._tracker.price_of(model) is None:
            raise UnknownModelError(model)
        self._tracker.fallbacks.default = model

    async def set_daily_budget(self, tenant_id: str, usd: Decimal | float | str | None) -> None:
        """Limit a tenant's spend for each UTC day. None exempts the tenant from the budget of `tenant=*`.

        Raises ConfigurationError for an amount that is no amount.
        """
        await self.set_budget(Budget(scope=Scope(tenant=tenant_id), limit_usd=usd))

    async def set_budget(self, budget: Budget) -> None:
        """Set or replace the budget of a scope and period. Spend is kept."""
        await self._tracker.ready()
        await self._tracker.store.set_budget(budget)
        self._tracker.index.update(*await self._tracker.store.forms())

    async def remove_budget(self, scope: Scope | str, period: str = "daily") -> bool:
        """Forget a budget set at run time; a declared one of the same scope and period applies again."""
        await self._tracker.ready()
        text = scope if isinstance(scope, str) else scope.text
        removed = await self._tracker.store.remove_budget(f"{Scope.parse(text).text}|{period}")
        self._tracker.index.update(*await self._tracker.store.forms())
        return removed

    async def status(self, scope: Scope | str) -> list[BudgetStatus]:
        """Every budget that binds a call of this scope, now. Raises ConfigurationError for what is no scope."""
        await self._tracker.ready()
        return await self.read(scope)

    async def read(self, scope: Scope | str) -> list[BudgetStatus]:
        """`status` of a store that is open, without starting anything."""
        scope = Scope.parse(scope) if isinstance(scope, str) else scope
        tracker = self._tracker
        values = {name: getattr(scope, name) for name in scope.shape}
        states = await tracker.read_lines(values)
        stored = {budget.key: budget.terms for budget in await tracker.store.budgets()}
        own = {
            f"{match.counter}|{terms.zone}"
            for match in tracker.index.matches(values)
            for key, terms in applicable(match, stored)
            if key in stored
        }
        rate = tracker.rates.current()
        return [
            status_of(state, rate, "store" if state.counter.rpartition("|")[0] in own else "config") for state in states
        ]


class CostCalculator:
    """`tracker.cost_calculator`."""

    def __init__(self, tracker: CostTracker) -> None:
        self._tracker = tracker

    async def calculate(
        self, *, model: str, input_tokens: int, output_tokens: int, tenant_id: str | None = None
    ) -> float:
        """What so many tokens of a model cost, in USD. `tenant_id` is taken for the guides' sake; prices are the same
        for all tenants. Raises UnknownModelError, and ValueError for counts that are none.
        """
        del tenant_id
        price = self._tracker.price_of(model)
        if price is None:
            raise UnknownModelError(model)
        usage = TokenUsage.from_totals(
            whole_count("input_tokens", input_tokens), whole_count("output_tokens", output_tokens)
        )
        return price.charge(usage).nano_usd / NANO
