"""Sums and records, on PostgreSQL."""

from __future__ import annotations

import msgspec

from ...admission import Window
from ...budgets import Scope
from ..base import SpendRow, Totals
from ..rules import hours
from .engine import Engine

_decode_spend = msgspec.json.Decoder(list[SpendRow]).decode
_decode_tenants = msgspec.json.Decoder(list[tuple[str, int]]).decode
_decode_totals = msgspec.json.Decoder(Totals).decode
_decode_records = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode


class PostgresReading(Engine):
    """See `Store`."""

    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        return _decode_spend(await self._call("spend", scope, *hours(start_s, end_s)))

    async def tenant_spend(self, period: str, window: Window, limit: int) -> list[tuple[str, int]]:
        del period
        found = await self._call("tenant_spend", *hours(window.start_s, window.end_s), max(limit, 0))
        return [(Scope.parse(scope).tenant or "", cost) for scope, cost in _decode_tenants(found)]

    async def totals(self) -> Totals:
        return _decode_totals(await self._call("totals", self._now()))

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        # Numbers are given out before their settlements are committed: up to here all are.
        through = await self._call("settled_through")
        found = _decode_records(await self._call("records_between", after_seq, through, max(limit, 0)))
        return [(seq, bytes(record)) for seq, record in found]

    async def record(self, call_id: str) -> bytes | None:
        found: bytes | None = await self._call("record_of", call_id)
        return found
