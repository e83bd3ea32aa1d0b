"""Budgets as they are known: those set at run time, and the declared ones that no such budget replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from .budgets import Budget

if TYPE_CHECKING:
    from .tracker import CostTracker

Source = Literal["store", "config"]


class KnownBudget(NamedTuple):
    """A budget, and where it comes from."""

    budget: Budget
    source: Source
    declared: bool
    """Whether the configuration has one of the same scope and period."""


async def known_budgets(tracker: CostTracker, *, after: str = "", limit: int, contains: str = "") -> list[KnownBudget]:
    """Budgets by key: those after a key, whose scope has a text in it; at most `limit`. Raises StoreError."""
    declared = tracker.index.declared
    stored = {budget.key: budget for budget in await tracker.store.budgets(after=after, limit=limit, contains=contains)}
    # A stored budget beyond the page still replaces its declared one, but both are beyond it.
    keys = {key for key in declared if key > after and contains in key.rpartition("|")[0]} | stored.keys()
    return [
        KnownBudget(stored[key], "store", key in declared)
        if key in stored
        else KnownBudget(declared[key], "config", declared=True)
        for key in sorted(keys)[: max(limit, 0)]
    ]


async def budgets_on(tracker: CostTracker, scope: str, *, after: str = "", limit: int = 100) -> list[KnownBudget]:
    """`known_budgets` of exactly one scope (text form), one for each period."""
    begin = f"{scope}|"
    found = await known_budgets(tracker, after=max(after, begin), limit=limit)
    return [each for each in found if each.budget.key.startswith(begin)]


async def known_budget(tracker: CostTracker, key: str) -> KnownBudget | None:
    """The budget with this key. Raises StoreError."""
    declared = tracker.index.declared.get(key)
    stored = await tracker.store.budget(key)
    if stored is not None:
        return KnownBudget(stored, "store", declared is not None)
    return None if declared is None else KnownBudget(declared, "config", declared=True)
