"""The stored budgets of a ledger in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

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

    def erase(self, named: Callable[[str], bool]) -> int:
        """Forget those whose scopes are `named`. How many."""
        return sum([self.remove(key) for key, budget in list(self._budgets.items()) if named(str(budget.scope))])

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

    def some(self, after: str, limit: int | None, contains: str) -> list[Budget]:
        """See `Store.budgets`."""
        keys = sorted(key for key in self._budgets if key > after and contains in key.rpartition("|")[0])
        return [self._budgets[key] for key in keys[: None if limit is None else max(limit, 0)]]

    def of(self, keys: Collection[str]) -> list[Budget]:
        """See `Store.budgets_of`."""
        return [self._budgets[key] for key in dict.fromkeys(keys) if key in self._budgets]
