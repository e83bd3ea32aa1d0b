"""The stored budgets of a ledger in memory."""

from __future__ import annotations

from collections import Counter

from ..admission import BudgetTerms
from ..budgets import Budget
from .lines import Resolver
from .rules import form_of


class BudgetBook:
    """Invariant: all that is here follows from the budgets as they are now, but for the versions, which only rise."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}
        self.terms: dict[str, BudgetTerms] = {}
        self.resolver = Resolver()
        self.forms: Counter[tuple[str, str, str]] = Counter()
        self.forms_version = 0
        self.version = 0
        """Of the budgets themselves: rises with every edit."""
        self.alerting = 0
        """How many report crossings."""

    def put(self, budget: Budget) -> None:
        terms = budget.terms
        before = set(self.forms)
        self._forget(budget.key)
        self._budgets[budget.key], self.terms[budget.key] = budget, terms
        self.forms[form_of(budget)] += 1
        self.alerting += bool(terms.alert_at_ppm)
        self._edited(before)

    def remove(self, key: str) -> bool:
        before = set(self.forms)
        found = self._forget(key)
        if found:
            self._edited(before)
        return found

    def _forget(self, key: str) -> bool:
        budget = self._budgets.pop(key, None)
        if budget is None:
            return False
        self.alerting -= bool(self.terms.pop(key).alert_at_ppm)
        form = form_of(budget)
        self.forms[form] -= 1
        if not self.forms[form]:
            del self.forms[form]
        return True

    def _edited(self, forms_before: set[tuple[str, str, str]]) -> None:
        self.resolver.forget()
        self.version += 1
        self.forms_version += set(self.forms) != forms_before

    def all(self) -> list[Budget]:
        return [self._budgets[key] for key in sorted(self._budgets)]
