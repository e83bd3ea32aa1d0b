"""What was spent, and the sums of the whole ledger. Hourly sums lie in one hash for each scope and day."""

from __future__ import annotations

from collections.abc import Iterator

from ...admission import Window
from ...budgets import Scope
from ..base import SpendRow, Totals
from ..rules import hours
from .base import RedisBase
from .wire import text

_KINDS = b"rioc"
"""Requests, input tokens, output tokens, nano-USD: the first letter of a field."""


class RedisReading(RedisBase):
    """Aggregates, totals and records."""

    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        first, last = hours(start_s, end_s)
        sums: dict[tuple[str, str], list[int]] = {}
        for day in await self._run("spend", (scope, first // 24, (last - 1) // 24)):
            for kind, hour, names, amount in _fields(day):
                if first <= hour < last:
                    sums.setdefault(names, [0, 0, 0, 0])[kind] += amount
        return [SpendRow(*names, *sums[names]) for names in sorted(sums)]

    async def tenant_spend(self, period: str, window: Window, limit: int) -> list[tuple[str, int]]:
        del period
        found = await self._run("tenant_spend", (*hours(*window), max(limit, 0)))
        spent = zip(found[::2], found[1::2], strict=True)
        return [(Scope.parse(text(scope)).tenant or "", -int(float(amount))) for scope, amount in spent]

    async def totals(self) -> Totals:
        return Totals(*map(int, await self._run("totals")))

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        found = await self._run("records", (after_seq, max(limit, 0)))
        return list(zip(found[::2], found[1::2], strict=True))

    async def record(self, call_id: str) -> bytes | None:
        found: bytes | None = await self._run("record_of", (call_id,))
        return found


def _fields(day: list[bytes]) -> Iterator[tuple[int, int, tuple[str, str], int]]:
    """Kind, hour, model and provider, amount of each field; `lua/record.lua` says how they are named."""
    for field, amount in zip(day[::2], day[1::2], strict=True):
        hour, size, names = field[1:].split(b":", 2)
        model, provider = names[: int(size)], names[int(size) :]
        yield _KINDS.index(field[0]), int(hour), (text(model), text(provider)), int(amount)
