"""The hourly sums of a ledger in memory: as many rows as there are tenants, so each is four machine words."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from itertools import islice

from ..budgets import scope_text
from .base import AggregateRow, SpendRow, SpendSums, UnwritableError
from .forgetting import DELETED
from .rules import hour_of, hours, hours_between, is_one, is_tenant

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

    def under(self, prefix: str) -> Iterator[tuple[str, Sequence[int]]]:
        """The scopes that are a prefix and one value, and what they have."""
        for scope, place in self.places.items():
            if is_one(prefix, scope):
                yield scope, self.counts[place : place + _COUNTS]

    def add_to(self, found: dict[str, list[int]], prefix: str) -> None:
        """Add what the scopes that begin with a prefix have. There are many: nothing is made for each but a word."""
        counts = self.counts
        for scope, place in self.places.items():
            if scope.startswith(prefix):
                known = found.get(scope)
                if known is None:
                    found[scope] = list(counts[place : place + _COUNTS])
                    continue
                known[0] += counts[place]
                known[1] += counts[place + 1]
                known[2] += counts[place + 2]
                known[3] += counts[place + 3]

    def take(self, scope: str) -> Sequence[int]:
        """Forget a scope that is there. Its words stay until the hour goes."""
        place = self.places.pop(scope)
        return self.counts[place : place + _COUNTS]


class AggregateBook:
    """Not a store: its methods are the synchronous halves of those of `MemoryStore`."""

    def __init__(self) -> None:
        self._hours: dict[int, dict[tuple[str, str], _Sums]] = {}
        """By hour, then by model and provider."""
        self._pruned = (0, 0)
        """Requests and nano-USD of tenants, of the hours that are gone."""

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

    def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        """See `Store.spend_over`."""
        edges = hours_between(edges_s)
        spans: list[dict[tuple[str, str], Sequence[int]]] = [{} for _ in edges[1:]]
        for hour, kinds in self._hours.items():
            number = bisect_right(edges, hour) - 1
            if not 0 <= number < len(spans):
                continue
            span = spans[number]
            for kind, sums in kinds.items():
                for scope in dict.fromkeys(scopes):
                    counts = sums.of(scope)
                    if counts is not None:
                        span[kind] = _plus(span.get(kind, _NONE), counts)
        return [[SpendRow(*kind, *span[kind]) for kind in sorted(span)] for span in spans]

    def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        """See `Store.top_spend`."""
        first, last = hours(start_s, end_s)
        found: dict[str, list[int]] = {}
        for hour, kinds in self._hours.items():
            for sums in kinds.values() if first <= hour < last else ():
                sums.add_to(found, prefix)
        rows = (SpendSums(scope, *counts) for scope, counts in found.items() if is_one(prefix, scope))
        return nsmallest(max(limit, 0), rows, key=lambda row: (-row.cost_nano_usd, row.scope))

    def totals(self) -> tuple[int, int]:
        """Requests and nano-USD of all tenants together, pruned hours included."""
        requests, cost = self._pruned
        for kinds in self._hours.values():
            for sums in kinds.values():
                for _, counts in sums.under("tenant="):
                    requests, cost = requests + counts[0], cost + counts[-1]
        return requests, cost

    def erase(self, tenant: str, named: Callable[[str], bool]) -> int:
        """Forget the scopes that are `named`; what the tenant has goes to the erased ones. How many rows there were."""
        own, rest = (scope_text({"tenant": name}) for name in (tenant, DELETED))
        count = 0
        for kinds in self._hours.values():
            for sums in kinds.values():
                for scope in [scope for scope in sums.places if named(scope)]:
                    counts = sums.take(scope)
                    if scope == own:
                        sums.add(rest, counts)
                    count += 1
        return count

    def prune(self, before_s: float, limit: int) -> int:
        """Drop rows of hours that were over by then. How many."""
        count = 0
        for hour in sorted(hour for hour in self._hours if hour < hour_of(before_s)):
            for sums in self._hours[hour].values():
                for scope in list(islice(sums.places, limit - count)):
                    requests, *_, cost = sums.take(scope)
                    if is_tenant(scope):
                        self._pruned = self._pruned[0] + requests, self._pruned[1] + cost
                    count += 1
            if any(sums.places for sums in self._hours[hour].values()):
                break
            del self._hours[hour]
        return count


def _plus(known: Sequence[int], added: Sequence[int]) -> Sequence[int]:
    return [a + b for a, b in zip(known, added, strict=True)]
