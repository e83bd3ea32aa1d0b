"""What every store decides in the same way, pure: which budget lines bind a call, whether it fits, and how long things
are kept. A store adds only where the numbers live and what makes the operation atomic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..admission import Admission, BudgetState, BudgetTerms, Match, ReserveRequest, Window, applicable, decide, limit_of
from ..budgets import Budget, Scope, window
from ..currency import MAX_NANO_USD, PICO
from .base import (
    MAX_KEY_CHARS,
    MAX_PAYLOAD_BYTES,
    DeadWorkerError,
    Operation,
    Outcome,
    Settlement,
    StaleFormsError,
    UnwritableError,
)

MARKER_S = 86_400.0
"""How long a released call is remembered."""
COUNTER_S = 8 * 86_400.0
"""How long counters outlive their window, and expired and lost holds their end."""
OVERDUE_S = 3600.0
"""How long the hold of an operation outlives its time, for a worker to come and settle it."""
ELSEWHERE = "~elsewhere"
"""The worker that holds for operations. It sends no heartbeats and never dies."""


class Line(NamedTuple):
    """A counter with the limit that rules it for one call."""

    counter: str
    scope: str
    period: str
    limit_nano_usd: int | None
    end_s: int


Amounts = tuple[int, int]
"""Spent and held, in nano-USD."""


def lines_of(
    matches: tuple[Match, ...],
    stored: dict[str, BudgetTerms],
    windows: Mapping[str, tuple[Window, Window]],
    at_s: float,
    rate: tuple[int, int],
    *,
    compute: bool = False,
) -> tuple[Line, ...]:
    """The lines that bind a call with these matches at the moment `at_s`.

    Budgets of one match in one zone share a counter, and the lowest limit rules. A window that was not sent is
    computed, or without `compute` raises StaleFormsError: then the sender does not know the budgets that apply.
    """
    found: dict[str, Line] = {}
    for match in matches:
        scope, _, period = match.counter.rpartition("|")
        for _, terms in applicable(match, stored):
            span = _pick(windows.get(f"{period}|{terms.zone}"), at_s)
            if span is None:
                if not compute:
                    raise StaleFormsError(f"no window of {period} in {terms.zone} holds the store's time {at_s:.3f}")
                span = window(period, terms.zone, at_s)
            counter = f"{match.counter}|{terms.zone}|{span.start_s}"
            limit = limit_of(terms, rate)
            known = found.get(counter)
            if known is None:
                found[counter] = Line(counter, scope, period, limit, span.end_s)
            elif limit is not None and (known.limit_nano_usd is None or limit < known.limit_nano_usd):
                found[counter] = known._replace(limit_nano_usd=limit)
    return tuple(found.values())


def _pick(pair: tuple[Window, Window] | None, at_s: float) -> Window | None:
    if pair is not None:
        for span in pair:
            if span.start_s <= at_s < span.end_s:
                return span
    return None


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
    )


def admit(
    request: ReserveRequest, stored: dict[str, BudgetTerms], read: Callable[[str], Amounts], now_s: float
) -> tuple[Admission, tuple[Line, ...]]:
    """Decide a reserve on what `read` says of each counter. Returns the answer and the lines to hold on."""
    if not request.candidates:
        raise ValueError("a reserve needs at least one candidate")
    lines: list[tuple[Line, ...]] = []
    states: list[list[BudgetState]] = []
    seen: dict[str, Amounts] = {}
    matches: tuple[Match, ...] | None = None
    for candidate in request.candidates:
        if candidate.matches is not matches:
            matches = candidate.matches
            found = lines_of(matches, stored, request.windows, now_s, request.rate)
            for line in found:
                if line.counter not in seen:
                    seen[line.counter] = read(line.counter)
            known = [state_of(line, seen[line.counter]) for line in found]
        lines.append(found)
        states.append(known)
    holds = [check_amount(candidate.hold_nano_usd, "a hold", least=0) for candidate in request.candidates]
    admission = decide(holds, states, admitted_at_s=now_s, downgrade_at_ppm=request.downgrade_at_ppm)
    if admission.candidate is None:
        return admission, ()
    for state in admission.states:
        check_amount(state.spent_nano_usd + state.held_nano_usd + holds[admission.candidate], state.counter)
    return admission, lines[admission.candidate]


def check_forms(request: ReserveRequest, forms_version: int) -> None:
    if request.forms_version != forms_version:
        raise StaleFormsError(f"budget forms are at version {forms_version}, not {request.forms_version}")


def check_worker(worker: str, alive_until_s: float | None, now_s: float) -> None:
    """`alive_until_s`: the end of the worker's lease; None if there is none, or if it was declared dead."""
    if alive_until_s is None or alive_until_s <= now_s:
        raise DeadWorkerError(f"worker {worker!r} has no live heartbeat: send one before holding")


def check_amount(nano_usd: int, what: str, *, least: int = -MAX_NANO_USD) -> int:
    """Raise UnwritableError for what a counter cannot hold exactly."""
    if not least <= nano_usd <= MAX_NANO_USD:
        raise UnwritableError(
            f"{what}: {nano_usd} nano-USD is outside {least} to {MAX_NANO_USD}, which is all a counter can hold"
        )
    return nano_usd


def check_operation(operation: Operation) -> None:
    """Raise UnwritableError for what is too long to be kept."""
    for what, size, most in (
        ("key", len(operation.key), MAX_KEY_CHARS),
        ("payload", len(operation.payload), MAX_PAYLOAD_BYTES),
    ):
        if size > most:
            raise UnwritableError(f"call {operation.call_id}: its operation's {what} is longer than {most}: {size}")


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.result not in ("delivered", "dead", "again"):
            raise ValueError(f"outcome {outcome.result!r} is none of delivered, dead, again")


def form_of(budget: Budget) -> tuple[str, str, str]:
    """A budget's shape, period and zone, as `Store.forms` has them."""
    scope = budget.scope if isinstance(budget.scope, Scope) else Scope.parse(budget.scope)
    return ",".join(scope.shape), budget.period, budget.zone


def carry(held_pico: int, settlement: Settlement) -> tuple[int, int]:
    """Whole coins to bill and the new carry, given the subscription's carry in 10⁻¹² coin."""
    overflow, rest = divmod(held_pico + settlement.pico_coins, PICO)
    return settlement.coins + overflow, rest


def hour_of(at_s: float) -> int:
    return int(at_s // 3600)


def hours(start_s: float, end_s: float) -> tuple[int, int]:
    """The half-open range of hours that begin in [start, end)."""
    return -int(-start_s // 3600), -int(-end_s // 3600)


def is_tenant(scope: str) -> bool:
    """Whether a scope is one tenant and nothing else: the aggregates that together hold every call once."""
    return scope.startswith("tenant=") and "," not in scope
