"""`tracker.budget_enforcer` and `tracker.cost_calculator`: the handles the guides use."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from .budget_status import BudgetStatus
from .budgets import Budget, Scope
from .counting import whole_count
from .currency import NANO
from .errors import UnknownModelError
from .usage import TokenUsage

if TYPE_CHECKING:
    from .tracker import CostTracker


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
        """Limit a tenant's spend for each UTC day. None exempts the tenant from the budget of `tenant=*`. A day's part
        of a monthly amount is that amount ÷ 30.44; to limit the month itself, `set_budget` with `period="monthly"`.

        Raises ConfigurationError for an amount that is no amount.
        """
        await self.set_budget(Budget(scope=Scope(tenant=tenant_id), limit_usd=usd))

    async def set_budget(self, budget: Budget) -> None:
        """Set or replace the budget of a scope and period. Spend is kept. A model goes by its canonical name."""
        await self._tracker.ready()
        await self._tracker.store.set_budget(self._tracker.names.budget(budget))
        self._tracker.index.update(*await self._tracker.store.forms())

    async def remove_budget(self, scope: Scope | str, period: str = "daily") -> bool:
        """Forget a budget set at run time; a declared one of the same scope and period applies again."""
        await self._tracker.ready()
        scope = Scope.parse(scope) if isinstance(scope, str) else scope
        removed = await self._tracker.store.remove_budget(f"{self._tracker.names.scope(scope)}|{period}")
        self._tracker.index.update(*await self._tracker.store.forms())
        return removed

    async def status(self, scope: Scope | str) -> list[BudgetStatus]:
        """Every budget that binds a call of this scope, now. Raises ConfigurationError for what is no scope."""
        await self._tracker.ready()
        return await self.read(scope)

    async def read(self, scope: Scope | str) -> list[BudgetStatus]:
        """`status` of a store that is open, without starting anything."""
        tracker = self._tracker
        values = tracker.values_of(scope)
        states = await tracker.read_lines(values)
        return await tracker.told(states, tracker.index.matches(values))


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
