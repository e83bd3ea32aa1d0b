"""A ledger in this process's memory: for tests, demonstrations and single-process tools. It ends with the process.

No method suspends, so every operation is atomic on one event loop; it is not for use from several threads. All checks
stand before the first change, so an operation that raises has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from ..admission import (
    Admission,
    BudgetState,
    ExtendRequest,
    Extension,
    Match,
    ReserveRequest,
    Window,
)
from ..budgets import Budget
from .base import (
    CHANNEL_PREFIX,
    Alert,
    CreditRow,
    DeadLetter,
    Drawn,
    DrawRequest,
    Entry,
    Erased,
    Item,
    KeyRow,
    Lease,
    Operation,
    Outcome,
    Place,
    Promotion,
    Settled,
    Settlement,
    SpendRow,
    SpendSums,
    Store,
    Totals,
    UnwritableError,
)
from .forgetting import MARKED_S, check_erasable, naming
from .lines import lines_of, state_of
from .memory_items import ItemBook
from .memory_keys import KeyBook
from .memory_ledger import MemoryLedger
from .rows import EVER_S
from .rules import check_asked, check_channels, check_sinks


class MemoryStore(Store):
    """See `Store`. Settled calls are remembered for 24 hours, counters as long as the contract says, aggregates as
    long as the process lives.
    """

    url = "memory://"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ledger = ledger = MemoryLedger()
        self._book, self._done, self._operations = ledger.book, ledger.done, ledger.operations
        self._budgets, self._aggregates = ledger.budgets, ledger.aggregates
        self._outbox, self._alerts = ledger.outbox, ledger.alerts
        self._items = ItemBook()
        self._keys = KeyBook()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        pass

    # Admission ---------------------------------------------------------------------------------------------------

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        return self._budgets.forms_version, sorted(self._budgets.forms)

    async def reserve(self, request: ReserveRequest) -> Admission:
        return self._ledger.reserve(request, self._clock())

    async def extend(self, request: ExtendRequest) -> Extension:
        return self._ledger.extend(request, self._clock())

    async def settle(self, settlement: Settlement) -> Settled:
        return self.settle_at_once(settlement)

    def settle_at_once(self, settlement: Settlement) -> Settled:
        return self._ledger.settle(settlement, self._clock())

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        answers: list[Settled | UnwritableError] = []
        for settlement in settlements:
            try:
                answers.append(self.settle_at_once(settlement))
            except UnwritableError as error:
                answers.append(error)
        return answers

    async def release(self, call_id: str) -> None:
        self._ledger.release(call_id, self._clock())

    async def defer(self, operation: Operation) -> bool:
        return self._ledger.defer(operation, self._clock())

    async def operation(self, key: str) -> Operation | None:
        return self._operations.find(key)

    async def overdue(self, limit: int) -> list[Operation]:
        return self._operations.overdue(limit, self._clock())

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive = self._ledger.heartbeat(worker, ttl_s, self._clock())
        self.lost_holds = self._book.lost
        return alive

    # Credit ---------------------------------------------------------------------------------------------------------

    async def draw(self, request: DrawRequest) -> Drawn:
        return self._ledger.draw(request, self._clock())

    async def promote(self, promotion: Promotion) -> None:
        self._ledger.promote(promotion, self._clock())

    async def credits(self) -> list[CreditRow]:
        now_s = self._clock()
        return self._book.credit.rows(lambda worker: self._book.is_alive(worker, now_s))

    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        now_s = self._clock()
        return self._book.credit.reclaim(scope, lambda worker: self._book.is_alive(worker, now_s))

    # Budgets, keys, reading -----------------------------------------------------------------------------------------

    async def set_budget(self, budget: Budget) -> None:
        self._budgets.put(budget)

    async def remove_budget(self, key: str) -> bool:
        return self._budgets.remove(key)

    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        return self._budgets.some(after, limit, contains)

    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        return self._budgets.of(keys)

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        check_asked(asked)
        now_s = self._clock()
        read = self._ledger.reader(now_s)
        lines = partial(lines_of, stored=self._budgets.terms, windows=windows, at_s=now_s, rate=rate, compute=True)
        return [
            [state_of(line, read(line.counter)) for line in lines(matches, crowding=self._book.crowding)]
            for matches in asked
        ]

    async def put_key(self, row: KeyRow) -> None:
        self._keys.put(row)

    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        return self._keys.list(tenant, after, limit)

    async def key(self, key_id: str) -> KeyRow | None:
        return self._keys.get(key_id)

    async def find_key(self, sha256: str) -> KeyRow | None:
        return self._keys.find(sha256)

    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        return self._aggregates.spend_over(scopes, edges_s)

    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        return self._aggregates.top_spend(prefix, start_s, end_s, limit)

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

    async def record(self, call_id: str) -> bytes | None:
        return self._outbox.record(call_id)

    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        return self._outbox.latest(tenant, limit, before_seq)

    async def erase(self, tenant: str) -> Erased:
        check_erasable(tenant)
        records = self._outbox.erase(tenant)
        keys = self._keys.erase(tenant)
        named = naming(tenant, keys)
        self._alerts.erase(named)
        return Erased(records, self._aggregates.erase(tenant, named), len(keys), self._budgets.erase(named))

    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        count = 0
        if records_before_s is not None:
            count = self._outbox.prune(min(records_before_s, self._clock() - MARKED_S), limit)
        if aggregates_before_s is not None:
            count += self._aggregates.prune(aggregates_before_s, limit - count)
        return count

    # Items ----------------------------------------------------------------------------------------------------------

    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        return self._items.put(kind, name, value, until_s=until_s, only_new=only_new, now_s=self._clock())

    async def items(self, kind: str) -> list[Item]:
        return self._items.items(kind, self._clock())

    async def item_versions(self) -> dict[str, int]:
        return self._items.versions(self._clock())

    # Outbox ---------------------------------------------------------------------------------------------------------

    async def register_sinks(self, names: Sequence[str]) -> None:
        check_sinks(names)
        self._outbox.register(names)

    async def forget_sink(self, name: str) -> bool:
        return self._outbox.forget(name)

    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        if sink.startswith(CHANNEL_PREFIX):
            return self._alerts.lease(sink, owner, ttl_s, self._clock())
        return self._outbox.lease(sink, owner, ttl_s, self._clock())

    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        return self._outbox.fetch(sink, partitions, limit, EVER_S if early else self._clock())

    async def acknowledge(
        self,
        sink: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float = 0.0,
        failures: int = 0,
    ) -> list[int]:
        return self._outbox.acknowledge(
            sink, leases, outcomes, retry_at_s=retry_at_s, failures=failures, now_s=self._clock()
        )

    async def pending(self) -> dict[str, int]:
        return self._outbox.pending()

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        return self._outbox.dead_letters(sink, limit)

    async def retry_dead(self, sink: str) -> int:
        return self._outbox.retry_dead(sink, self._clock())

    async def places(self, sink: str) -> list[Place]:
        return self._outbox.places(sink)

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
