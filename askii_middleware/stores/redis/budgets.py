"""Budgets and keys, and this process's copy of the budgets' terms."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from ...budgets import Budget
from ...errors import StoreError
from ..base import KeyRow
from ..plans import TermsCopy
from ..rules import form_of
from .base import RedisBase
from .wire import text

_encode = msgspec.json.Encoder().encode
_decode_budget = msgspec.json.Decoder(dict[str, Any]).decode
_decode_key = msgspec.json.Decoder(KeyRow).decode


class RedisBudgets(RedisBase):
    """Budgets and keys."""

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
            budgets = ((text(key), _read(row).terms if row else None) for key, row in _pairs(changes))
            self._terms.update(version, budgets)

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        version, forms = await self._run("forms")
        return int(version), sorted(_form(text(form)) for form in forms)

    async def set_budget(self, budget: Budget) -> None:
        await self._run("set_budget", (budget.key, "|".join(form_of(budget)), _written(budget)))

    async def remove_budget(self, key: str) -> bool:
        return bool(await self._run("remove_budget", (key,)))

    async def budgets(self) -> list[Budget]:
        found = {text(key): row for key, row in _pairs(await self._call("HGETALL", "budgets"))}
        return [_read(found[key]) for key in sorted(found)]

    async def put_key(self, row: KeyRow) -> None:
        if not await self._run("put_key", (row.id, row.sha256, _encode(row))):
            raise StoreError(f"key {row.id!r}: another key has the same secret")

    async def keys(self) -> list[KeyRow]:
        return sorted(map(_decode_key, await self._call("HVALS", "keys")), key=lambda row: row.id)

    async def find_key(self, sha256: str) -> KeyRow | None:
        row = await self._run("find_key", (sha256,))
        return None if row is None else _decode_key(row)


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _form(joined: str) -> tuple[str, str, str]:
    shape, period, zone = joined.split("|")
    return shape, period, zone


def _written(budget: Budget) -> bytes:
    def exact(limit: object) -> str | None:
        return None if limit is None else str(limit)

    return _encode(
        {
            "scope": str(budget.scope),
            "limit_usd": exact(budget.limit_usd),
            "limit_coins": exact(budget.limit_coins),
            "period": budget.period,
            "zone": budget.zone,
            "alert_at": budget.alert_at,
            "soft": budget.soft,
            "max_values": budget.max_values,
            "enabled": budget.enabled,
        }
    )


def _read(written: bytes) -> Budget:
    row = _decode_budget(written)
    for name in ("limit_usd", "limit_coins"):
        row[name] = None if row[name] is None else Decimal(row[name])
    return Budget(**{**row, "alert_at": tuple(row["alert_at"])})
