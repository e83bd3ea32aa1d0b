"""Budgets on PostgreSQL, and this process's copy of the budgets' terms."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from ...admission import BudgetTerms
from ...budgets import Budget
from ..budget_json import from_row, written
from ..plans import TermsCopy
from ..rules import form_of
from .engine import Engine
from .wire import encode

_decode_forms = msgspec.json.Decoder(tuple[int, list[tuple[str, str, str]]]).decode
_decode_terms = msgspec.json.Decoder(tuple[int, list[tuple[str, BudgetTerms | None]]]).decode
_decode_budgets = msgspec.json.Decoder(list[dict[str, Any]]).decode


class PostgresBudgets(Engine):
    """Budgets."""

    def __init__(self, url: str, *, timeout_s: float = 5.0, clock: Callable[[], float] | None = None) -> None:
        super().__init__(url, timeout_s=timeout_s, clock=clock)
        self._terms = TermsCopy(encode)

    async def load_terms(self) -> None:
        """Bring `_terms` to the store's present version."""
        known = self._terms.version
        version, changes = _decode_terms(await self._call("terms_since", known))
        if version > known:
            # Others may have asked meanwhile. Versions only grow, and each answer holds all changes since `known`.
            if version > self._terms.version:
                self._terms.update(version, changes)
        elif version < known:  # another ledger stands there now
            self._terms = TermsCopy(encode)

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        return _decode_forms(await self._call("forms"))

    async def set_budget(self, budget: Budget) -> None:
        terms = budget.terms
        await self._call("set_budget", budget.key, *form_of(budget), encode(terms), written(budget))

    async def remove_budget(self, key: str) -> bool:
        return bool(await self._call("remove_budget", key))

    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        if "\0" in contains:  # no text of the server has it; no key either, so that it changes nothing behind `after`
            return []
        page = after.partition("\0")[0], None if limit is None else max(limit, 0), contains
        return [from_row(row) for row in _decode_budgets(await self._call("budgets_after", *page))]

    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        asked = [key for key in keys if "\0" not in key]
        return [from_row(row) for row in _decode_budgets(await self._call("budgets_of", encode(asked)))]
