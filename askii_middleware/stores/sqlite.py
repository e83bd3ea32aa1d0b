"""A ledger in one SQLite file, which several worker processes on one machine share."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from ..admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ..budgets import Budget
from . import sqlite_alerts as alerts
from . import sqlite_budgets as budgets
from . import sqlite_credits as credit
from . import sqlite_forgetting as forgetting
from . import sqlite_items as items
from . import sqlite_keys as keys
from . import sqlite_ledger as ledger
from . import sqlite_outbox as outbox
from . import sqlite_reading as reading
from . import sqlite_sums as sums
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
from .copying import unfinished_error
from .rows import EVER_S
from .rules import check_asked, check_channels, check_sinks
from .sqlite_counters import status_of
from .sqlite_database import Database
from .sqlite_schema import is_unfinished
from .sqlite_sql import SQL


class SQLiteStore(Store):
    """See `Store`. Committed operations survive the death of the process; with `sqlite_sync="full"` also the loss of
    power, at the price of a wait for the disk in each.

    Args:
        path: the file; created if it does not exist. Its directory must exist.
        sqlite_sync: `normal` or `full`.
        lock_timeout_s: how long an operation waits for other processes before it raises StoreError.
        clock: Unix seconds; the same for all processes of the machine.
    """

    def __init__(
        self,
        path: str,
        *,
        sqlite_sync: str = "normal",
        lock_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = f"sqlite:///{path}"
        self._clock = clock
        self._db = Database(path, full_sync=sqlite_sync == "full", lock_timeout_s=lock_timeout_s)

    async def open(self) -> None:
        await self._db.open()
        if not self.for_copy and await self._db.read(is_unfinished):
            await self._db.close()
            raise unfinished_error(self.url)

    @property
    def database(self) -> Database:
        """For what is no single operation: copying it all."""
        return self._db

    async def close(self) -> None:
        await self._db.close()

    async def ping(self) -> None:
        await self._db.write(lambda db: db.execute(SQL["touch"]))

    # Admission ---------------------------------------------------------------------------------------------------

    async def forms(self) -> tuple[int, list[tuple[str, str, str]]]:
        return await self._db.read(
            lambda db: (db.execute(SQL["forms_version"]).fetchone()[0], db.execute(SQL["forms"]).fetchall())
        )

    async def reserve(self, request: ReserveRequest) -> Admission:
        return await self._db.write(lambda db: ledger.reserve(db, request, self._clock()))

    async def extend(self, request: ExtendRequest) -> Extension:
        return await self._db.write(lambda db: ledger.extend(db, request, self._clock()))

    async def settle(self, settlement: Settlement) -> Settled:
        return await self._db.write(lambda db: ledger.settle(db, settlement, self._clock()))

    def settle_at_once(self, settlement: Settlement) -> Settled | None:
        return self._db.write_at_once(lambda db: ledger.settle(db, settlement, self._clock()))

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        return await self._db.write(lambda db: ledger.settle_many(db, settlements, self._db.path, self._clock()))

    async def release(self, call_id: str) -> None:
        await self._db.write(lambda db: ledger.release(db, call_id, self._clock()))

    async def defer(self, operation: Operation) -> bool:
        return await self._db.write(lambda db: ledger.defer(db, operation, self._clock()))

    async def operation(self, key: str) -> Operation | None:
        row = await self._db.read(lambda db: db.execute(SQL["operation"], (key,)).fetchone())
        return None if row is None else _operation(row)

    async def overdue(self, limit: int) -> list[Operation]:
        asked = (self._clock(), max(limit, 0))
        return [
            _operation(row)
            for row in await self._db.read_aside(lambda db: db.execute(SQL["overdue"], asked).fetchall())
        ]

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        alive = await self._db.write(lambda db: ledger.beat(db, worker, ttl_s, self._clock()))
        self.lost_holds += await self._db.write_aside(lambda db: ledger.tend(db, self._clock()))
        return alive

    async def tend(self) -> None:
        await sums.catch_up(self._db, self._clock())

    # Credit ---------------------------------------------------------------------------------------------------------

    async def draw(self, request: DrawRequest) -> Drawn:
        return await self._db.write(lambda db: credit.draw(db, request, self._clock()))

    async def promote(self, promotion: Promotion) -> None:
        await self._db.write(lambda db: credit.promote(db, promotion, self._clock()))

    async def credits(self) -> list[CreditRow]:
        return await self._db.read_aside(lambda db: credit.rows(db, self._clock()))

    async def reclaim(self, scope: str | None = None) -> list[CreditRow]:
        return await self._db.write_aside(lambda db: credit.reclaim(db, scope, self._clock()))

    # Budgets, keys, reading -----------------------------------------------------------------------------------------

    async def set_budget(self, budget: Budget) -> None:
        await self._db.write(lambda db: budgets.put(db, budget))

    async def remove_budget(self, key: str) -> bool:
        return await self._db.write(lambda db: budgets.remove(db, key))

    async def budgets(self, *, after: str = "", limit: int | None = None, contains: str = "") -> list[Budget]:
        return await self._db.read_aside(lambda db: budgets.some(db, after, limit, contains))

    async def budgets_of(self, keys: Collection[str]) -> list[Budget]:
        return await self._db.read(lambda db: budgets.of(db, keys))

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        check_asked(asked)
        read = self._db.read if len(asked) <= 1 else self._db.read_aside
        return await read(lambda db: status_of(db, asked, windows, rate, self._clock()))

    async def put_key(self, row: KeyRow) -> None:
        await self._db.write(lambda db: keys.put(db, row))

    async def keys(self, *, tenant: str | None = None, after: str = "", limit: int | None = None) -> list[KeyRow]:
        return await self._db.read_aside(lambda db: keys.some(db, tenant, after, limit))

    async def key(self, key_id: str) -> KeyRow | None:
        return await self._db.read(lambda db: keys.get(db, key_id))

    async def find_key(self, sha256: str) -> KeyRow | None:
        return await self._db.read(lambda db: keys.find(db, sha256))

    async def spend_over(self, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
        return await self._db.read_aside(lambda db: reading.spend_over(db, scopes, edges_s))

    async def top_spend(self, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
        return await self._db.read_aside(lambda db: reading.top_spend(db, prefix, start_s, end_s, limit))

    async def latest(self, tenant: str | None, limit: int, *, before_seq: int | None = None) -> list[tuple[int, bytes]]:
        return await self._db.read_aside(lambda db: reading.latest(db, tenant, limit, before_seq))

    async def erase(self, tenant: str) -> Erased:
        return await forgetting.erase(self._db, tenant)

    async def prune(self, *, records_before_s: float | None, aggregates_before_s: float | None, limit: int) -> int:
        return await forgetting.prune(self._db, records_before_s, aggregates_before_s, limit, self._clock())

    async def totals(self) -> Totals:
        row = await self._db.read_aside(lambda db: db.execute(SQL["totals"], (self._clock(),)).fetchone())
        return Totals(*row)

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        return await self._db.read_aside(lambda db: db.execute(SQL["records"], (after_seq, max(limit, 0))).fetchall())

    async def record(self, call_id: str) -> bytes | None:
        row = await self._db.read(lambda db: db.execute(SQL["record_of"], (call_id,)).fetchone())
        return None if row is None else row[0]

    # Items ----------------------------------------------------------------------------------------------------------

    async def put_item(
        self, kind: str, name: str, value: bytes | None, *, until_s: float | None = None, only_new: bool = False
    ) -> bool:
        return await self._db.write(
            lambda db: items.put(db, kind, name, value, until_s=until_s, only_new=only_new, now_s=self._clock())
        )

    async def items(self, kind: str) -> list[Item]:
        return await self._db.read_aside(lambda db: items.find(db, kind, self._clock()))

    async def item_versions(self) -> dict[str, int]:
        return await self._db.read(lambda db: items.versions(db, self._clock()))

    # Outbox ---------------------------------------------------------------------------------------------------------

    async def register_sinks(self, names: Sequence[str]) -> None:
        check_sinks(names)
        await self._db.write(lambda db: outbox.register(db, names))

    async def forget_sink(self, name: str) -> bool:
        return await self._db.write_aside(lambda db: outbox.forget(db, name))

    async def lease(self, sink: str, owner: str, ttl_s: float) -> list[Lease]:
        lease = alerts.lease if sink.startswith(CHANNEL_PREFIX) else outbox.lease
        return await self._db.write(lambda db: lease(db, sink, owner, ttl_s, self._clock()))

    async def fetch(self, sink: str, partitions: Sequence[int], limit: int, *, early: bool = False) -> list[Entry]:
        now_s = EVER_S if early else self._clock()
        return await self._db.read_aside(lambda db: outbox.fetch(db, sink, partitions, limit, now_s))

    async def acknowledge(
        self,
        sink: str,
        leases: Sequence[Lease],
        outcomes: Sequence[Outcome],
        *,
        retry_at_s: float = 0.0,
        failures: int = 0,
    ) -> list[int]:
        return await self._db.write(
            lambda db: outbox.acknowledge(
                db, sink, leases, outcomes, retry_at_s=retry_at_s, failures=failures, now_s=self._clock()
            )
        )

    async def pending(self) -> dict[str, int]:
        return await self._db.read(lambda db: dict(db.execute(SQL["pending"])))

    async def dead_letters(self, sink: str, limit: int = 100) -> list[DeadLetter]:
        return await self._db.read_aside(lambda db: outbox.dead_letters(db, sink, limit))

    async def retry_dead(self, sink: str) -> int:
        return await self._db.write_aside(lambda db: outbox.retry_dead(db, sink, self._clock()))

    async def places(self, sink: str) -> list[Place]:
        return await self._db.read_aside(lambda db: outbox.places(db, sink))

    # Alerts ---------------------------------------------------------------------------------------------------------

    async def register_channels(self, names: Sequence[str]) -> None:
        check_channels(names)
        await self._db.write(lambda db: alerts.register(db, names, self._clock()))

    async def fetch_alerts(self, channel: str, limit: int) -> list[Alert]:
        return await self._db.read(lambda db: alerts.fetch(db, channel, limit))

    async def acknowledge_alerts(self, channel: str, token: int, through_seq: int) -> bool:
        return await self._db.write(lambda db: alerts.acknowledge(db, channel, token, through_seq))

    async def recent_alerts(self, limit: int) -> list[Alert]:
        return await self._db.read_aside(lambda db: alerts.recent(db, limit))


def _operation(row: tuple[str, str, str, float, bytes]) -> Operation:
    key, call_id, tenant, until_s, payload = row
    return Operation(key=key, call_id=call_id, tenant=tenant, until_s=until_s, payload=payload)
