"""What a store is asked before a call, what it answers, and the decision itself. Pure: no I/O, no clock.

A store resolves each candidate's matches to budget lines (its own budgets win over declared ones), reads the
counters, and lets `decide` choose. Everything happens inside one store operation, so nothing can change between the
look and the hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from .currency import MAX_NANO_USD, NANO
from .errors import Reason

PPM = 1_000_000


class Window(NamedTuple):
    """Half-open span of Unix seconds."""

    start_s: int
    end_s: int


class BudgetTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a budget that decides. Both limits None: no limit."""

    limit_nano_usd: int | None = None
    limit_coins: str | None = None
    """Fixed-point decimal; turned into nano-USD at the rate of each admission, rounded down."""
    zone: str = "UTC"
    enabled: bool = True
    soft: bool = False
    """It reports and never refuses."""
    alert_at_ppm: tuple[int, ...] = ()
    """Shares of the limit, in millionths and ascending, whose crossing by what is spent is reported."""
    max_values: int | None = None
    """So many values of the scope's `*` have counters of their own in one window; all further ones share one."""


class BudgetRef(NamedTuple):
    """A budget by its key `<scope>|<period>`, with its terms in the configuration (the store's win)."""

    key: str
    declared: BudgetTerms | None


class Match(NamedTuple):
    """A counter a call would use, `<scope values>|<period>`, and the budgets that may govern it: the first level
    with an enabled budget applies, all of that level together.
    """

    counter: str
    levels: tuple[tuple[BudgetRef, ...], ...]
    alerts: bool = False
    """Whether one of the declared budgets reports crossings: else a settlement need not ask."""


class Candidate(NamedTuple):
    """A model the call could be sent to, with its own hold and its own matches."""

    model: str
    hold_nano_usd: int
    matches: tuple[Match, ...]
    least_nano_usd: int | None = None
    """Where the whole hold does not fit, as much as does will do, from this amount on. None: all of it or nothing."""


class ReserveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One admission: hold for the first candidate that fits all its budgets, or nothing.

    Attributes:
        call_id: ours; the same id again returns the first answer and changes nothing.
        worker: the session whose heartbeat keeps the hold alive.
        candidates: in order of preference, the requested model first.
        windows: `period|zone` to its current and next window.
        rate: coins per USD as (numerator, denominator), for budgets in coins.
        deadline_s: how long the hold may live in all, heartbeats or not (seconds from the store's now).
        forms_version: which budget forms the matches were built from; an old one is answered with `StaleFormsError`.
        downgrade_at_ppm: above this utilisation of the requested model's budgets, fallbacks come first.
        replaces: a hold to release in the same operation (a block taking over its request's hold).
        shadow: hold for the first candidate whatever the budgets say, and tell in `Admission.shadow` what they say.
        about: JSON of identity and model for the audit row, should the worker die.
    """

    call_id: str
    worker: str
    candidates: tuple[Candidate, ...]
    windows: dict[str, tuple[Window, Window]]
    rate: tuple[int, int]
    deadline_s: float
    forms_version: int
    downgrade_at_ppm: int = PPM
    replaces: str | None = None
    shadow: bool = False
    about: bytes = b"{}"


class ExtendRequest(msgspec.Struct, frozen=True, kw_only=True):
    """More room for a call that runs: on all the counters of its hold, or on none.

    Attributes:
        sequence: counts a call's extensions from 1; one that was answered before changes nothing.
        target_nano_usd: what the hold should come to, in all.
        least_nano_usd: the least it must come to; between the two, as much as fits.
        matches, windows, rate: as in ReserveRequest, of the admitted candidate; the windows are those of admission.
    """

    call_id: str
    sequence: int
    target_nano_usd: int
    least_nano_usd: int
    matches: tuple[Match, ...]
    windows: dict[str, tuple[Window, Window]]
    rate: tuple[int, int]


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an extension. `hold_nano_usd` is what the hold comes to now; where `granted` is False it is what
    it was before, or 0 where there is no live hold any more.
    """

    granted: bool
    hold_nano_usd: int
    reason: Reason | None = None
    deciding: BudgetState | None = None


class BudgetState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One budget line as a store saw it, before the call's own hold."""

    counter: str
    """The full counter key `<scope values>|<period>|<zone>|<window start>`."""
    scope: str
    period: str
    limit_nano_usd: int | None
    spent_nano_usd: int
    held_nano_usd: int
    resets_at_s: int
    soft: bool = False

    @property
    def taken_nano_usd(self) -> int:
        """What is spent and held. Credits can leave less than nothing spent: that gives no room beyond the limit."""
        return max(self.spent_nano_usd, 0) + self.held_nano_usd

    @property
    def remaining_nano_usd(self) -> int | None:
        """What is neither spent nor held, from 0 to the limit; None without a limit."""
        if self.limit_nano_usd is None:
            return None
        return max(self.limit_nano_usd - self.taken_nano_usd, 0)


class Admission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A store's answer. `candidate` is the index of the one that was held for, or None where all were refused."""

    candidate: int | None
    admitted_at_s: float
    """The store's clock; the moment the call, its record and its events belong to."""
    states: tuple[BudgetState, ...] = ()
    """The lines of the winning candidate, or of the requested model on refusal."""
    reason: Reason | None = None
    deciding: BudgetState | None = None
    hold_nano_usd: int = 0
    """What is held: the winning candidate's hold, or from its `least_nano_usd` on as much as fitted."""
    shadow: Admission | None = None
    """In shadow: the answer that would have been given."""


def fitting(lines: Sequence[BudgetState], hold_nano_usd: int, least_nano_usd: int | None = None) -> int | None:
    """As much of a hold as fits all lines, from `least_nano_usd` on (None: all of it); None if that does not fit. A
    hold of zero needs no room, only limits that are not 0: those refuse everything.
    """
    granted = hold_nano_usd
    for state in lines:
        limit = state.limit_nano_usd
        if limit is None or state.soft:
            continue
        if limit == 0:
            return None
        if hold_nano_usd:
            left = limit - state.taken_nano_usd
            if left < granted:
                if least_nano_usd is None or left < least_nano_usd:
                    return None
                granted = left
    return granted


def _fits(state: BudgetState, hold_nano_usd: int, least_nano_usd: int | None) -> bool:
    return fitting((state,), hold_nano_usd, least_nano_usd) is not None


def _is_spent(state: BudgetState, hold_nano_usd: int, least_nano_usd: int | None) -> bool:
    """Whether it would not fit even if every running call cost nothing."""
    return not _fits(msgspec.structs.replace(state, held_nano_usd=0), hold_nano_usd, least_nano_usd)


def decide(
    candidates: Sequence[Candidate],
    lines: Sequence[Sequence[BudgetState]],
    *,
    admitted_at_s: float,
    downgrade_at_ppm: int = PPM,
) -> Admission:
    """Choose the first candidate whose hold, or enough of it, fits all its lines.

    The order is that of the candidates, except that above `downgrade_at_ppm` of utilisation the requested model
    comes last. On refusal the reason is `held` if some candidate would fit once running calls settle at nothing,
    else `spent`; the deciding line is the failing one that resets last.
    """
    order = list(range(len(candidates)))
    if len(order) > 1 and _utilisation_above(lines[0], downgrade_at_ppm):
        order = [*order[1:], 0]
    for index in order:
        candidate = candidates[index]
        states = lines[index]
        granted = fitting(states, candidate.hold_nano_usd, candidate.least_nano_usd)
        if granted is not None:
            return Admission(candidate=index, admitted_at_s=admitted_at_s, states=tuple(states), hold_nano_usd=granted)
    reason: Reason = "spent"
    judged = 0
    for index in order:
        candidate = candidates[index]
        if not any(_is_spent(state, candidate.hold_nano_usd, candidate.least_nano_usd) for state in lines[index]):
            reason, judged = "held", index
            break
    candidate = candidates[judged]
    return Admission(
        candidate=None,
        admitted_at_s=admitted_at_s,
        states=tuple(lines[0]),
        reason=reason,
        deciding=_deciding(lines[judged], candidate.hold_nano_usd, candidate.least_nano_usd, reason),
    )


def decide_extension(lines: Sequence[BudgetState], held_nano_usd: int, request: ExtendRequest) -> Extension:
    """Raise a live hold of `held_nano_usd`, which the lines count as held, to the request's target or as far as they
    have room, if that is enough. A hold never shrinks.
    """
    more = request.target_nano_usd - held_nano_usd
    least = min(request.least_nano_usd - held_nano_usd, more)
    if more <= 0:
        return Extension(granted=True, hold_nano_usd=held_nano_usd)
    granted = fitting(lines, more, max(least, 0))
    if granted is None and least <= 0:
        granted = 0  # what it has is enough
    if granted is not None:
        return Extension(granted=True, hold_nano_usd=held_nano_usd + granted)
    # Once every running call costs nothing, this one too: then it needs room for the whole of it.
    whole = held_nano_usd + least
    if any(_is_spent(state, whole, None) for state in lines):
        deciding = _deciding(lines, whole, None, "spent")
        return Extension(granted=False, hold_nano_usd=held_nano_usd, reason="spent", deciding=deciding)
    deciding = _deciding(lines, more, least, "held")
    return Extension(granted=False, hold_nano_usd=held_nano_usd, reason="held", deciding=deciding)


def _deciding(
    lines: Sequence[BudgetState], hold_nano_usd: int, least_nano_usd: int | None, reason: Reason
) -> BudgetState:
    """Of the lines that refuse for this reason, the one that resets last."""
    fails = _is_spent if reason == "spent" else (lambda *asked: not _fits(*asked))
    return max(
        (state for state in lines if fails(state, hold_nano_usd, least_nano_usd)), key=lambda state: state.resets_at_s
    )


def _utilisation_above(lines: Sequence[BudgetState], ppm: int) -> bool:
    for line in lines:
        limit = line.limit_nano_usd
        if limit is not None and not line.soft and line.taken_nano_usd * PPM > limit * ppm:
            return True
    return False


def limit_of(terms: BudgetTerms, rate: tuple[int, int]) -> int | None:
    """The limit in nano-USD at `rate` coins per USD (numerator, denominator), rounded down, and never beyond what
    counters hold.
    """
    if terms.limit_coins is None:
        return terms.limit_nano_usd
    whole, _, fraction = terms.limit_coins.partition(".")
    scale = int("1" + "0" * len(fraction))
    return min(int(whole + fraction) * NANO * rate[1] // (rate[0] * scale), MAX_NANO_USD)


def applicable(match: Match, stored: Mapping[str, BudgetTerms]) -> list[tuple[str, BudgetTerms]]:
    """The budgets that govern a match: those of the first level with any enabled one. `stored` wins over declared."""
    for level in match.levels:
        found = []
        for key, declared in level:
            terms = stored.get(key, declared)
            if terms is not None and terms.enabled:
                found.append((key, terms))
        if found:
            return found
    return []
