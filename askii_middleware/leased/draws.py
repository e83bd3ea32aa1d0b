"""Credit in one worker's hands, and the calls it admits from it. Pure: no I/O, and every method is told the time.

Times here are monotonic seconds of this process, except where a name says `store`. Invariants:

- What a counter's open calls hold, what its ended calls cost within their holds, and what is on its way back never
  comes to more than the worker was granted there. So the sum of all workers stays within the limit, because every grant
  counts as held at the store until it is used; it passes it by no more than what calls cost above their holds.
- The store tells what was granted in all, never how much more, so a lost answer is made good by the next one. Draws and
  promotions of one worker therefore must not overlap: whoever uses this book sends one at a time.
- All credit comes back once nobody wants it: a match is drawn for as long as calls stand on its credit, and credit that
  belongs to no match any more goes back with its last call.
- Credit is known by counter until long after its window's end: what is forgotten could be spent twice.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from ..admission import PPM, BudgetState, Match, Window
from ..currency import MAX_NANO_USD
from ..stores.base import CreditAsk, CreditLine, Drawn, DrawRequest
from .credit import Credit, Known, LocalCall, give_back, without
from .sizes import FIRST_PPM, RETURN_ABOVE, most, share_ppm

MAX_MATCHES = 256
"""So many are kept fresh by a draw; calls on further ones go to the store."""
MAX_CREDITS = 65_536
"""So many counters are remembered; calls on further ones go to the store until windows end."""
EDGE = 100
"""In the last hundredth of a lease before a window's end the store's clock decides: so much two clocks may differ in
their pace."""
KEPT_S = 3600.0
"""How long a counter is remembered after its window's end, should the store's clock step back."""
GRACE_S = 600.0
"""How long a call keeps its credit after its hold's deadline: a charge that comes within it overspends nothing."""
SWEEP_S = 10.0
SCARCE = 4
"""With less than so many times what a stream wants left, the credit here could be what it lacks."""


