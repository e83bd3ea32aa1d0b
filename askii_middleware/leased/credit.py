"""What one worker knows of its credit: by counter, by match, and by call. Times are monotonic seconds."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import msgspec

from ..admission import Admission, BudgetState, Match, ReserveRequest
from ..currency import MAX_NANO_USD
from ..stores.base import CreditUse
from .sizes import Demand


class Credit:
    """One counter of one window."""

    __slots__ = ("calls", "counter", "debits", "emptied", "end_s", "granted", "returning")

    def __init__(self, counter: str, end_s: int) -> None:
        self.counter = counter
        self.end_s = end_s
        self.granted = 0
        """As the store told last, less what was promoted since."""
        self.debits = 0
        """What open calls hold, ended ones cost of what they held, and what is on its way back."""
        self.returning = 0
        self.emptied = False
        """All there is goes back, while no call stands on it: whatever the store says then is used up."""
        self.calls = 0
        """Open, or ended and not answered yet."""

    @property
    def free(self) -> int:
        return self.granted - self.debits

    def give_up(self, nano_usd: int) -> None:
        """Take so much out of use: it goes back."""
        self.debits += nano_usd
        self.returning += nano_usd

    def returned(self) -> None:
        """The store has all that went back."""
        self.debits -= self.returning
        self.returning = 0


class LocalCall:
    """A call that this worker admitted by itself."""

    __slots__ = (
        *("about", "answer", "cost", "counters", "credits", "doubtful"),
        *("ends", "hold", "holder", "id", "sequence", "until"),
    )

    def __init__(self, request: ReserveRequest, answer: Admission, found: Iterable[Known], now: float) -> None:
        self.id = request.call_id
        self.holder = request.worker
        self.answer = answer
        self.about = request.about
        self.hold = answer.hold_nano_usd
        self.until = now + request.deadline_s
        self.credits: tuple[Credit, ...] = ()
        self.counters: tuple[tuple[str, int], ...] = ()
        """Key and window end of all its counters, those included that cannot refuse."""
        self.ends = inf
        """When the first of its windows may be over."""
        for known in found:
            self.credits += known.credits
            self.counters += known.counters
            self.ends = min(self.ends, known.ends)
        self.sequence = 0
        self.cost: int | None = None
        """What is debited instead of the hold, once the call has ended: no more than that."""
        self.doubtful = False
        """A promotion was sent and not answered: the store may hold for it, or may still come to."""

    def use(self) -> CreditUse:
        return CreditUse(self.holder, self.counters, self.hold)

    def debit(self, nano_usd: int) -> None:
        for credit in self.credits:
            credit.debits += nano_usd

    def leave(self) -> None:
        for credit in self.credits:
            credit.calls -= 1

    def drop(self) -> None:
        """It has ended without a charge, and no hold can come of its credit any more."""
        self.leave()
        self.debit(-self.hold)


class Known:
    """The lines of one match, as the last draw told, and what is wanted there."""

    __slots__ = (
        *("counters", "credits", "demand", "direct", "dry", "ends", "leaving", "low"),
        *("match", "rests", "room", "states", "target", "until"),
    )

    def __init__(self, match: Match, now: float) -> None:
        self.match = match
        self.demand = Demand(now)
        self.until = -inf
        """Until when calls may be admitted on it."""
        self.ends = -inf
        self.states: tuple[BudgetState, ...] = ()
        self.credits: tuple[Credit, ...] = ()
        """Of the lines that can refuse."""
        self.room: tuple[tuple[int, int], ...] | None = None
        """Of the same lines, limit and what is left of it with the credit that is free here; None: never told."""
        self.counters: tuple[tuple[str, int], ...] = ()
        self.direct = False
        """The store has to look at each call."""
        self.target = 0
        self.low = 0
        """With less than this left it is time to draw."""
        self.rests = -inf
        """Until when nothing is drawn, because calls find no room here."""
        self.leaving = False
        self.dry = False
        """There is too little left for credit, or none to be had: calls go to the store."""


def give_back(credit: Credit, keep: int, returns: dict[str, int]) -> None:
    """Take out of use what goes back. Of a counter without calls that is simply all there is, so that the two sides
    agree again where a promotion was in doubt.
    """
    surplus = max(credit.free - keep, 0)
    credit.give_up(surplus)
    if not keep and not credit.calls and (surplus or credit.free):
        credit.emptied = True
        returns[credit.counter] = MAX_NANO_USD
    elif surplus:
        returns[credit.counter] = returns.get(credit.counter, 0) + surplus


def without(state: BudgetState, credit: Credit | None) -> BudgetState:
    """A line as it looks to calls that may use the credit here."""
    free = 0 if credit is None else max(credit.free, 0)
    return msgspec.structs.replace(state, held_nano_usd=state.held_nano_usd - free) if free else state
