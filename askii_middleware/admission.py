"""What a store is asked before a call, what it answers, and the decision itself. Pure: no I/O, no clock.

A store resolves each candidate's matches to budget lines (its own budgets win over declared ones), reads the
counters, and lets `decide` choose. Everything happens inside one store operation, so nothing can change between the
look and the hold.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Candidate(NamedTuple):
    """A model the call could be sent to, with its own hold and its own matches."""

    model: str
    hold_nano_usd: int
    matches: tuple[Match, ...]


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
    about: bytes = b"{}"


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """One budget line as a store saw it, before the call's own hold."""

    counter: str
    """The full counter key `<scope values>|<period>|<zone>|<window start>`."""
    scope: str
    period: str
    limit_nano_usd: int | None
    spent_nano_usd: int
    held_nano_usd: int
    resets_at_s: int

    @property
    def remaining_nano_usd(self) -> int | None:
        """What is neither spent nor held, never below 0; None without a limit."""
        if self.limit_nano_usd is None:
            return None
        return max(self.limit_nano_usd - self.spent_nano_usd - self.held_nano_usd, 0)


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A store's answer. `candidate` is the index of the one that was held for, or None where all were refused."""

    candidate: int | None
    admitted_at_s: float
    """The store's clock; the moment the call, its record and its events belong to."""
    states: tuple[BudgetState, ...] = ()
    """The lines of the winning candidate, or of the requested model on refusal."""
    reason: Reason | None = None
    deciding: BudgetState | None = None


def fits(state: BudgetState, hold_nano_usd: int) -> bool:
    """Whether one more hold fits a line. A hold of zero needs no room, only a limit that is not 0."""
    limit = state.limit_nano_usd
    if limit is None:
        return True
    if hold_nano_usd == 0:
        return limit > 0
    return state.spent_nano_usd + state.held_nano_usd + hold_nano_usd <= limit


def _is_spent(state: BudgetState, hold_nano_usd: int) -> bool:
    """Whether it would not fit even if every running call cost nothing."""
    limit = state.limit_nano_usd
    if limit is None:
        return False
    return limit == 0 or (hold_nano_usd > 0 and state.spent_nano_usd + hold_nano_usd > limit)


def decide(
    holds_nano_usd: Sequence[int],
    lines: Sequence[Sequence[BudgetState]],
    *,
    admitted_at_s: float,
    downgrade_at_ppm: int = PPM,
) -> Admission:
    """Choose the first candidate whose hold fits all its lines.

    The order is that of the candidates, except that above `downgrade_at_ppm` of utilisation the requested model
    comes last. On refusal the reason is `held` if some candidate would fit once running calls settle at nothing,
    else `spent`; the deciding line is the failing one that resets last.
    """
    order = list(range(len(holds_nano_usd)))
    if len(order) > 1 and _utilisation_above(lines[0], downgrade_at_ppm):
        order = [*order[1:], 0]
    for index in order:
        hold = holds_nano_usd[index]
        if all(fits(state, hold) for state in lines[index]):
            return Admission(candidate=index, admitted_at_s=admitted_at_s, states=tuple(lines[index]))
    reason: Reason = "spent"
    judged = 0
    for index in order:
        if not any(_is_spent(state, holds_nano_usd[index]) for state in lines[index]):
            reason, judged = "held", index
            break
    hold = holds_nano_usd[judged]
    test = _is_spent if reason == "spent" else (lambda state, hold: not fits(state, hold))
    deciding = max((s for s in lines[judged] if test(s, hold)), key=lambda s: s.resets_at_s)
    return Admission(
        candidate=None, admitted_at_s=admitted_at_s, states=tuple(lines[0]), reason=reason, deciding=deciding
    )


def _utilisation_above(lines: Sequence[BudgetState], ppm: int) -> bool:
    return any(
        line.limit_nano_usd is not None and (line.spent_nano_usd + line.held_nano_usd) * PPM > line.limit_nano_usd * ppm
        for line in lines
    )


def limit_of(terms: BudgetTerms, rate: tuple[int, int]) -> int | None:
    """The limit in nano-USD at `rate` coins per USD (numerator, denominator), rounded down, and never beyond what
    counters hold.
    """
    if terms.limit_coins is None:
        return terms.limit_nano_usd
    whole, _, fraction = terms.limit_coins.partition(".")
    scale = int("1" + "0" * len(fraction))
    return min(int(whole + fraction) * NANO * rate[1] // (rate[0] * scale), MAX_NANO_USD)


def applicable(match: Match, stored: dict[str, BudgetTerms]) -> list[tuple[str, BudgetTerms]]:
    """The budgets that govern a match: those of the first level with any enabled one. `stored` wins over declared."""
    for level in match.levels:
        found = [
            (ref.key, terms)
            for ref in level
            if (terms := stored.get(ref.key, ref.declared)) is not None and terms.enabled
        ]
        if found:
            return found
    return []
