"""A whole PostgreSQL ledger as rows, for `askii migrate` and `askii copy-store`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg

from ...admission import Admission
from ...errors import StoreError
from ..copying import (
    AlertRow,
    AsideRow,
    CarryRow,
    ChannelRow,
    Copier,
    CounterRow,
    CreditRow,
    EndRow,
    HoldRow,
    HourRow,
    ItemRow,
    Page,
    RecordRow,
    Row,
    SeatRow,
    SinkRow,
    WorkerRow,
)
from ..rows import Alert, Operation
from ..rules import ELSEWHERE
from .address import parse
from .connection import Connections
from .errors import UNTRANSLATABLE, explain
from .migrations import UNFINISHED, VERSION, look
from .store import PostgresStore

_encode = msgspec.json.Encoder().encode
_decode_alert = msgspec.json.Decoder(Alert).decode
_decode_answer = msgspec.json.Decoder(Admission).decode


class _Ending(msgspec.Struct):
    """The members of a record that the store has written."""

    late: bool = False
    askii_coins: int = 0


_decode_ending = msgspec.json.Decoder(_Ending).decode


class PostgresCopier(Copier):
    """See `Copier`. Works on a connection of its own, without a time-out for statements."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._address = parse(url)
        self._store = PostgresStore(url, clock=clock)
        self._store.for_copy = True
        self._clock = clock
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.url = self._store.url

    async def versions(self) -> tuple[int, int]:
        connections = Connections(self._address, timeout_s=30.0)
        try:
            return (await look(connections, self._address)).version, VERSION
        finally:
            await connections.close()

    async def migrate(self) -> None:
        try:
            await self._store.migrate()
        finally:
            await self._store.close()

    async def open(self) -> None:
        await self._store.open()
        async with self._explained():
            self._connection = await psycopg.AsyncConnection.connect(self._address.conninfo)
            await self._connection.execute(f"SET search_path = {self._address.namespace}, pg_temp".encode())
            await self._connection.commit()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        await self._store.close()

    async def now_s(self) -> float:
        if self._clock is not None:
            return self._clock()
        return float((await self._all("SELECT extract(epoch FROM clock_timestamp())::double precision"))[0][0])

    async def unfinished(self) -> bool:
        return bool(await self._all("SELECT 1 FROM meta WHERE name = %s", UNFINISHED))

    async def begin(self) -> None:
        tables = {table for plan in _PLANS.values() for table in plan.tables} - {"workers", "partitions"}
        async with self._transaction() as connection:
            await connection.execute("INSERT INTO meta VALUES (%s, 1) ON CONFLICT DO NOTHING", (UNFINISHED,))
            names = ", ".join(sorted({*tables, "budgets", "digests", "keys", "item_kinds", "owners", "draws"}))
            await connection.execute(f"TRUNCATE {names}".encode())
            await connection.execute("DELETE FROM workers WHERE worker <> %s", (ELSEWHERE,))
            await connection.execute("UPDATE partitions SET last = 0")
            await connection.execute(
                "UPDATE pruned SET calls = 0, cost_nano_usd = 0, records = 0, records_nano_usd = 0"
            )
            await connection.execute("ALTER SEQUENCE record_numbers RESTART")
            await connection.execute("UPDATE meta SET value = 0 WHERE name = 'last_alert'")
            await connection.execute(
                "SELECT next_version(name) FROM (VALUES ('forms_version'), ('budgets_version')) AS known (name)"
            )

    async def complete(self) -> None:
        async with self._transaction() as connection:
            await connection.execute("DELETE FROM meta WHERE name = %s", (UNFINISHED,))

    async def export(self, table: str, after: str | None, limit: int) -> Page:
        if table == "budgets":
            return Page(await self._store.budgets(), None)
        if table == "keys":
            keys = await self._store.keys(after=after or "", limit=limit)
            return Page(keys, keys[-1].id if len(keys) == limit else None)
        if table == "ends":
            return Page([EndRow(*row) for row in await self._all(_ENDS)], None)
        plan = _PLANS[table]
        names = plan.key.split(", ")
        beyond: list[Any] = [] if after is None else msgspec.json.decode(after)
        where = f"{plan.only} AND ({plan.key}) > ({', '.join(['%s'] * len(names))})" if beyond else plan.only
        rows = await self._all(
            f"SELECT {plan.key}, {plan.columns} FROM {plan.source} WHERE {where} ORDER BY {plan.key} LIMIT %s",  # noqa: S608
            *beyond,
            limit,
        )
        last = _encode(rows[-1][: len(names)]).decode() if len(rows) == limit else None
        return Page([plan.read(row[len(names) :]) for row in rows], last)

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        if table == "budgets":
            for row in rows:
                await self._store.set_budget(row)
        elif table == "keys":
            for row in rows:
                await self._store.put_key(row)
        else:
            async with self._transaction() as connection, connection.cursor() as cursor:
                if table == "ends":
                    for row in rows:
                        await cursor.execute(*_end(row))
                    await cursor.execute(_EVER_RECORDS)
                else:
                    for text, values in _PLANS[table].write(rows):
                        await cursor.executemany(text.encode(), values)

    # The connection -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise explain(self._address.shown, UNTRANSLATABLE, f"text that is not UTF-8: {error.reason}") from None
        except (psycopg.Error, OSError) as error:
            message = " ".join(str(error).split())
            for secret in self._address.secrets:
                message = message.replace(secret, "***")
            # psycopg itself refuses a NUL in a text, and gives no code.
            refused = UNTRANSLATABLE if isinstance(error, psycopg.DataError) else None
            raise explain(self._address.shown, getattr(error, "sqlstate", None) or refused, message) from None

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        connection = self._connection
        if connection is None:
            raise StoreError(f"the ledger {self.url} is not open")
        async with self._explained(), connection.transaction():
            yield connection

    async def _all(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        async with self._transaction() as connection:
            cursor = await connection.execute(text.encode(), values)
            return await cursor.fetchall()


# How the rows lie there ----------------------------------------------------------------------------------------------

_Writes = Sequence[tuple[str, Sequence[Sequence[Any]]]]
"""Statements, each with the values of all its runs."""


class _Plan(NamedTuple):
    source: str
    columns: str
    key: str
    """What orders the rows, and tells each from all others."""
    read: Callable[[tuple[Any, ...]], Row]
    write: Callable[[Sequence[Any]], _Writes]
    tables: tuple[str, ...]
    """All that `write` fills."""
    only: str = "true"


def _insert(table: str, columns: str, end: str = "") -> str:
    places = ", ".join(["%s"] * (columns.count(",") + 1))
    return f"INSERT INTO {table} ({columns}) VALUES ({places}) {end}"  # noqa: S608 - names of our own


def _plain(table: str, columns: str, key: str, read: Callable[[tuple[Any, ...]], Row]) -> _Plan:
    """For rows that lie there as they are."""
    text = _insert(table, columns.replace("::text", ""))
    return _Plan(table, columns, key, read, lambda rows: [(text, rows)], (table,))


_HELD = _insert(
    "counters",
    "counter, worker, nano_usd, end_s",
    "ON CONFLICT (counter, worker) DO UPDATE SET nano_usd = counters.nano_usd + excluded.nano_usd",
)
_HOLD = "call_id, state, until_s, worker, nano_usd, counters, ends, candidate, admitted_at_s, sequence, answer, about"
_RECORD = "partition, seq, n, call_id, tenant, candidate, admitted_at_s, settled_at_s, coins, late, record"
_OPERATION = "key, call_id, tenant, until_s, payload"


def _write_workers(rows: Sequence[WorkerRow]) -> _Writes:
    return [
        (_insert("workers", "worker, alive_until_s, buried_s"), [row[:3] for row in rows]),
        (_insert("draws", "holder, sequence"), [(row.worker, row.drawn) for row in rows if row.drawn]),
    ]


def _write_counters(rows: Sequence[CounterRow]) -> _Writes:
    return [(_insert("counters", "counter, end_s, nano_usd, worker"), [(*row, "") for row in rows])]


def _read_hold(row: tuple[Any, ...]) -> HoldRow:
    *first, counters, ends, candidate, admitted_at_s, sequence, answer, about = row
    on = tuple(zip(counters, ends, strict=True))
    return HoldRow._make((*first, on, candidate, admitted_at_s, sequence, _decode_answer(answer), about))


def _write_holds(rows: Sequence[HoldRow]) -> _Writes:
    holds = []
    held = []
    for row in rows:
        names, ends = [name for name, _ in row.counters], [end_s for _, end_s in row.counters]
        holds.append((*row[:5], names, ends, *row[6:9], _encode(row.answer).decode(), row.about))
        if row.state == "held":
            held += [(name, row.worker, row.nano_usd, end_s) for name, end_s in row.counters]
    return [(_insert("holds", _HOLD), holds), (_HELD, held)]


def _read_operation(row: tuple[Any, ...]) -> Operation:
    return Operation(key=row[0], call_id=row[1], tenant=row[2], until_s=row[3], payload=row[4])


def _write_operations(rows: Sequence[Operation]) -> _Writes:
    values = [(row.key, row.call_id, row.tenant, row.until_s, row.payload) for row in rows]
    return [(_insert("operations", _OPERATION), values)]


def _write_records(rows: Sequence[RecordRow]) -> _Writes:
    values = []
    for row in rows:
        ending = _decode_ending(row.record)
        # Nobody says when it was settled: not before it was admitted, and if that is forgotten, a day ago at the least.
        values.append((*row[:7], row.admitted_at_s, ending.askii_coins, ending.late, row.record))
    return [(_insert("records", _RECORD), values)]


def _write_sinks(rows: Sequence[SinkRow]) -> _Writes:
    text = """
        INSERT INTO places (sink, partition, position, token, retry_at_s, failures)
        SELECT %s, partition, last - %s, %s, %s, %s FROM partitions WHERE partition = %s"""
    names = sorted({row.sink for row in rows})
    places = [(row.sink, row.behind, row.token, row.retry_at_s, row.failures, row.partition) for row in rows]
    return [(_insert("sinks", "sink", "ON CONFLICT DO NOTHING"), [(name,) for name in names]), (text, places)]


def _write_alerts(rows: Sequence[AlertRow]) -> _Writes:
    return [(_insert("alerts", "seq, id, end_s, alert"), [(*row[:3], _encode(row.alert).decode()) for row in rows])]


def _write_items(rows: Sequence[ItemRow]) -> _Writes:
    changed = _insert(
        "item_kinds", "kind, version", "ON CONFLICT (kind) DO UPDATE SET version = item_kinds.version + 1"
    )
    return [(_insert("items", "kind, name, value, until_s"), rows), (changed, [(row.kind, 1) for row in rows])]


_PLANS = {
    "items": _Plan("items", "kind, name, value, until_s", "kind, name", ItemRow._make, _write_items, ("items",)),
    "workers": _Plan(
        "workers LEFT JOIN draws ON holder = worker",
        "worker, alive_until_s, buried_s, coalesce(sequence, 0)",
        "worker",
        WorkerRow._make,
        _write_workers,
        ("workers", "draws"),
        f"worker <> '{ELSEWHERE}'",
    ),
    "counters": _Plan(
        "counters",
        "counter, end_s, nano_usd",
        "counter",
        CounterRow._make,
        _write_counters,
        ("counters",),
        "worker = ''",
    ),
    "credit": _plain("credits", "counter, holder, end_s, granted, used", "counter, holder", CreditRow._make),
    "holds": _Plan(
        "holds", _HOLD.replace("answer", "answer::text"), "call_id", _read_hold, _write_holds, ("holds", "counters")
    ),
    "seats": _plain("seats", "shared, counter, number, end_s", "shared, number", SeatRow._make),
    "operations": _Plan("operations", _OPERATION, "call_id", _read_operation, _write_operations, ("operations",)),
    "carries": _plain(
        "carries", "subscription, coins, pico_coins", "subscription", lambda row: CarryRow(row[0], int(row[1]), row[2])
    ),
    "aggregates": _plain(
        "aggregates",
        "hour, scope, model, provider, requests, input_tokens, output_tokens, cost_nano_usd",
        "scope, hour, model, provider",
        HourRow._make,
    ),
    "records": _Plan(
        "records",
        "partition, seq, n, call_id, tenant, candidate, admitted_at_s, record",
        "partition, seq",
        RecordRow._make,
        _write_records,
        ("records",),
    ),
    "sinks": _Plan(
        "places JOIN partitions USING (partition)",
        "sink, partition, last - position, token, retry_at_s, failures",
        "sink, partition",
        SinkRow._make,
        _write_sinks,
        ("sinks", "places"),
    ),
    "aside": _plain(
        "aside",
        "sink, partition, seq, state, due_s, attempts, reason, first_attempt_s, last_attempt_s",
        "sink, partition, seq",
        AsideRow._make,
    ),
    "alerts": _Plan(
        "alerts",
        "seq, id, end_s, alert::text",
        "seq",
        lambda row: AlertRow._make((*row[:3], _decode_alert(row[3]))),
        _write_alerts,
        ("alerts",),
    ),
    "channels": _plain("channels", "channel, position, token, until_s", "channel", ChannelRow._make),
}
_ENDS = """
    SELECT 'alerts', value FROM meta WHERE name = 'last_alert' AND value > 0
    UNION ALL SELECT 'records', max(n) FROM records HAVING max(n) > 0
    UNION ALL SELECT partition::text, last FROM partitions WHERE last > 0
    UNION ALL SELECT name, value::text::bigint FROM totals(NULL) AS found,
        unnest(
            ARRAY['calls', 'cost_nano_usd', 'records_nano_usd'], ARRAY[found -> 0, found -> 1, found -> 3]
        ) AS ever (name, value)
        WHERE EXISTS (SELECT FROM pruned WHERE calls <> 0 OR cost_nano_usd <> 0 OR records <> 0)"""
_EVER = {
    "calls": b"UPDATE pruned SET calls = calls + %s - (totals(NULL) ->> 0)::numeric",
    "cost_nano_usd": b"UPDATE pruned SET cost_nano_usd = cost_nano_usd + %s - (totals(NULL) ->> 1)::numeric",
    "records_nano_usd": b"UPDATE pruned SET records_nano_usd = records_nano_usd + %s - (totals(NULL) ->> 3)::numeric",
}
"""What was pruned is what is missing of the sums over all rows ever written."""
_EVER_RECORDS = b"""
    UPDATE pruned SET records = greatest((SELECT sum(last) FROM partitions) - (SELECT count(*) FROM records), 0)"""


def _end(row: EndRow) -> tuple[bytes, tuple[Any, ...]]:
    if row.name == "alerts":
        return b"UPDATE meta SET value = %s WHERE name = 'last_alert'", (row.last,)
    if row.name in _EVER:
        return _EVER[row.name], (row.last,)
    if row.name == "records":
        return b"SELECT setval('record_numbers', %s)", (row.last,)
    return b"UPDATE partitions SET last = %s WHERE partition = %s", (row.last, int(row.name))
