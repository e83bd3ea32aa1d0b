"""What an engine that decides by itself, in a script or a function of its own, is told of a call's lines.

The client keeps a copy of the stored budgets' terms and says with each request which version it has; the engine refuses
an outdated one, so limits are still read at the moment of the decision, while the text work stays out of the engine.
All thresholds are whole nano-USD, worked out here in exact arithmetic: engines compare and add, nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from ..admission import PPM, BudgetTerms, Match, Window, applicable, limit_of
from .base import StaleFormsError
from .lines import Line, Watch, shared_scope

KNOWN_PLANS = 8192


class PlanWatch(msgspec.Struct, frozen=True, array_like=True):
    """A budget that reports. A charge crosses a share if it takes the counter from below `at_nano_usd` to there or over
    it.
    """

    budget: str
    limit_nano_usd: int
    shares: tuple[tuple[int, int], ...]
    """`(share in millionths, at_nano_usd)`."""


class PlanCrowd(msgspec.Struct, frozen=True, array_like=True):
    """The counter that the values beyond the first `most` share."""

    counter: str
    """Without its window's start, like `PlanLine.counter`."""
    scope: str
    most: int


class PlanLine(msgspec.Struct, frozen=True, array_like=True):
    """A counter with the limit that rules it, before the engine's clock has picked the window.

    Lines of one call that come to the same counter are one: the most severe rules (a limit before none, hard before
    soft, low before high), and all watches stay.
    """

    counter: str
    """`<scope values>|<period>|<zone>|`: the window's start is still to be appended."""
    window: str
    """`<period>|<zone>`: which of the request's windows."""
    scope: str
    period: str
    limit_nano_usd: int | None
    soft: bool
    downgrade_above_nano_usd: int | None
    """Above so much spent and held, fallbacks come first; None where the line cannot refuse."""
    watches: tuple[PlanWatch, ...] = ()
    crowd: PlanCrowd | None = None


class TermsCopy:
    """The stored budgets' terms as of `version`, and the plans of matches that follow from them.

    Args:
        encode: the engine's encoding. Plans are encoded once and embedded as they are.
    """

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self.version = -1
        """Of the store's budgets; -1 before the first look."""
        self.terms: dict[str, BudgetTerms] = {}
        self._encode = encode
        self._plans: dict[tuple[str, int], tuple[Match, tuple[PlanLine, ...], msgspec.Raw]] = {}
        self._rate = (0, 0)

    def update(self, version: int, changes: Iterable[tuple[str, BudgetTerms | None]]) -> None:
        """Take over what has changed since `version` was seen last. None: the budget was removed."""
        for key, terms in changes:
            if terms is None:
                self.terms.pop(key, None)
            else:
                self.terms[key] = terms
        self.version = version
        self._plans.clear()

    @property
    def alerting(self) -> bool:
        """Whether some stored budget reports crossings."""
        return any(terms.alert_at_ppm for terms in self.terms.values())

    def plan(
        self,
        match: Match,
        windows: Mapping[str, tuple[Window, Window]],
        rate: tuple[int, int],
        downgrade_at_ppm: int = PPM,
    ) -> tuple[tuple[PlanLine, ...], msgspec.Raw]:
        """A match's lines, and the same encoded. Raises StaleFormsError if a window they need was not sent."""
        if self._rate != rate or len(self._plans) > KNOWN_PLANS:
            self._plans.clear()
            self._rate = rate
        asked = match.counter, downgrade_at_ppm
        known = self._plans.get(asked)
        if known is None or known[0] is not match:
            lines = _lines(match, self.terms, rate, downgrade_at_ppm)
            known = self._plans[asked] = match, lines, msgspec.Raw(self._encode(lines))
        for line in known[1]:
            if line.window not in windows:
                raise StaleFormsError(f"no windows of {line.window} were sent")
        return known[1:]


def _lines(
    match: Match, stored: Mapping[str, BudgetTerms], rate: tuple[int, int], downgrade_at_ppm: int
) -> tuple[PlanLine, ...]:
    scope, _, period = match.counter.rpartition("|")
    found = []
    for key, terms in applicable(match, stored):
        zone = terms.zone
        limit = limit_of(terms, rate)
        crowd = None
        if terms.max_values is not None:
            shared = shared_scope(scope, key)
            crowd = PlanCrowd(f"{shared}|{period}|{zone}|", shared, terms.max_values)
        found.append(
            PlanLine(
                f"{match.counter}|{zone}|",
                f"{period}|{zone}",
                scope,
                period,
                limit,
                terms.soft,
                None if limit is None or terms.soft else limit * downgrade_at_ppm // PPM,
                (plan_watch(Watch(key, limit, terms.alert_at_ppm)),) if limit and terms.alert_at_ppm else (),
                crowd,
            )
        )
    return tuple(found)


def plan_watch(watch: Watch) -> PlanWatch:
    """A watch with its thresholds: `before * PPM < limit * share <= after * PPM` in whole numbers."""
    limit = watch.limit_nano_usd
    return PlanWatch(watch.budget, limit, tuple([(share, -(-limit * share // PPM)) for share in watch.shares_ppm]))


def plan_settled(lines: Iterable[Line]) -> tuple[tuple[Any, ...], ...]:
    """The lines of a call whose window is known, for its settlement: `(counter, end_s, scope, period, watches, crowd)`
    with full counters; `crowd` is `(counter, scope, most)` or None.
    """
    return tuple(
        [
            (
                line.counter,
                line.end_s,
                line.scope,
                line.period,
                tuple([plan_watch(watch) for watch in line.watches]),
                None if line.crowd is None else tuple(line.crowd),
            )
            for line in lines
        ]
    )
