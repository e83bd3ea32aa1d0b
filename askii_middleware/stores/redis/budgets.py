"""Budgets, and this process's copy of the budgets' terms."""

from __future__ import annotations

from collections.abc import Collection

from ...budgets import Budget
from ..budget_json import read, written
from ..plans import TermsCopy
from ..rules import form_of
from .base import RedisBase
from .wire import text

_AT_ONCE = 1000


class RedisBudgets(RedisBase):
    """Budgets."""

    _terms: TermsCopy

    async def load_terms(self) -> None:
        """Bring `_terms` to the store's present version."""
        known = self._terms.version
        newest, *changes = await self._run("changed_budgets", (known,))
        version, present = int(newest), self._terms.version
        # Others may have asked meanwhile: what is older than their answers is ignored, and loaded again if need be.
        is_lossy = version < known == present  # the server has lost edits, and has sent all it knows
        if is_lossy:
            self._terms.terms.clear()
        if is_lossy or known <= present < version:
            budgets = ((text(key), read(row).terms if row else None) for key, row in _pairs(changes))
            self._terms.update(version, budgets)

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        version, forms = await self._run("forms")
        return int(version), sorted(_form(text(form)) for form in forms)

    async def set_budget(self, budget: Budget) -> None:
        await self._run("set_budget", (budget.key, "|".join(form_of(budget)), written(budget)))

    async def remove_budget(self, key: str) -> bool:
        return bool(await self._run("remove_budget", (key,)))

    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        keys = sorted(key for key in map(text, await self._call("HKEYS", "budgets")) if key > after)
        wanted = [key for key in keys if contains in key.rpartition("|")[0]]
        return await self.budgets_of(wanted[: None if limit is None else max(limit, 0)])

    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        asked, found = list(dict.fromkeys(keys)), []
        for start in range(0, len(asked), _AT_ONCE):
            found += await self._call("HMGET", "budgets", *asked[start : start + _AT_ONCE])
        return [read(row) for row in found if row is not None]


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _form(joined: str) -> tuple[str, str, str]:
    shape, period, zone = joined.split("|")
    return shape, period, zone
