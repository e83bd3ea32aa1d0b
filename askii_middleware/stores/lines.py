"""Which counters a call stands on, and what rules each of them. Pure: a store says what it has, and writes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from hashlib import sha256
from math import inf
from typing import NamedTuple

from ..admission import PPM, BudgetState, BudgetTerms, Match, Window, applicable, limit_of
from ..budgets import INVENTED, window
from ..currency import MAX_NANO_USD
from .base import Alert, StaleFormsError

Amounts = tuple[int, int]
"""Spent and held, in nano-USD."""
Crowding = Callable[[str, str], int | None]
"""How many values have counters of their own beside this shared counter; None if that of this value is one of them."""


class Crowd(NamedTuple):
    """The counter that the values beyond the first `most` share."""

    counter: str
    scope: str
    most: int


class Watch(NamedTuple):
    """A budget that reports when shares of its limit, in millionths, are crossed."""

    budget: str
    limit_nano_usd: int
    shares_ppm: tuple[int, ...]


class Line(NamedTuple):
    """A counter with the limit that rules it for one call."""

    counter: str
    scope: str
    period: str
    limit_nano_usd: int | None
    start_s: int
    end_s: int
    soft: bool = False
    watches: tuple[Watch, ...] = ()
    crowd: Crowd | None = None
    """Not decided yet: this counter, or the shared one."""
    seats: tuple[str, ...] = ()
    """Shared counters beside which the value gets this counter of its own with this call."""


Resolve = Callable[[tuple[Match, ...]], list[tuple[Line, ...]]]
"""The lines of each match, whose crowds are not decided yet."""
KNOWN_LINES = 8192


class Resolver:
    """Remembers the lines of matches, for a store that knows when its budgets change: `forget` then."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Match, tuple[Line, ...]]] = {}
        self._rate = (0, 0)
        self._from_s, self._until_s = -inf, inf
        """The time in which every known line's window is the present one."""

    def forget(self) -> None:
        self._known.clear()
        self._from_s, self._until_s = -inf, inf

    def at(
        self,
        stored: Mapping[str, BudgetTerms],
        windows: Mapping[str, tuple[Window, Window]],
        at_s: float,
        rate: tuple[int, int],
    ) -> Resolve:
        """For one operation. Raises like `lines_of`."""
        if rate != self._rate or not self._from_s <= at_s < self._until_s or len(self._known) > KNOWN_LINES:
            self.forget()
            self._rate = rate
        known = self._known

        def resolve(matches: tuple[Match, ...]) -> list[tuple[Line, ...]]:
            parts = []
            for match in matches:
                found = known.get(match[0])
                if found is None or found[0] is not match:
                    found = match, lines_for(match, stored, windows, at_s, rate)
                    self._remember(found)
                parts.append(found[1])
            return parts

        return resolve

    def _remember(self, found: tuple[Match, tuple[Line, ...]]) -> None:
        match, lines = found
        for line in lines:
            self._from_s = max(self._from_s, line.start_s)
            self._until_s = min(self._until_s, line.end_s)
        self._known[match.counter] = found


def lines_of(
    matches: tuple[Match, ...],
    stored: Mapping[str, BudgetTerms],
    windows: Mapping[str, tuple[Window, Window]],
    at_s: float,
    rate: tuple[int, int],
    crowding: Crowding,
    *,
    compute: bool = False,
) -> tuple[Line, ...]:
    """The lines that bind a call with these matches at the moment `at_s`.

    Budgets of one match in one zone share a counter, and the lowest limit that can refuse rules. A window that was not
    sent is computed, or without `compute` raises StaleFormsError: then the sender does not know the budgets that apply.
    """
    return gather((lines_for(match, stored, windows, at_s, rate, compute=compute) for match in matches), crowding)


def gather(parts: Iterable[tuple[Line, ...]], crowding: Crowding) -> tuple[Line, ...]:
    """The lines of a whole call from those of its matches: each counter once, and each value in its place."""
    found: dict[str, Line] = {}
    for part in parts:
        for line in part:
            counter = line.counter
            if line.crowd is None and counter not in found:
                found[counter] = line
                continue
            if line.crowd is not None:
                line = _seated(line, line.crowd, crowding, found)  # noqa: PLW2901 - the same line, decided
            known = found.get(line.counter)
            found[line.counter] = line if known is None else _merged(known, line)
    return tuple(found.values())


