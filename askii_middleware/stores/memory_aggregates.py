"""The hourly sums of a ledger in memory: as many rows as there are tenants, so each is four machine words."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from ..budgets import Scope
from .base import AggregateRow, SpendRow, UnwritableError
from .rules import hour_of, hours, is_tenant

_COUNTS = 4
"""Requests, input tokens, output tokens, nano-USD."""
_NONE = (0,) * _COUNTS
_MOST = 1 << 62
"""Half of what a machine word holds: one settlement may name a scope twice."""


class _Sums:
    """By scope, for one hour, model and provider."""

    __slots__ = ("counts", "places")

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.counts = array("q")

    def check(self, scope: str, added: Sequence[int]) -> None:
        for known, count in zip(self.of(scope) or _NONE, added, strict=True):
            if not -_MOST <= known + count <= _MOST:
                raise UnwritableError(f"the aggregates of {scope} cannot hold {known} and {count} more")

    def add(self, scope: str, added: Sequence[int]) -> None:
        place = self.places.get(scope)
        if place is None:
            self.places[scope] = len(self.counts)
            self.counts.extend(added)
            return
        for count in added:
            self.counts[place] += count
            place += 1

    def of(self, scope: str) -> Sequence[int] | None:
        place = self.places.get(scope)
        return None if place is None else self.counts[place : place + _COUNTS]

    def tenants(self) -> Iterator[tuple[str, int, int]]:
        """Scope, requests and nano-USD of each tenant."""
        for scope, place in self.places.items():
            if is_tenant(scope):
                yield scope, self.counts[place], self.counts[place + _COUNTS - 1]


class AggregateBook:
    """Not a store: its methods are the synchronous halves of those of `MemoryStore`."""

    def __init__(self) -> None:
        self._hours: dict[int, dict[tuple[str, str], _Sums]] = {}
        """By hour, then by model and provider."""

    def add(self, at_s: float, rows: Sequence[AggregateRow]) -> None:
        """All rows, or none: raises UnwritableError for a sum no machine word holds."""
        kinds = self._hours.setdefault(hour_of(at_s), {})
        parts = []
        for scope, model, provider, *added in rows:
            sums = kinds.get((model, provider)) or _Sums()
            sums.check(scope, added)
            parts.append((sums, scope, added, (model, provider)))
        for sums, scope, added, kind in parts:
            kinds.setdefault(kind, sums).add(scope, added)

    def _between(self, start_s: float, end_s: float) -> Iterator[tuple[tuple[str, str], _Sums]]:
        first, last = hours(start_s, end_s)
        for hour, kinds in self._hours.items():
            if first <= hour < last:
                yield from kinds.items()

    def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        found: dict[tuple[str, str], Sequence[int]] = {}
        for kind, sums in self._between(start_s, end_s):
            counts = sums.of(scope)
            if counts is not None:
                found[kind] = [a + b for a, b in zip(found.get(kind, _NONE), counts, strict=True)]
        return [SpendRow(*kind, *found[kind]) for kind in sorted(found)]

    def totals(self) -> tuple[int, int]:
        """Requests and nano-USD of all tenants together."""
        rows = [row for kinds in self._hours.values() for sums in kinds.values() for row in sums.tenants()]
        return sum(requests for _, requests, _ in rows), sum(cost for _, _, cost in rows)

    def tenant_spend(self, start_s: float, end_s: float, limit: int) -> list[tuple[str, int]]:
        found: dict[str, int] = {}
        for _, sums in self._between(start_s, end_s):
            for scope, _, cost in sums.tenants():
                found[scope] = found.get(scope, 0) + cost
        highest = sorted(found.items(), key=lambda item: (-item[1], item[0]))[: max(limit, 0)]
        return [(Scope.parse(scope).tenant or "", cost) for scope, cost in highest]
