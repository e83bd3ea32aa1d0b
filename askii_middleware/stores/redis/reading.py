"""What was spent, and the sums of the whole ledger. `lua/sums.lua` says how they lie there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..base import SpendRow, SpendSums, Totals
from ..rules import hours, hours_between
from .base import RedisBase
from .wire import text

_DAYS_AT_ONCE = 1000
"""Of all scopes together, that one script reads: nobody else is served meanwhile."""
_KEPT_DAYS = 402
_pack = msgspec.msgpack.Encoder().encode
_decode_read = msgspec.msgpack.Decoder(list[tuple[int, list[str], list[list[Any]]]]).decode
Names = tuple[str, str]
"""Model and provider."""
Sums = dict[Names, list[int]]
"""Requests, input tokens, output tokens and nano-USD."""


class RedisReading(RedisBase):
    """Aggregates, totals and records."""

    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        edges, asked = hours_between(edges_s), list(dict.fromkeys(scopes))
        spans: list[Sums] = [{} for _ in edges[1:]]
        if spans and asked:
            for _, places, reads in await self._read(asked, edges):
                _add(spans, places, reads)
        return [[SpendRow(*names, *sums[names]) for names in sorted(sums)] for sums in spans]

    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        first, last = hours(start_s, end_s)
        found: list[SpendSums] = []
        offset = 0
        while len(found) < limit:
            asked = prefix, first, last, offset, limit
            scopes = [text(scope) for scope in await self._run("top_spend", asked)]
            offset += limit
            found += await self._sums_of(scopes, first, last)
            if len(scopes) < limit:
                break
        return sorted(found, key=lambda row: (-row.cost_nano_usd, row.scope))[: max(limit, 0)]

    async def _sums_of(self, scopes: Sequence[str], first: int, last: int) -> list[SpendSums]:
        """Of those that have any."""
        by_scope: dict[int, Sums] = {}
        for number, places, reads in await self._read(scopes, [first, last]):
            _add([by_scope.setdefault(number, {})], places, reads)
        return [
            SpendSums(scopes[number], *map(sum, zip(*sums.values(), strict=True)))
            for number, sums in by_scope.items()
            if sums
        ]

    async def _read(self, scopes: Sequence[str], edges: Sequence[int]) -> list[tuple[int, list[str], list[list[Any]]]]:
        """Scopes are numbered from 0."""
        days = max(1, min((edges[-1] - edges[0]) // 24 + 2, _KEPT_DAYS))
        size = max(1, _DAYS_AT_ONCE // days)
        found = []
        for start in range(0, len(scopes), size):
            packed = _pack((scopes[start : start + size], edges))
            for number, places, reads in _decode_read(await self._run("spend_over", (packed,))):
                found.append((start + number - 1, places, reads))
        return found

    async def totals(self) -> Totals:
        return Totals(*map(int, await self._run("totals")))

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        found = await self._run("records", (after_seq, max(limit, 0)))
        return list(zip(found[::2], found[1::2], strict=True))

    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        whose = () if tenant is None else (tenant,)
        found = await self._run("latest", (max(limit, 0), "" if before_seq is None else before_seq, *whose))
        return list(zip(found[::2], found[1::2], strict=True))

    async def record(self, call_id: str) -> bytes | None:
        found: bytes | None = await self._run("record_of", (call_id,))
        return found


def names_of(place: str) -> Names:
    """The inverse of `requests.place_of`."""
    size, _, both = place.partition(":")
    names = both.encode()
    return text(names[: int(size)]), text(names[int(size) :])


def _add(spans: list[Sums], places: list[str], reads: list[list[Any]]) -> None:
    """Add what `lua/spend_over.lua` has read of a day to the spans it counts for, and take it off where it does not."""
    names = [names_of(place) for place in places]
    cut: set[tuple[int, Names]] = set()
    for span, other, *values in reads:
        for name, value in zip(names, values, strict=True):
            if not value:
                continue
            one, two, three, four = map(int, value.split())
            if span:
                sums = spans[span - 1].setdefault(name, [0, 0, 0, 0])
                sums[0], sums[1], sums[2], sums[3] = sums[0] + one, sums[1] + two, sums[2] + three, sums[3] + four
            if other:
                cut.add((other, name))
                sums = spans[other - 1].setdefault(name, [0, 0, 0, 0])
                sums[0], sums[1], sums[2], sums[3] = sums[0] - one, sums[1] - two, sums[2] - three, sums[3] - four
    for span, name in cut:
        if not any(spans[span - 1][name]):
            del spans[span - 1][name]  # it has nothing in this part of the day
