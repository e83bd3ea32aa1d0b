"""The one name under which budgets, records and metrics know a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .budgets import Budget, Scope
from .models import family

if TYPE_CHECKING:
    from .pricing import PriceBook

MAX_NAMES = 4096


class ModelNames:
    """A dated model's family, unless the dated one has a price of its own; aliases applied, prefixes stripped.

    Prices that are set at run time do not count here: a name that changed under a budget would leave its counter.
    """

    __slots__ = ("_known", "_prices")

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self._known: dict[str, str] = {}

    def of(self, model: str) -> str:
        """The name of a model. Bounded cache: clients and providers choose the spellings."""
        known = self._known.get(model)
        if known is None:
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            name = self._prices.canonical(model)
            short = family(name)
            entry = self._prices.declared_entry
            same = short == name or entry(name) == entry(short)
            known = self._known[model] = short if same else name
        return known

    def scope(self, scope: Scope) -> Scope:
        """The scope with its model by name."""
        if scope.model is None or scope.model == "*":
            return scope
        return replace(scope, model=self.of(scope.model))

    def budget(self, budget: Budget) -> Budget:
        """The budget with its model by name."""
        assert isinstance(budget.scope, Scope)
        scope = self.scope(budget.scope)
        return budget if scope == budget.scope else replace(budget, scope=scope)
