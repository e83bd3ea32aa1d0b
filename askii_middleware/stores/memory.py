"""A ledger in this process's memory: for tests, demonstrations and single-process tools. It ends with the process.

No method suspends, so every operation is atomic on one event loop; it is not for use from several threads. All checks
stand before the first change, so an operation that raises has changed nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec

from ..admission import (
    Admission,
    BudgetState,
    BudgetTerms,
    ExtendRequest,
    Extension,
    Match,
    ReserveRequest,
    Window,
)
from ..budgets import Budget
from ..errors import StoreError
from .base import (
    CHANNEL_PREFIX,
    Alert,
    DeadLetter,
    Entry,
    KeyRow,
    Lease,
    Operation,
    Outcome,
    Settled,
    Settlement,
    SpendRow,
    Store,
    Totals,
    complete_record,
)
from .lines import Crowding, Line, Resolver, crossings, lines_of, standing_on, state_of
from .memory_aggregates import AggregateBook
from .memory_alerts import AlertBook
from .memory_holds import Hold, HoldBook
from .memory_operations import OperationBook
from .memory_outbox import MemoryOutbox
from .rules import (
    MARKER_S,
    NO_HOLD,
    admit,
    carry,
    check_amount,
    check_channels,
    check_forms,
    check_operation,
    check_sinks,
    check_worker,
    enlarge,
    form_of,
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


class MemoryStore(Store):
    """See `Store`. Settled calls are remembered for 24 hours, counters as long as the contract says, aggregates as
    long as the process lives.
    """

    url = "memory://"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._book = HoldBook()
        self._operations = OperationBook()
        self._done: dict[str, _Done] = {}
        self._carries: dict[str, int] = {}
        self._aggregates = AggregateBook()
        self._budgets: dict[str, Budget] = {}
        self._terms: dict[str, BudgetTerms] = {}
        self._resolver = Resolver()
        self._forms: Counter[tuple[str, str, str]] = Counter()
        self._forms_version = 0
        self._alerting = 0
        """How many stored budgets report crossings."""
        self._keys: dict[str, KeyRow] = {}
        self._key_ids: dict[str, str] = {}
        self._outbox = MemoryOutbox()
        self._alerts = AlertBook()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        pass

    # Admission ---------------------------------------------------------------------------------------------------

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        return self._forms_version, sorted(self._forms)

    async def reserve(self, request: ReserveRequest) -> Admission:
        now_s = self._clock()
        book = self._book
        known = book.holds.get(request.call_id)
        if known is not None:
            return known.answer
        done = self._done.get(request.call_id)
        if done is not None:
            return Admission(candidate=done.candidate, admitted_at_s=done.admitted_at_s)
        check_forms(request, self._forms_version)
        check_worker(request.worker, book.workers.get(request.worker), now_s)
        lapsed = book.lapsed(now_s)
        away = [hold for _, hold in lapsed]
        old = book.holds.get(request.replaces) if request.replaces is not None else None
        if old is not None and book.is_live(old, now_s):
            away.append(old)
        resolve = self._resolver.at(self._terms, request.windows, now_s, request.rate)
        admission, lines = admit(request, resolve, book.reader(now_s, away), book.crowding, now_s)

        for call_id, _ in lapsed:
            book.fade(call_id, "expired", now_s)
        if admission.candidate is not None:
            if request.replaces is not None:
                self._release(request.replaces, now_s)
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

    async def extend(self, request: ExtendRequest) -> Extension:
        now_s = self._clock()
        book = self._book
        hold = book.holds.get(request.call_id)
        if hold is None or not book.is_live(hold, now_s):
            return NO_HOLD
        if request.sequence <= hold.sequence:
            return repeated(request, hold.nano_usd)
        read = book.reader(now_s, [lapsed for _, lapsed in book.lapsed(now_s)])
        counters = [key for key, _ in hold.counters]
        extension = enlarge(request, hold.nano_usd, counters, hold.answer.admitted_at_s, self._terms, read)
        hold.sequence = request.sequence
        book.extend(hold, extension.hold_nano_usd)
        return extension

    async def settle(self, settlement: Settlement) -> Settled:
        return self.settle_at_once(settlement)

    def settle_at_once(self, settlement: Settlement) -> Settled:
        now_s = self._clock()
        book = self._book
        call_id, cost = settlement.call_id, settlement.cost_nano_usd
        hold = book.holds.get(call_id)
        lines: tuple[Line, ...] = ()
        if hold is None:
            done = self._done.get(call_id)
            if done is not None:
                return Settled(done.coins, done.late, duplicate=True)
            lines = self._lines(settlement, book.crowding)
            counters = tuple([(line.counter, line.end_s) for line in lines])
            late, candidate, admitted_at_s = False, 0, settlement.admitted_at_s
        else:
            counters = hold.counters
            if may_alert(settlement, stored=self._alerting > 0):
                keys = {key for key, _ in counters}
                lines = tuple([line for line in self._lines(settlement, standing_on(keys)) if line.counter in keys])
            late = not book.is_live(hold, now_s)
            candidate, admitted_at_s = hold.answer.candidate or 0, hold.answer.admitted_at_s
        check_amount(cost, "a charge")
        for key, _ in counters:
            check_amount(book.spent.get(key, 0) + cost, key)
        coins, rest = carry(self._carries.get(settlement.subscription, 0), settlement)
        record = complete_record(settlement.record, late=late, coins=coins)

        self._aggregates.add(settlement.admitted_at_s, settlement.aggregates)  # the first change, and the last to raise
        self._alerts.add(crossings(lines, book.spent_on, cost, now_s))
        self._carries[settlement.subscription] = rest
        book.charge(counters, cost)
        if hold is not None:
            book.lift(hold)
            del book.holds[call_id]
        else:
            for line in lines:
                book.seat(line)
        self._operations.forget(call_id)
        self._outbox.append(call_id, settlement.tenant, record)
        self._done[call_id] = _Done(now_s, coins, late, candidate, admitted_at_s)
        return Settled(coins, late, duplicate=False)

    def _lines(self, settlement: Settlement, crowding: Crowding) -> tuple[Line, ...]:
        return lines_of(
            settlement.matches,
            self._terms,
            settlement.windows,
            settlement.admitted_at_s,
            settlement.rate,
            crowding,
            compute=True,
        )

    async def release(self, call_id: str) -> None:
        self._release(call_id, self._clock())

    def _release(self, call_id: str, now_s: float) -> None:
        self._book.fade(call_id, "released", now_s)
        self._operations.forget(call_id)

    async def defer(self, operation: Operation) -> bool:
        check_operation(operation)
        call_id = operation.call_id
        hold = self._book.holds.get(call_id)
        over = call_id in self._done or (hold is not None and hold.state == "released")
        if over or call_id in self._operations:
            return True
        if not self._operations.add(operation):
            return False
        self._book.defer(call_id, operation.until_s, self._clock())
        return True

    async def operation(self, key: str) -> Operation | None:
        return self._operations.find(key)

    async def overdue(self, limit: int) -> list[Operation]:
        return self._operations.overdue(limit, self._clock())

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        now_s = self._clock()
        alive = self._book.heartbeat(worker, ttl_s, now_s)
        self._book.prune(now_s)
        self._operations.prune(now_s)
        self._alerts.prune(now_s)
        for call_id, done in list(islice(self._done.items(), MARKERS_PRUNED)):
            if done.at_s + MARKER_S > now_s:
                break
            del self._done[call_id]
        return alive

    # Budgets, keys, reading -----------------------------------------------------------------------------------------

    async def set_budget(self, budget: Budget) -> None:
        terms = budget.terms
        before = set(self._forms)
        self._forget(budget.key)
        self._budgets[budget.key], self._terms[budget.key] = budget, terms
        self._resolver.forget()
        self._forms[form_of(budget)] += 1
        self._alerting += bool(terms.alert_at_ppm)
        self._forms_version += set(self._forms) != before

    async def remove_budget(self, key: str) -> bool:
        before = set(self._forms)
        found = self._forget(key)
        self._forms_version += set(self._forms) != before
        return found

    def _forget(self, key: str) -> bool:
        budget = self._budgets.pop(key, None)
        if budget is None:
            return False
        self._resolver.forget()
        self._alerting -= bool(self._terms.pop(key).alert_at_ppm)
        form = form_of(budget)
        self._forms[form] -= 1
        if not self._forms[form]:
            del self._forms[form]
        return True

    async def budgets(self) -> list[Budget]:
        return [self._budgets[key] for key in sorted(self._budgets)]

    async def status(
        self, matches: tuple[Match, ...], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[BudgetState]:
        now_s = self._clock()
        read = self._book.reader(now_s, [hold for _, hold in self._book.lapsed(now_s)])
        lines = lines_of(matches, self._terms, windows, now_s, rate, self._book.crowding, compute=True)
        return [state_of(line, read(line.counter)) for line in lines]

    async def put_key(self, row: KeyRow) -> None:
        if self._key_ids.get(row.sha256, row.id) != row.id:
            raise StoreError(f"key {row.id!r}: another key has the same secret")
        known = self._keys.get(row.id)
        if known is not None:
            del self._key_ids[known.sha256]
        self._keys[row.id] = row
        self._key_ids[row.sha256] = row.id

    async def keys(self) -> list[KeyRow]:
        return [self._keys[key] for key in sorted(self._keys)]

    async def find_key(self, sha256: str) -> KeyRow | None:
        key_id = self._key_ids.get(sha256)
        return None if key_id is None else self._keys[key_id]

    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        return self._aggregates.spend(scope, start_s, end_s)

    async def totals(self) -> Totals:
        now_s = self._clock()
        calls, cost_nano_usd = self._aggregates.totals()
        holds = self._book.holds.values()
        records, records_nano_usd = self._outbox.totals()
        return Totals(
            calls=calls,
            cost_nano_usd=cost_nano_usd,
            records=records,
            records_nano_usd=records_nano_usd,
            held_nano_usd=sum(hold.nano_usd for hold in holds if self._book.is_live(hold, now_s)),
            lost=sum(hold.state == "lost" for hold in holds),
        )

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        return self._outbox.records(after_seq, limit)

    async def tenant_spend(self, period: str, window: Window, limit: int) -> list[tuple[str, int]]:
        del period
        return self._aggregates.tenant_spend(*window, limit)

    # Outbox ---------------------------------------------------------------------------------------------------------

    async def register_sinks(self, names: Sequence[str]) -> None:
        check_sinks(names)
        self._outbox.register(names)

    async def lease(self, sink: str, owner: str, ttl_s: float) -> Lease | None:
        if sink.startswith(CHANNEL_PREFIX):
            return self._alerts.lease(sink, owner, ttl_s, self._clock())
        return self._outbox.lease(sink, owner, ttl_s, self._clock())

    async def fetch(self, sink: str, limit: int) -> list[Entry]:
        return self._outbox.fetch(sink, limit, self._clock())

    async def acknowledge(
        self, sink: str, token: int, outcomes: Sequence[Outcome], *, retry_at_s: float = 0.0, failures: int = 0
    ) -> bool:
        return self._outbox.acknowledge(
            sink, token, outcomes, retry_at_s=retry_at_s, failures=failures, now_s=self._clock()
        )

    async def pending(self) -> dict[str, int]:
        return self._outbox.pending()

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        return self._outbox.dead_letters(sink, limit)

    async def retry_dead(self, sink: str) -> int:
        return self._outbox.retry_dead(sink, self._clock())

    # Alerts ---------------------------------------------------------------------------------------------------------

    async def register_channels(self, names: Sequence[str]) -> None:
        check_channels(names)
        self._alerts.register(names, self._clock())

    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        return self._alerts.fetch(channel, limit)

    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        return self._alerts.acknowledge(channel, token, through_seq)

    async def recent_alerts(self, limit: int) -> list[Alert]:
        return self._alerts.recent(limit)
