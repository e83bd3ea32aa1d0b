"""Calls and credit of a ledger in memory: the synchronous halves of the methods of `MemoryStore`. All checks stand
before the first change, so an operation that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec

from ..admission import Admission, ExtendRequest, Extension, ReserveRequest
from .base import Drawn, DrawRequest, Operation, Promotion, Settled, Settlement, complete_record
from .lines import Amounts, Crowding, Line, crossings, lines_of, standing_on
from .memory_aggregates import AggregateBook
from .memory_alerts import AlertBook
from .memory_budgets import BudgetBook
from .memory_holds import Hold, HoldBook
from .memory_operations import OperationBook
from .memory_outbox import MemoryOutbox
from .rules import (
    MARKER_S,
    NO_HOLD,
    admit,
    answer_draw,
    carry,
    check_amount,
    check_draw,
    check_forms,
    check_operation,
    check_promotion,
    check_worker,
    enlarge,
    may_alert,
    repeated,
)

MARKERS_PRUNED = 10_000


class _Done(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a settled call. Many live long, so the garbage collector is not to walk them."""

    at_s: float
    coins: int
    late: bool
    candidate: int
    admitted_at_s: float


class MemoryLedger:
    """Invariant: a call has a hold in `book`, or a marker in `done`, never both."""

    def __init__(self) -> None:
        self.book = HoldBook()
        self.operations = OperationBook()
        self.done: dict[str, _Done] = {}
        self.aggregates = AggregateBook()
        self.budgets = BudgetBook()
        self.outbox = MemoryOutbox()
        self.alerts = AlertBook()
        self._carries: dict[str, tuple[int, int]] = {}

    def reserve(self, request: ReserveRequest, now_s: float) -> Admission:
        book = self.book
        known = book.holds.get(request.call_id)
        if known is not None:
            return known.answer
        done = self.done.get(request.call_id)
        if done is not None:
            return Admission(candidate=done.candidate, admitted_at_s=done.admitted_at_s)
        check_forms(request, self.budgets.forms_version)
        check_worker(request.worker, book.workers.get(request.worker), now_s)
        lapsed = book.lapsed(now_s)
        away = [hold for _, hold in lapsed]
        old = book.holds.get(request.replaces) if request.replaces is not None else None
        if old is not None and book.is_live(old, now_s):
            away.append(old)
        resolve = self.budgets.resolver.at(self.budgets.terms, request.windows, now_s, request.rate)
        admission, lines = admit(request, resolve, book.reader(now_s, away), book.crowding, now_s)

        for call_id, _ in lapsed:
            book.fade(call_id, "expired", now_s)
        if admission.candidate is not None:
            if request.replaces is not None:
                self.release(request.replaces, now_s)
            hold = Hold(
                request.worker,
                admission.hold_nano_usd,
                now_s + request.deadline_s,
                tuple([(line.counter, line.end_s) for line in lines]),
                admission,
                request.about,
            )
            book.place(request.call_id, hold)
            for line in lines:
                if line.seats:
                    book.seat(line)
        return admission

    def extend(self, request: ExtendRequest, now_s: float) -> Extension:
        book = self.book
        hold = book.holds.get(request.call_id)
        if hold is None or not book.is_live(hold, now_s):
            return NO_HOLD
        if request.sequence <= hold.sequence:
            return repeated(request, hold.nano_usd)
        read = self.reader(now_s)
        counters = [key for key, _ in hold.counters]
        extension = enlarge(request, hold.nano_usd, counters, hold.answer.admitted_at_s, self.budgets.terms, read)
        hold.sequence = request.sequence
        book.extend(hold, extension.hold_nano_usd)
        return extension

    def settle(self, settlement: Settlement, now_s: float) -> Settled:
        book = self.book
        call_id, cost = settlement.call_id, settlement.cost_nano_usd
        hold = book.holds.get(call_id)
        credit = settlement.credit if hold is None else None
        lines: tuple[Line, ...] = ()
        if hold is None:
            done = self.done.get(call_id)
            if done is not None:
                return Settled(done.coins, done.late, duplicate=True)
            late, candidate, admitted_at_s = False, 0, settlement.admitted_at_s
        else:
            late = not book.is_live(hold, now_s)
            candidate, admitted_at_s = hold.answer.candidate or 0, hold.answer.admitted_at_s
        standing = hold or credit
        if standing is None:
            lines = self._lines(settlement, book.crowding)
            counters = tuple([(line.counter, line.end_s) for line in lines])
        else:
            counters = standing.counters
            if may_alert(settlement, stored=self.budgets.alerting > 0):
                keys = {key for key, _ in counters}
                lines = tuple([line for line in self._lines(settlement, standing_on(keys)) if line.counter in keys])
        check_amount(cost, "a charge")
        for key, _ in counters:
            check_amount(book.spent.get(key, 0) + cost, key)
        coins, rest = carry(self._carries.get(settlement.subscription, (0, 0)), settlement)
        record = complete_record(settlement.record, late=late, coins=coins)

        self.aggregates.add(settlement.admitted_at_s, settlement.aggregates)  # the first change, and the last to raise
        self.alerts.add(crossings(lines, book.spent_on, cost, now_s))
        self._carries[settlement.subscription] = rest
        book.charge(counters, cost)
        if credit is not None:
            book.credit.use(counters, credit.holder, min(cost, credit.hold_nano_usd))
        if hold is not None:
            book.lift(hold)
            del book.holds[call_id]
        else:
            for line in lines:
                book.seat(line)
        self.operations.forget(call_id)
        self.outbox.append(call_id, settlement.tenant, record, now_s)
        self.done[call_id] = _Done(now_s, coins, late, candidate, admitted_at_s)
        return Settled(coins, late, duplicate=False)

    def _lines(self, settlement: Settlement, crowding: Crowding) -> tuple[Line, ...]:
        return lines_of(
            settlement.matches,
            self.budgets.terms,
            settlement.windows,
            settlement.admitted_at_s,
            settlement.rate,
            crowding,
            compute=True,
        )

    def release(self, call_id: str, now_s: float) -> None:
        self.book.fade(call_id, "released", now_s)
        self.operations.forget(call_id)

    def defer(self, operation: Operation, now_s: float) -> bool:
        check_operation(operation)
        call_id = operation.call_id
        hold = self.book.holds.get(call_id)
        over = call_id in self.done or (hold is not None and hold.state == "released")
        if over or call_id in self.operations:
            return True
        if not self.operations.add(operation):
            return False
        self.book.defer(call_id, operation.until_s, now_s)
        return True

    def heartbeat(self, worker: str, ttl_s: float, now_s: float) -> bool:
        alive = self.book.heartbeat(worker, ttl_s, now_s)
        self.book.prune(now_s)
        self.operations.prune(now_s)
        self.alerts.prune(now_s)
        for call_id, done in list(islice(self.done.items(), MARKERS_PRUNED)):
            if done.at_s + MARKER_S > now_s:
                break
            del self.done[call_id]
        return alive

    def draw(self, request: DrawRequest, now_s: float) -> Drawn:
        holder = request.holder
        book, budgets, credit = self.book, self.budgets, self.book.credit
        check_forms(request, budgets.forms_version)
        check_worker(holder, book.workers.get(holder), now_s)
        check_draw(request)
        resolve = budgets.resolver.at(budgets.terms, request.windows, now_s, request.rate)
        parts = resolve(tuple([ask.match for ask in request.asks]))
        is_new = request.sequence > book.drawn.get(holder, 0)

        if is_new:
            book.drawn[holder] = request.sequence
            for counter, nano_usd in request.returns:
                credit.take(counter, holder, nano_usd)
        lines = answer_draw(
            request,
            parts,
            book.crowding,
            self.reader(now_s),
            lambda counter: credit.granted(counter, holder),
            (lambda line, nano_usd: book.give_credit(line, holder, nano_usd)) if is_new else None,
        )
        return Drawn(now_s, budgets.version, lines)

    def promote(self, promotion: Promotion, now_s: float) -> None:
        book, call_id, (holder, counters, _) = self.book, promotion.call_id, promotion.credit
        if call_id in book.holds or call_id in self.done:
            return
        check_worker(holder, book.workers.get(holder), now_s)
        taken = check_promotion(promotion, lambda counter: book.credit.left_to(counter, holder), self.reader(now_s))
        admission, until_s = promotion.admission, now_s + promotion.deadline_s

        for counter, nano_usd in taken:
            book.credit.take(counter, holder, nano_usd)
        book.place(call_id, Hold(holder, admission.hold_nano_usd, until_s, counters, admission, promotion.about))

    def reader(self, now_s: float) -> Callable[[str], Amounts]:
        """Reads counters without the holds that lapsed."""
        return self.book.reader(now_s, [hold for _, hold in self.book.lapsed(now_s)])
