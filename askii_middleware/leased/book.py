"""The calls a worker admits by itself. Pure: no I/O, and every method is told the time, in monotonic seconds."""

from __future__ import annotations

import msgspec

from ..admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest
from ..currency import MAX_NANO_USD
from ..stores.base import Promotion, Settlement
from ..stores.rules import NO_HOLD, repeated
from .credit import Known, LocalCall
from .draws import MAX_MATCHES, Draws


class LeaseBook(Draws):
    """All credit of one worker, and its calls."""

    # Calls -----------------------------------------------------------------------------------------------------------

    def admit(self, request: ReserveRequest, now: float) -> Admission | None:
        """Admit the requested model's whole hold from credit. None: the store has to decide."""
        call = self._calls.get(request.call_id)
        if call is not None:
            return call.answer
        if (
            now >= self._until
            or now >= self._alive_until
            or request.worker != self.holder
            or request.forms_version != self._forms
            or request.rate != self._rate
            or request.downgrade_at_ppm < self._ceiling_ppm
            or request.shadow
            or not request.candidates
        ):
            return None
        candidate = request.candidates[0]
        hold = candidate.hold_nano_usd
        # Whether fallbacks come first is told by the credit, which ends at that mark; where none is needed, by nothing.
        if not (0 if len(request.candidates) == 1 else 1) <= hold <= MAX_NANO_USD:
            return None
        old = None
        if request.replaces is not None:
            old = self._calls.get(request.replaces)
            if old is None or old.cost is not None or old.doubtful or now >= old.until:
                return None
        found = self._found(candidate.matches, hold, old, now)
        if found is None:
            return None
        if old is not None:
            self.release(old.id)
        self._used = now
        states: tuple[BudgetState, ...] = ()
        for known in found:
            known.demand.note(hold, now)
            states = states + known.states if states else known.states
            for credit in known.credits:
                credit.debits += hold
                credit.calls += 1
                if credit.granted - credit.debits < known.low:
                    self._hungry = True
        at_s = self._store_s + (now - self._received)
        answer = Admission(candidate=0, admitted_at_s=at_s, states=states, hold_nano_usd=hold)
        self._calls[request.call_id] = LocalCall(request, answer, found, now)
        return answer

    def _found(self, matches: tuple[Match, ...], hold: int, old: LocalCall | None, now: float) -> list[Known] | None:
        """What is known of all matches, if all of them have room."""
        found = []
        for match in matches:
            known = self._known.get(match.counter)
            if known is None or now >= known.until or (known.match is not match and known.match != match):
                return None
            if hold:
                for credit in known.credits:
                    free = credit.granted - credit.debits
                    if free < hold and (old is None or credit not in old.credits or free + old.hold < hold):
                        return None
            found.append(known)
        return found

    def missed(self, request: ReserveRequest, admission: Admission, now: float) -> None:
        """The store has answered what this book could not: next time it is to be able to."""
        if request.shadow or admission.candidate != 0 or request.worker != self.holder:
            return
        candidate = request.candidates[0]
        if admission.hold_nano_usd != candidate.hold_nano_usd:
            return
        asked = request.forms_version, request.rate, min(request.downgrade_at_ppm, self._ceiling_ppm)
        if asked != (self._forms, self._rate, self._ceiling_ppm):
            self._forms, self._rate, self._ceiling_ppm = asked
            self.lapse()
        self._windows = request.windows
        self._used = now
        found = [self._known.get(match.counter) for match in candidate.matches]
        if any(known is not None and known.direct for known in found):
            return
        if len(self._known) + found.count(None) > MAX_MATCHES:
            return
        if now >= self._until:
            self._hungry = True
        for match, seen in zip(candidate.matches, found, strict=True):
            known = seen
            if known is None or known.match != match:
                if seen is not None:
                    self._stray(seen.credits)
                known = self._known[match.counter] = Known(match, now)
            known.match = match
            known.leaving = False
            known.demand.note(candidate.hold_nano_usd, now)
            if not known.dry:
                self._hungry = True

    def extend(self, request: ExtendRequest, now: float) -> Extension | None:
        """Raise a local call's hold. None: not a local call, or the store has to decide."""
        call = self._calls.get(request.call_id)
        if call is None:
            return None
        if call.cost is not None or now >= call.until:
            return NO_HOLD
        if request.sequence <= call.sequence:
            return repeated(request, call.hold)
        more = request.target_nano_usd - call.hold
        if more > 0:
            usable = min(self._until, self._alive_until, call.ends)
            if call.doubtful or now >= usable or call.holder != self.holder or request.target_nano_usd > MAX_NANO_USD:
                return None
            if any(credit.free < more for credit in call.credits):
                return None
            call.debit(more)
            call.hold += more
        call.sequence = request.sequence
        return Extension(granted=True, hold_nano_usd=call.hold)

    def release(self, call_id: str) -> bool:
        """Drop a local call. False: the store may know something of it, too. A doubtful one's credit stays where it is
        until the hold that may come of it would have ended.
        """
        call = self._calls.get(call_id)
        if call is None or call.cost is not None:
            return False
        del self._calls[call_id]
        if call.doubtful:
            self._parting[call_id] = call
            return False
        call.drop()
        return True

    def charge(self, settlement: Settlement) -> Settlement:
        """The settlement as the store is to get it; a local call's cost takes the place of its hold, and
        what is above that is nobody's credit.
        """
        call = self._calls.get(settlement.call_id)
        if call is None or settlement.credit is not None:
            return settlement
        if call.cost is None:
            call.cost = call.hold if call.doubtful else min(max(settlement.cost_nano_usd, 0), call.hold)
            call.debit(call.cost - call.hold)
        return msgspec.structs.replace(settlement, credit=call.use())

    def settled(self, call_id: str, *, written: bool = True) -> None:
        """The store has answered a settlement; not `written`: with the word that it never can be."""
        call = self._calls.get(call_id)
        if call is None or call.cost is None:
            return
        del self._calls[call_id]
        call.leave()
        if not written and not call.doubtful:
            call.debit(-call.cost)

    def open_call(self, call_id: str | None) -> LocalCall | None:
        """A local call that has not ended."""
        call = self._calls.get(call_id) if call_id is not None else None
        return call if call is not None and call.cost is None else None

    def promotion(self, call: LocalCall, now: float) -> Promotion:
        return Promotion(
            call_id=call.id,
            credit=call.use(),
            admission=msgspec.structs.replace(call.answer, hold_nano_usd=call.hold),
            deadline_s=max(call.until - now, 0.0),
            about=call.about,
        )

    def promoted(self, call: LocalCall, *, alive: bool = True) -> None:
        """The store holds for a call from now on, or did; not `alive`: its holder is dead, and nobody does."""
        if call.cost is not None:
            return  # it may have been charged before: `settled` ends it
        if self._calls.pop(call.id, None) is None and self._parting.pop(call.id, None) is None:
            return
        call.leave()
        if alive:
            call.debit(-call.hold)
            for credit in call.credits:
                credit.granted -= call.hold
