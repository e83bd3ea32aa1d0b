"""Budgets as pages and the API list them: stored and declared ones in one order."""

from __future__ import annotations

from askii_middleware import Budget, CostTracker
from askii_middleware.known_budgets import budgets_on, known_budget, known_budgets
from askii_middleware.stores import open_store

DECLARED = [Budget(scope=scope, limit_usd=1) for scope in ("tenant=a", "tenant=c", "tenant=e", "tenant=*")]
STORED = [Budget(scope=scope, limit_usd=2) for scope in ("tenant=b", "tenant=c", "tenant=d")]


async def test_pages_hold_every_budget_once_and_stored_ones_win() -> None:
    async with CostTracker(store=open_store("memory://"), budgets=DECLARED) as tracker:
        for budget in STORED:
            await tracker.store.set_budget(budget)
        for limit in (1, 2, 3, 10):
            seen, after = [], ""
            while page := await known_budgets(tracker, after=after, limit=limit):
                assert len(page) <= limit
                seen += [(str(each.budget.scope)[7:], each.source, each.declared) for each in page]
                after = page[-1].budget.key
            assert seen == [
                ("*", "config", True),
                ("a", "config", True),
                ("b", "store", False),
                ("c", "store", True),
                ("d", "store", False),
                ("e", "config", True),
            ]


async def test_budgets_are_found_by_scope_by_key_and_by_a_text() -> None:
    async with CostTracker(store=open_store("memory://"), budgets=DECLARED) as tracker:
        for budget in (*STORED, Budget(scope="tenant=b", limit_usd=3, period="7d"), Budget(scope="tenant=bb")):
            await tracker.store.set_budget(budget)
        assert [each.budget.period for each in await budgets_on(tracker, "tenant=b")] == ["7d", "daily"]
        assert [each.budget.period for each in await budgets_on(tracker, "tenant=b", after="tenant=b|7d")] == ["daily"]
        assert [each.budget.key for each in await known_budgets(tracker, limit=9, contains="=b")] == [
            "tenant=bb|daily",
            "tenant=b|7d",
            "tenant=b|daily",
        ]
        stored, declared = await known_budget(tracker, "tenant=c|daily"), await known_budget(tracker, "tenant=e|daily")
        assert stored is not None
        assert (stored.budget.limit_usd, stored.source, stored.declared) == (2, "store", True)
        assert declared is not None
        assert (declared.budget.limit_usd, declared.source) == (1, "config")
        assert await known_budget(tracker, "tenant=f|daily") is None
