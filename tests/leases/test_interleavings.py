"""Two workers with leases over one ledger, with every message lost, late or repeated as it pleases."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from askii_middleware.admission import ExtendRequest
from askii_middleware.errors import StoreError
from askii_middleware.leased.credit import LocalCall
from askii_middleware.stores.base import DeadWorkerError, DrawRequest, Promotion, Settlement
from askii_middleware.stores.memory import MemoryStore
from tests.stores.support import DAY_S, NOON_S, Clock, budget

from .support import Desk, now

LIMITS = {"tenant=acme": 20_000, "tenant=bell": 20_000, "global": 30_000}
HOLDS = st.integers(0, 400)
WHO = st.integers(0, 1)
MIDNIGHT_S = int(NOON_S) + DAY_S // 2


class Interleavings(RuleBasedStateMachine):
    """Never is more spent and held than the limit and what calls cost above their holds, which is all a charge adds to
    it; and no worker ever thinks that it has more credit than it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(MIDNIGHT_S - 3.0)
        self.store = MemoryStore(clock=self.clock)
        for scope, limit in (("tenant=*", 20_000), ("global", 30_000)):
            now(self.store.set_budget(budget(scope, limit)))
        self.desks = [Desk(self.store, self.clock, name=f"w{n}", offset_s=1e6 * n) for n in range(2)]
        for desk in self.desks:
            for tenant in ("acme", "bell"):
                desk.warm(300, tenant=tenant)
        self.number = 0
        self.lives = 0
        self.direct: dict[str, tuple[Desk, str, int]] = {}
        self.local: dict[str, tuple[Desk, str, LocalCall]] = {}
        self.under_way: dict[int, tuple[DrawRequest, Any, float]] = {}
        """By worker: a draw that the store has answered, and when it was sent."""
        self.settling: dict[str, tuple[Desk, Settlement]] = {}
        self.late: list[Promotion] = []
        self.parting: list[tuple[Desk, LocalCall]] = []
        """Released, and their promotion is in doubt."""
        self.excess: dict[str, int] = {}
        """By counter: what settled calls cost above their holds."""

    # Calls ------------------------------------------------------------------------------------------------------------

    @rule(who=WHO, hold=HOLDS, tenant=st.sampled_from(["acme", "bell"]), many=st.integers(1, 5))
    def reserve(self, who: int, hold: int, tenant: str, many: int) -> None:
        desk = self.desks[who]
        for _ in range(many):
            self.number += 1
            call_id = f"c{self.number}"
            try:
                admission, here = desk.reserve(call_id, hold, tenant=tenant)
            except DeadWorkerError:
                return
            call = desk.book.open_call(call_id)
            if here:
                assert call is not None
                self.local[call_id] = desk, tenant, call
            elif admission.candidate is not None:
                self.direct[call_id] = desk, tenant, admission.hold_nano_usd

    @precondition(lambda self: self.local)
    @rule(data=st.data(), hold=HOLDS)
    def take_over(self, data: st.DataObject, hold: int) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.local)))
        desk, tenant, call = self.local[call_id]
        new_id = f"{call_id}+"
        if call.doubtful or desk.locally(new_id, hold, tenant=tenant, replaces=call_id) is None:
            return
        del self.local[call_id]
        new = desk.book.open_call(new_id)
        assert new is not None
        self.local[new_id] = desk, tenant, new

    @precondition(lambda self: self.local or self.direct)
    @rule(data=st.data(), share=st.integers(0, 100) | st.sampled_from([130, 700]))
    def end(self, data: st.DataObject, share: int) -> None:
        call_id = data.draw(st.sampled_from(sorted([*self.local, *self.direct])))
        if call_id in self.local:
            desk, tenant, call = self.local.pop(call_id)
            hold = call.hold
        else:
            desk, tenant, hold = self.direct.pop(call_id)
        cost = hold * share // 100
        for counter in (f"tenant={tenant}", "global"):
            self.excess[counter] = self.excess.get(counter, 0) + max(cost - hold, 0)
        settlement = desk.client.settlement(call_id, cost, tenant=tenant)
        self.settling[call_id] = desk, desk.book.charge(settlement)

    @precondition(lambda self: self.settling)
    @rule(data=st.data(), answered=st.booleans())
    def deliver(self, data: st.DataObject, answered: bool) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.settling)))
        desk, settlement = self.settling[call_id]
        before = self._taken()
        now(self.store.settle(settlement))
        if settlement.credit is not None:
            excess = max(settlement.cost_nano_usd - settlement.credit.hold_nano_usd, 0)
            for counter, taken in self._taken().items():
                assert taken <= before[counter] + excess
        if answered:
            desk.book.settled(call_id)
            del self.settling[call_id]

    @precondition(lambda self: self.local)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.local)))
        desk, _, call = self.local.pop(call_id)
        if not desk.book.release(call_id):
            self.parting.append((desk, call))
            now(self.store.release(call_id))

    @precondition(lambda self: self.local)
    @rule(data=st.data(), more=HOLDS)
    def extend(self, data: st.DataObject, more: int) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.local)))
        desk, tenant, call = self.local[call_id]
        request = ExtendRequest(
            call_id=call_id,
            sequence=call.sequence + 1,
            target_nano_usd=call.hold + more,
            least_nano_usd=call.hold + more,
            matches=desk.client.matches(tenant),
            windows=desk.client.index.windows(self.clock.now_s),
            rate=(1_000_000, 1),
        )
        desk.book.extend(request, desk.s)

    @precondition(lambda self: any(not self._drawing(desk) for desk, _, _ in self.local.values()))
    @rule(data=st.data(), fate=st.sampled_from(["answered", "unanswered", "late", "lost"]))
    def promote(self, data: st.DataObject, fate: str) -> None:
        free = sorted(call_id for call_id, (desk, _, _) in self.local.items() if not self._drawing(desk))
        call_id = data.draw(st.sampled_from(free))
        desk, tenant, call = self.local[call_id]
        promotion = desk.book.promotion(call, desk.s)
        call.doubtful = True
        if fate == "late":
            self.late.append(promotion)
        if fate in ("late", "lost"):
            return
        try:
            now(self.store.promote(promotion))
        except DeadWorkerError:
            desk.book.promoted(call, alive=False)
            del self.local[call_id]
        except StoreError:
            return
        else:
            if fate == "answered":
                desk.book.promoted(call)
                del self.local[call_id]
                self.direct[call_id] = desk, tenant, call.hold

    @precondition(lambda self: any(not self._drawing(desk) for desk, _ in self.parting))
    @rule(data=st.data())
    def promote_again(self, data: st.DataObject) -> None:
        """The second answer to a call that was released meanwhile."""
        free = [entry for entry in self.parting if not self._drawing(entry[0])]
        desk, call = data.draw(st.sampled_from(free))
        self.parting.remove((desk, call))
        with contextlib.suppress(StoreError):
            now(self.store.promote(desk.book.promotion(call, desk.s)))
            desk.book.promoted(call)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject) -> None:
        promotion = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        with contextlib.suppress(StoreError):
            now(self.store.promote(promotion))

    # Credit -----------------------------------------------------------------------------------------------------------

    def _drawing(self, desk: Desk) -> bool:
        return self.desks.index(desk) in self.under_way

    @rule(who=WHO, fate=st.sampled_from(["answered", "answered", "under way", "unanswered", "lost"]))
    def draw(self, who: int, fate: str) -> None:
        desk = self.desks[who]
        if who in self.under_way:
            return
        sent = desk.s
        request = desk.book.plan(sent)
        if request is None:
            return
        if fate == "lost":
            desk.book.failed()
            return
        try:
            drawn = now(self.store.draw(request))
        except DeadWorkerError:
            desk.book.forget()
            return
        if fate == "answered":
            desk.book.answered(request, drawn, sent=sent, received=desk.s)
        elif fate == "under way":
            self.under_way[who] = request, drawn, sent
        else:
            desk.book.failed()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), lost=st.booleans())
    def come_back(self, data: st.DataObject, lost: bool) -> None:
        who = data.draw(st.sampled_from(sorted(self.under_way)))
        request, drawn, sent = self.under_way.pop(who)
        desk = self.desks[who]
        if lost:
            desk.book.failed()
        else:
            desk.book.answered(request, drawn, sent=sent, received=desk.s)

    @rule(who=WHO, tenant=st.sampled_from(["acme", "bell"]))
    def be_busy(self, who: int, tenant: str) -> None:
        if who not in self.under_way and self.desks[who].book.holder is not None:
            for _ in range(2):
                self.clock.advance(0.001)
                with contextlib.suppress(DeadWorkerError):
                    self.desks[who].warm(400, tenant=tenant)

    @rule(who=WHO, rarely=st.integers(0, 5))
    def close(self, who: int, rarely: int) -> None:
        desk = self.desks[who]
        if not rarely and who not in self.under_way and desk.book.holder is not None:
            try:
                desk.draw(everything=True)
            except DeadWorkerError:
                desk.book.forget()

    @rule(scope=st.sampled_from(["tenant=*", "global"]), share=st.integers(10, 100), rarely=st.integers(0, 5))
    def edit(self, scope: str, share: int, rarely: int) -> None:
        if rarely:
            return
        now(self.store.set_budget(budget(scope, (30_000 if scope == "global" else 20_000) * share // 100)))

    # Time -------------------------------------------------------------------------------------------------------------

    @rule(by_s=st.floats(0.001, 0.2))
    def advance(self, by_s: float) -> None:
        self.clock.advance(by_s)

    @rule(rarely=st.integers(0, 5))
    def midnight(self, rarely: int) -> None:
        if not rarely and self.clock.now_s < MIDNIGHT_S:
            self.clock.now_s = MIDNIGHT_S - 0.02

    @rule(who=WHO, rarely=st.integers(0, 5))
    def die(self, who: int, rarely: int) -> None:
        """The worker's heartbeat runs out, it goes on under a new name, and its credit is reclaimed in the end."""
        desk = self.desks[who]
        if rarely or who in self.under_way or any(d is desk for d, _, _ in self.local.values()):
            return
        if any(d is desk for d, _ in self.settling.values()) or self.lives > 3:
            return
        self.lives += 1
        self.store._book.workers[desk.name] = self.clock.now_s
        desk.beat()
        desk.name = f"{desk.name}'"
        desk.beat()
        now(self.store.reclaim())

    # What must hold ---------------------------------------------------------------------------------------------------

    def _taken(self) -> dict[str, int]:
        """Spent and held, by counter."""
        book = self.store._book
        read = book.reader(self.clock.now_s, [])
        return {counter: sum(read(counter)) for counter in book.spent}

    @invariant()
    def nothing_passes_a_limit(self) -> None:
        for counter, taken in self._taken().items():
            scope = counter.split("|")[0]
            assert taken <= LIMITS[scope] + self.excess.get(scope, 0)

    @invariant()
    def nobody_knows_of_credit_that_is_not_there(self) -> None:
        left = {
            (row.holder, row.counter): row.granted_nano_usd - row.used_nano_usd for row in now(self.store.credits())
        }
        for desk in self.desks:
            owed: dict[str, int] = {}
            for mine, _, call in self.local.values():
                if mine is desk and not call.doubtful:
                    for credit in call.credits:
                        owed[credit.counter] = owed.get(credit.counter, 0) + call.hold
            for counter, credit in desk.book._credits.items():
                known = max(credit.free, 0) + owed.get(counter, 0)
                assert known <= left.get((desk.book.holder or "", counter), 0)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
