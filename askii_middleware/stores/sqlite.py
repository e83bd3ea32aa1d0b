"""A ledger in one SQLite file, which several worker processes on one machine share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

import msgspec

from ..admission import Admission, BudgetState, ExtendRequest, Extension, Match, ReserveRequest, Window
from ..budgets import Budget, Scope
from ..errors import StoreError
from . import sqlite_alerts as alerts
from . import sqlite_credits as credit
from . import sqlite_items as items
from . import sqlite_ledger as ledger
from . import sqlite_outbox as outbox
from .base import (
    CHANNEL_PREFIX,
    Alert,
    CreditRow,
    DeadLetter,
    Drawn,
    DrawRequest,
    Entry,
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
    Store,
    Totals,
    UnwritableError,
)
from .copying import unfinished_error
from .rows import EVER_S
from .rules import check_asked, check_channels, check_sinks, form_of, hours
from .sqlite_counters import status_of
from .sqlite_database import Database
from .sqlite_schema import is_unfinished
from .sqlite_sql import SQL

_encode = msgspec.json.Encoder().encode
_decode_key = msgspec.json.Decoder(KeyRow).decode


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
        await self._db.write(lambda db: _set_budget(db, budget))

    async def remove_budget(self, key: str) -> bool:
        return await self._db.write(lambda db: _remove_budget(db, key))

    async def budgets(self) -> list[Budget]:
        rows = await self._db.read_aside(lambda db: db.execute(SQL["budgets"]).fetchall())
        return [_budget(row[0]) for row in rows]

    async def status_of(
        self, asked: Sequence[tuple[Match, ...]], windows: dict[str, tuple[Window, Window]], rate: tuple[int, int]
    ) -> list[list[BudgetState]]:
        check_asked(asked)
        read = self._db.read if len(asked) <= 1 else self._db.read_aside
        return await read(lambda db: status_of(db, asked, windows, rate, self._clock()))

    async def put_key(self, row: KeyRow) -> None:
        await self._db.write(lambda db: _put_key(db, row))

    async def keys(self) -> list[KeyRow]:
        rows = await self._db.read_aside(lambda db: db.execute(SQL["keys"]).fetchall())
        return [_decode_key(row[0]) for row in rows]

    async def find_key(self, sha256: str) -> KeyRow | None:
        return await self._db.read(lambda db: _find_key(db, sha256))

    async def spend(self, scope: str, start_s: float, end_s: float) -> list[SpendRow]:
        rows = await self._db.read_aside(
            lambda db: db.execute(SQL["spend"], (scope, *hours(start_s, end_s))).fetchall()
        )
        return [SpendRow(*row) for row in rows]

    async def totals(self) -> Totals:
        row = await self._db.read_aside(lambda db: db.execute(SQL["totals"], (self._clock(),)).fetchone())
        return Totals(*row)

    async def records(self, after_seq: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        return await self._db.read_aside(lambda db: db.execute(SQL["records"], (after_seq, max(limit, 0))).fetchall())

    async def record(self, call_id: str) -> bytes | None:
        row = await self._db.read(lambda db: db.execute(SQL["record_of"], (call_id,)).fetchone())
        return None if row is None else row[0]

    async def tenant_spend(self, period: str, window: Window, limit: int) -> list[tuple[str, int]]:
        del period
        asked = (*hours(window.start_s, window.end_s), max(limit, 0))
        rows = await self._db.read_aside(lambda db: db.execute(SQL["tenant_spend"], asked).fetchall())
        return [(Scope.parse(scope).tenant or "", cost) for scope, cost in rows]

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


def _set_budget(db: sqlite3.Connection, budget: Budget) -> None:
    terms = budget.terms
    before = db.execute(SQL["form_of"], (budget.key,)).fetchone()
    form = form_of(budget)
    known = _has_form(db, form)
    db.execute(
        SQL["set_budget"],
        (
            budget.key,
            *form,
            terms.limit_nano_usd,
            terms.limit_coins,
            terms.enabled,
            terms.soft,
            terms.max_values,
            _encode(terms.alert_at_ppm).decode() if terms.alert_at_ppm else None,
            _budget_json(budget),
        ),
    )
    db.execute(SQL["edited"])
    if not known or (before is not None and not _has_form(db, before)):
        db.execute(SQL["new_forms"])


def _remove_budget(db: sqlite3.Connection, key: str) -> bool:
    form = db.execute(SQL["form_of"], (key,)).fetchone()
    if form is None:
        return False
    db.execute(SQL["remove_budget"], (key,))
    db.execute(SQL["edited"])
    if not _has_form(db, form):
        db.execute(SQL["new_forms"])
    return True


def _has_form(db: sqlite3.Connection, form: tuple[str, str, str]) -> bool:
    return bool(db.execute(SQL["has_form"], form).fetchone()[0])


def _budget_json(budget: Budget) -> str:
    def text(limit: object) -> str | None:
        return None if limit is None else str(limit)

    return _encode(
        {
            "scope": str(budget.scope),
            "limit_usd": text(budget.limit_usd),
            "limit_coins": text(budget.limit_coins),
            "period": budget.period,
            "zone": budget.zone,
            "alert_at": budget.alert_at,
            "soft": budget.soft,
            "max_values": budget.max_values,
            "enabled": budget.enabled,
        }
    ).decode()


def _budget(text: str) -> Budget:
    row = msgspec.json.decode(text)
    for name in ("limit_usd", "limit_coins"):
        row[name] = None if row[name] is None else Decimal(row[name])
    return Budget(**{**row, "alert_at": tuple(row["alert_at"])})


def _put_key(db: sqlite3.Connection, row: KeyRow) -> None:
    known = _find_key(db, row.sha256)
    if known is not None and known.id != row.id:
        raise StoreError(f"key {row.id!r}: another key has the same secret")
    db.execute(SQL["put_key"], (row.id, row.sha256, _encode(row)))


def _find_key(db: sqlite3.Connection, sha256: str) -> KeyRow | None:
    row = db.execute(SQL["find_key"], (sha256,)).fetchone()
    return None if row is None else _decode_key(row[0])
