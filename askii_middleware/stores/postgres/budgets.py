"""Budgets and keys on PostgreSQL, and this process's copy of the budgets' terms."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from ...admission import BudgetTerms
from ...budgets import Budget
from ...errors import StoreError
from ..base import KeyRow
from ..plans import TermsCopy
from ..rules import form_of
from .engine import Engine
from .wire import encode

_decode_forms = msgspec.json.Decoder(tuple[int, list[tuple[str, str, str]]]).decode
_decode_terms = msgspec.json.Decoder(tuple[int, list[tuple[str, BudgetTerms | None]]]).decode
_decode_budgets = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_key = msgspec.json.Decoder(KeyRow).decode
_decode_keys = msgspec.json.Decoder(list[KeyRow]).decode


class PostgresBudgets(Engine):
    """Budgets and keys."""

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
        await self._call("set_budget", budget.key, *form_of(budget), encode(terms), _written(budget))

    async def remove_budget(self, key: str) -> bool:
        return bool(await self._call("remove_budget", key))

    async def budgets(self) -> list[Budget]:
        return [_read(row) for row in _decode_budgets(await self._call("budgets_all"))]

    async def put_key(self, row: KeyRow) -> None:
        if not await self._call("put_key", row.id, row.sha256, encode(row)):
            raise StoreError(f"key {row.id!r}: another key has the same secret")

    async def keys(self) -> list[KeyRow]:
        return _decode_keys(await self._call("keys_all"))

    async def find_key(self, sha256: str) -> KeyRow | None:
        row = await self._call("find_key", sha256)
        return None if row is None else _decode_key(row)


def _written(budget: Budget) -> bytes:
    def text(limit: object) -> str | None:
        return None if limit is None else str(limit)

    return encode(
        {
            "scope": str(budget.scope),
            "limit_usd": text(budget.limit_usd),
            "limit_coins": text(budget.limit_coins),
            "period": budget.period,
            "zone": budget.zone,
            "alert_at": budget.alert_at,
            "soft": budget.soft,
            "max_values": budget.max_values,
            "enabled": budget.enabled,
        }
    )


def _read(row: dict[str, Any]) -> Budget:
    for name in ("limit_usd", "limit_coins"):
        row[name] = None if row[name] is None else Decimal(row[name])
    return Budget(**{**row, "alert_at": tuple(row["alert_at"])})