class Draws:
    """All credit of one worker.

    Args:
        lease_s: how long after the question what a draw told may be relied on.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self.holder: str | None = None
        self._alive_until = -inf
        self._calls: dict[str, LocalCall] = {}
        self._parting: dict[str, LocalCall] = {}
        """Released ones whose promotion is in doubt."""
        self._known: dict[str, Known] = {}
        self._credits: dict[str, Credit] = {}
        self._strays: dict[str, Credit] = {}
        """Credit that no match has any more and that is not back yet."""
        self._until = -inf
        self._store_s = self._received = 0.0
        self._version: int | None = None
        self._forms = -1
        self._rate = (0, 0)
        self._ceiling_ppm = PPM
        self._windows: dict[str, tuple[Window, Window]] = {}
        self._sequence = 0
        self._sent = -inf
        self._used = -inf
        self._renew_s = lease_s / 3
        self._gap_s = 0.0
        """The least time between two draws while credit is short."""
        self._hungry = False
        self._emptying = False
        """All that is free has to go back with the next draw."""
        self._empties = False
        """It goes back with the one that is under way."""
        self._failing = False
        self._unanswered: DrawRequest | None = None
        self._swept = -inf

    # Standing --------------------------------------------------------------------------------------------------------

    def beat(self, worker: str, *, alive: bool, sent: float, ttl_s: float) -> None:
        """A heartbeat was answered. A dead worker's credit is lost to it; another name begins with none."""
        if not alive:
            if worker == self.holder:
                self.forget()
            return
        if worker != self.holder:
            self.forget()
            self.holder = worker
        self._alive_until = sent + ttl_s

    def forget(self) -> None:
        """The holder is dead, or not ours: none of its credit may be used. Its open calls settle all the same."""
        self.holder = self._version = None
        self._until = -inf
        self._known.clear()
        self._credits.clear()
        self._strays.clear()
        self._emptying = False

    def lapse(self) -> None:
        """What was told is out of date: give back what is free, and ask anew."""
        self._until = -inf
        self._emptying = bool(self._credits)
        for known in self._known.values():
            known.until = -inf

    # Drawing ---------------------------------------------------------------------------------------------------------

    def next_draw(self) -> float:
        """When the next draw is due; `inf`: when something happens."""
        if self.holder is None or not self._windows:
            return inf
        if not (self._known or self._strays or self._emptying or self._busy(self._sent)):
            return inf
        if self._emptying and not self._failing:
            return self._sent + self._lease_s / 100
        return self._sent + (self._gap_s if self._hungry else self._renew_s)

    def _busy(self, now: float) -> bool:
        return self._used > now - self._lease_s

    @property
    def hungry(self) -> bool:
        """A draw should come earlier than the next renewal."""
        return self._hungry or self._emptying

    def plan(self, now: float, *, everything: bool = False) -> DrawRequest | None:
        """The next draw, to be sent at once. `everything`: give back all that is free. None: nothing is to be asked."""
        self._sweep(now)
        self._sent = now
        self.failed()
        if self.holder is None or not self._windows:
            return None
        emptying = self._emptying or everything
        returns: dict[str, int] = {}
        asks = []
        if emptying:
            for counter, credit in self._credits.items():
                if counter not in self._strays:
                    give_back(credit, 0, returns)
        for known in self._known.values():
            known.leaving = everything or now - known.demand.used_s > self._lease_s
            if now >= known.ends:
                self._stray(known.credits)
                known.credits, known.room = (), None  # a window's credit ends with it
            wanted = known.demand.needs(now, self._lease_s)
            known.target = 0 if emptying or known.leaving or now < known.rests else self._affordable(known, wanted)
            known.dry = not known.target and wanted > 0 and not emptying
            known.low = known.target // 4
            asks.append(self._ask(known, returns))
        self._return_strays(returns)
        if not asks and not returns and not self._busy(now):
            return None
        # Where every call goes to the store, or none comes, nothing has to be fresh.
        useful = not self._known or any(
            not known.leaving and not (known.dry and known.credits) for known in self._known.values()
        )
        self._renew_s = self._lease_s / 3 if useful else self._lease_s * 2
        self._sequence += 1
        self._hungry = False
        self._empties, self._emptying = self._emptying, False
        self._gap_s = self._lease_s / 3  # until the answer says otherwise
        self._unanswered = DrawRequest(
            holder=self.holder,
            sequence=self._sequence,
            asks=tuple(asks),
            returns=tuple(returns.items()),
            windows=self._windows,
            rate=self._rate,
            forms_version=self._forms,
        )
        return self._unanswered

    def _stray(self, left: tuple[Credit, ...]) -> None:
        self._strays.update((credit.counter, credit) for credit in left)

    def _return_strays(self, returns: dict[str, int]) -> None:
        """All there is of each that no call stands on. Nothing is drawn on it meanwhile, so it may be repeated."""
        kept = {credit.counter for known in self._known.values() for credit in known.credits} if self._strays else ()
        for counter, credit in list(self._strays.items()):
            if counter in kept or not (credit.calls or credit.returning or credit.free > 0):
                del self._strays[counter]
            elif not credit.calls and not self._is_untold(counter):
                credit.give_up(max(credit.free, 0))
                returns[counter] = MAX_NANO_USD

    def _is_untold(self, counter: str) -> bool:
        """The next answer may say that a match has this counter."""
        known = self._known.get(counter.rpartition("|")[0].rpartition("|")[0])
        return known is not None and known.room is None

    def _affordable(self, known: Known, wanted: int) -> int:
        for limit, left in known.room or ():
            wanted = min(wanted, most(limit, left, known.demand.largest_nano_usd))
        return wanted

    def _ask(self, known: Known, returns: dict[str, int]) -> CreditAsk:
        target, room = known.target, known.room
        for credit in known.credits:
            if not target or credit.free > RETURN_ABOVE * target:
                give_back(credit, target, returns)
                if not target and credit.counter in returns:
                    known.until = -inf  # nobody is to stand on it while it goes
        free = min((credit.free for credit in known.credits), default=0)
        more = max(target - free, 0) if (known.credits or room is None) and target else 0
        share = FIRST_PPM if not room else min(share_ppm(*line) for line in room)
        return CreditAsk(known.match, min(more, MAX_NANO_USD), share, self._ceiling_ppm)

    def answered(self, request: DrawRequest, drawn: Drawn, *, sent: float, received: float) -> None:
        """Take over what a draw told. `sent` and `received`: when it was asked and answered."""
        if request.holder != self.holder or request.sequence != self._sequence:
            return
        self._unanswered = None
        self._failing = False
        current = (request.forms_version, request.rate) == (self._forms, self._rate)
        self._until = sent + self._lease_s if current else -inf
        self._store_s, self._received = drawn.now_s, received
        gained = False
        for ask, lines in zip(request.asks, drawn.lines, strict=True):
            before = [credit.free for credit in map(self._credit, lines) if credit is not None]
            known = self._known.get(ask.match.counter)
            taken = [self._take(line) for line in lines]
            gained = gained or sum(credit.free for credit in taken if credit is not None) > sum(before)
            if known is None or known.match != ask.match:
                continue
            if known.leaving and not any(credit.calls for credit in known.credits):
                del self._known[ask.match.counter]
                self._stray(known.credits)
            elif current:
                self._resolve(known, lines, drawn.now_s, sent)
        self._filled_again(request)
        for counter in self._strays.keys() & dict(request.returns).keys():
            credit = self._strays[counter]
            credit.returned()
            credit.granted = min(credit.granted, credit.debits)
        self._gap_s = self._lease_s / (100 if gained else 10)
        if self._version not in (None, drawn.budgets_version):
            self.lapse()
        self._version = drawn.budgets_version

    def _credit(self, line: CreditLine) -> Credit | None:
        return self._credits.get(line.state.counter)

    def _take(self, line: CreditLine) -> Credit | None:
        """The credit on a line as the store told it, which knows of everything that was given back by now."""
        state = line.state
        credit = self._credits.get(state.counter)
        if credit is None:
            if len(self._credits) >= MAX_CREDITS:
                return None
            credit = self._credits[state.counter] = Credit(state.counter, state.resets_at_s)
        credit.granted = line.granted_nano_usd
        credit.returned()
        if credit.emptied and not credit.calls:
            credit.debits = credit.granted
        credit.emptied = False
        return credit

    def _resolve(self, known: Known, lines: tuple[CreditLine, ...], store_s: float, sent: float) -> None:
        held = [(line, self._credits.get(line.state.counter)) for line in lines]
        known.direct = any(line.needs_store or credit is None for line, credit in held)
        binding = [
            (line.state, credit)
            for line, credit in held
            if credit is not None and line.state.limit_nano_usd and not line.state.soft
        ]
        before, known.credits = known.credits, tuple(credit for _, credit in binding)
        if before != known.credits:
            self._stray(before)
        known.room = tuple((state.limit_nano_usd or 0, self._left(state, credit)) for state, credit in binding)
        known.counters = tuple((line.state.counter, line.state.resets_at_s) for line in lines)
        known.states = tuple(without(line.state, credit) for line, credit in held)
        # The store's clock may be as far on as if it had answered the moment it was asked.
        known.ends = (
            sent + min((line.state.resets_at_s - store_s for line in lines), default=inf) - self._lease_s / EDGE
        )
        known.until = -inf if known.direct else min(self._until, known.ends)

    def _left(self, state: BudgetState, credit: Credit) -> int:
        limit = (state.limit_nano_usd or 0) * self._ceiling_ppm // PPM
        return limit - state.taken_nano_usd + max(credit.free, 0)

    def failed(self) -> None:
        """The last draw was not answered. What it may have given back stays out of use until a later one is."""
        request, self._unanswered = self._unanswered, None
        if request is not None:
            self._gap_s = self._lease_s / 3
            self._failing = True
            self._emptying = self._emptying or self._empties
            self._filled_again(request)

    def _filled_again(self, request: DrawRequest) -> None:
        for counter, _ in request.returns:
            if counter in self._credits:
                self._credits[counter].emptied = False

    def outdated(self) -> None:
        """The store knows other forms of budgets than this book. The next call that it answers brings them."""
        self.lapse()
        self._windows = {}

    def rest(self, counters: Collection[str], now: float) -> bool:
        """Nothing is to be drawn on these counters for a while, because calls find no room there. True: some credit
        lies idle on them, and is to go back now.
        """
        idle = False
        for known in self._known.values():
            mine = [credit for credit in known.credits if credit.counter in counters]
            if mine:
                known.rests = now + self._lease_s
                idle = idle or any(credit.free > 0 for credit in mine)
        strays = [credit for counter, credit in self._strays.items() if counter in counters]
        return idle or any(credit.free > 0 and not credit.calls for credit in strays)

    def scarce(self, matches: tuple[Match, ...], nano_usd: int) -> set[str]:
        """Of the counters of these matches, those that have little left against such an amount."""
        found = set()
        for match in matches:
            known = self._known.get(match.counter)
            for credit, (_, left) in zip(known.credits, known.room or (), strict=True) if known is not None else ():
                if left < SCARCE * nano_usd:
                    found.add(credit.counter)
        return found

    def _sweep(self, now: float) -> None:
        """Forget calls that nobody ended, and counters whose window is long over."""
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        for call in [call for call in self._calls.values() if call.cost is None and call.until + GRACE_S <= now]:
            del self._calls[call.id]
            call.drop()
        for call in [call for call in self._parting.values() if call.until <= now]:
            del self._parting[call.id]
            call.drop()
        store_s = self._store_s + (now - self._received)
        for counter in [key for key, credit in self._credits.items() if credit.end_s + KEPT_S <= store_s]:
            del self._credits[counter]
            self._strays.pop(counter, None)