def lines_for(
    match: Match,
    stored: Mapping[str, BudgetTerms],
    windows: Mapping[str, tuple[Window, Window]],
    at_s: float,
    rate: tuple[int, int],
    *,
    compute: bool = False,
) -> tuple[Line, ...]:
    """One match's lines, whose crowds are not decided yet. See `lines_of`."""
    own = match.counter
    scope, _, period = own.rpartition("|")
    found = []
    for key, terms in applicable(match, stored):
        zone = terms.zone
        span = _pick(windows.get(f"{period}|{zone}"), at_s)
        if span is None:
            if not compute:
                raise StaleFormsError(f"no window of {period} in {zone} holds the store's time {at_s:.3f}")
            span = window(period, zone, at_s)
        limit = limit_of(terms, rate)
        watches: tuple[Watch, ...] = ()
        if terms.alert_at_ppm and limit:
            watches = (Watch(key, limit, terms.alert_at_ppm),)
        crowd = None
        if terms.max_values is not None:
            shared = shared_scope(scope, key)
            crowd = Crowd(f"{shared}|{period}|{zone}|{span.start_s}", shared, terms.max_values)
        found.append(Line(f"{own}|{zone}|{span.start_s}", scope, period, limit, *span, terms.soft, watches, crowd))
    return tuple(found)


def _pick(pair: tuple[Window, Window] | None, at_s: float) -> Window | None:
    if pair is not None:
        for span in pair:
            if span.start_s <= at_s < span.end_s:
                return span
    return None


def shared_scope(scope: str, key: str) -> str:
    """The scope of the counter that further values share: a `*`, which no value's own text can be, in place of those
    a client invented, or where the budget's `*` stand for none such, of all of them.
    """
    values = [part.partition("=") for part in scope.split(",")]
    starred = {part[:-2] for part in key.rpartition("|")[0].split(",") if part.endswith("=*")}
    replaced = starred & INVENTED or starred
    return ",".join(f"{name}={'*' if name in replaced else value}" for name, _, value in values)


def _seated(line: Line, crowd: Crowd, crowding: Crowding, found: Mapping[str, Line]) -> Line:
    taken = crowding(crowd.counter, line.counter)
    if taken is None:
        return line._replace(crowd=None)
    # A call with several tags may bring several new values at once.
    taken += sum(crowd.counter in other.seats and name != line.counter for name, other in found.items())
    if taken < crowd.most:
        return line._replace(crowd=None, seats=(crowd.counter,))
    return line._replace(crowd=None, counter=crowd.counter, scope=crowd.scope)


def _merged(one: Line, other: Line) -> Line:
    ruling = min(one, other, key=_severity)
    return ruling._replace(watches=one.watches + other.watches, seats=one.seats + other.seats)


def _severity(line: Line) -> tuple[bool, bool, int]:
    return line.limit_nano_usd is None, line.soft, line.limit_nano_usd or 0


def standing_on(counters: Container[str]) -> Crowding:
    """For a call that is admitted: its values stay where its hold is."""
    return lambda _, own: None if own in counters else MAX_NANO_USD


def state_of(line: Line, amounts: Amounts) -> BudgetState:
    spent, held = amounts
    return BudgetState(
        counter=line.counter,
        scope=line.scope,
        period=line.period,
        limit_nano_usd=line.limit_nano_usd,
        spent_nano_usd=spent,
        held_nano_usd=held,
        resets_at_s=line.end_s,
        soft=line.soft,
    )


def crossings(lines: Iterable[Line], spent: Callable[[str], int], cost_nano_usd: int, now_s: float) -> list[Alert]:
    """The alerts of a charge to these lines, not numbered yet. `spent` reads a counter before the charge."""
    found: list[Alert] = []
    for line in lines:
        if line.watches and cost_nano_usd > 0:
            before = spent(line.counter)
            after = before + cost_nano_usd
            found.extend(
                _alert(line, watch, share, after, now_s)
                for watch in line.watches
                for share in watch.shares_ppm
                if before * PPM < watch.limit_nano_usd * share <= after * PPM
            )
    return found


def _alert(line: Line, watch: Watch, share_ppm: int, spent_nano_usd: int, now_s: float) -> Alert:
    crossed = f"{line.counter}|{share_ppm}|{watch.limit_nano_usd}"
    return Alert(
        seq=0,
        id=sha256(crossed.encode()).hexdigest()[:32],
        budget=watch.budget,
        scope=line.scope,
        period=line.period,
        share_ppm=share_ppm,
        limit_nano_usd=watch.limit_nano_usd,
        spent_nano_usd=spent_nano_usd,
        at_s=now_s,
        resets_at_s=line.end_s,
    )
