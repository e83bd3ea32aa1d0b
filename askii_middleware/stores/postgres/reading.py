"""Sums and records, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..base import SpendRow, SpendSums, Totals
from ..rules import hours, hours_between
from .engine import Engine
from .wire import encode

_NEVER = (1 << 63) - 1
"""A number that no record comes to."""
_decode_spend = msgspec.json.Decoder(list[tuple[int, str, str, int, int, int, int]]).decode
_decode_top = msgspec.json.Decoder(list[SpendSums]).decode
_decode_totals = msgspec.json.Decoder(Totals).decode
_decode_records = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode


class PostgresReading(Engine):
    """See `Store`."""

    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        edges = hours_between(edges_s)
        spans: list[list[SpendRow]] = [[] for _ in edges[1:]]
        if spans:
            asked = encode(list(dict.fromkeys(scopes))), encode(edges)
            for row in _decode_spend(await self._call("spend_over", *asked)):
                spans[row[0] - 1].append(SpendRow(*row[1:]))
        for rows in spans:
            rows.sort()  # by code points, whatever the database's collation
        return spans

    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        return _decode_top(await self._call("top_spend", prefix, *hours(start_s, end_s), max(limit, 0)))

    async def totals(self) -> Totals:
        return _decode_totals(await self._call("totals", self._now()))

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        # Numbers are given out before their settlements are committed: up to here all are.
        return await self._numbered("records_between", after_seq, await self._call("settled_through"), max(limit, 0))

    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        return await self._numbered("latest", tenant, _NEVER if before_seq is None else before_seq, max(limit, 0))

    async def record(self, call_id: str) -> bytes | None:
        found: bytes | None = await self._call("record_of", call_id)
        return found

    async def _numbered(self, function: str, *args: str | int | None) -> list[tuple[int, bytes]]:
        found = _decode_records(await self._call(function, *args))
        return [(number, bytes(record)) for number, record in found]
