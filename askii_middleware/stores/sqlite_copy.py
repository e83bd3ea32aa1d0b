"""A whole SQLite ledger as rows, for `askii migrate` and `askii copy-store`."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..admission import Admission
from .copying import (
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
from .rows import Alert, Operation
from .rules import ELSEWHERE
from .sqlite import SQLiteStore
from .sqlite_errors import explain
from .sqlite_schema import UNFINISHED, is_unfinished
from .sqlite_sql import SQL, STEPS

_encode = msgspec.json.Encoder().encode
_encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Admission).decode
_decode_alert = msgspec.json.Decoder(Alert).decode
_decode_counters = msgspec.json.Decoder(tuple[tuple[str, int], ...]).decode
_SPENT = ""
"""The worker in whose name `counters` has what is spent."""


class SQLiteCopier(Copier):
    """See `Copier`.

    Args:
        path: the file.
        clock: Unix seconds.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._store = SQLiteStore(path, clock=clock, sqlite_sync="full")
        self._store.for_copy = True
        self.url = self._store.url

    async def versions(self) -> tuple[int, int]:
        return await asyncio.to_thread(_version, self._path), len(STEPS)

    async def migrate(self) -> None:
        await self.open()
        await self.close()

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def now_s(self) -> float:
        return self._clock()

    async def unfinished(self) -> bool:
        return await self._store.database.read_aside(is_unfinished)

    async def begin(self) -> None:
        await self._store.database.write_aside(_begin)

    async def complete(self) -> None:
        await self._store.database.write_aside(lambda db: db.execute("DELETE FROM meta WHERE name = ?", (UNFINISHED,)))

    async def export(self, table: str, after: str | None, limit: int) -> Page:
        if table == "budgets":
            return Page(await self._store.budgets(), None)
        if table == "keys":
            return Page(await self._store.keys(), None)
        if table == "ends":
            return Page(await self._store.database.read_aside(_ends), None)
        return await self._store.database.read_aside(lambda db: _export(db, _PLANS[table], after, limit))

    async def load(self, table: str, rows: Sequence[Row]) -> None:
        for row in rows:
            if table == "budgets":
                await self._store.set_budget(row)
            elif table == "keys":
                await self._store.put_key(row)
        if table not in ("budgets", "keys"):
            await self._store.database.write_aside(lambda db: _load(db, table, rows))


def _version(path: str) -> int:
    if not Path(path).exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            version: int = db.execute("PRAGMA user_version").fetchone()[0]
            return version
    except sqlite3.Error as error:
        raise explain(path, error) from error


class _Plan(NamedTuple):
    """How a table of rows lies in the file."""

    source: str
    columns: str
    key: str
    """What orders the rows, and tells each from all others."""
    read: Callable[[tuple[Any, ...]], Row]
    """A row from its columns."""
    write: Callable[[Row], tuple[Any, ...]] = tuple
    """Its columns."""
    only: str = "true"
    """Which of the rows there belong to it."""


def _read_hold(row: tuple[Any, ...]) -> HoldRow:
    return HoldRow._make((*row[:5], _decode_counters(row[5]), *row[6:9], _decode_answer(row[9]), row[10]))


def _write_hold(row: HoldRow) -> tuple[Any, ...]:
    return (*row[:5], _encode(row.counters).decode(), *row[6:9], _encode_answer(row.answer), row.about)


_BEHIND = "(SELECT coalesce(max(place), 0) FROM records WHERE records.partition = sinks.partition) - position"
_PLANS = {
    "items": _Plan("items", "kind, name, value, until_s", "kind, name", ItemRow._make),
    "workers": _Plan(
        "workers",
        "worker, alive_until_s, buried_s, drawn",
        "worker",
        WorkerRow._make,
        only=f"worker <> '{ELSEWHERE}'",
    ),
    "counters": _Plan(
        "counters",
        "counter, end_s, nano_usd, worker",
        "counter",
        lambda row: CounterRow(*row[:3]),
        lambda row: (*row, _SPENT),
        f"worker = '{_SPENT}'",
    ),
    "credit": _Plan("credits", "counter, holder, end_s, granted, used", "counter, holder", CreditRow._make),
    "holds": _Plan(
        "holds",
        "call_id, state, until_s, worker, nano_usd, counters, candidate, admitted_at_s, sequence, answer, about",
        "call_id",
        _read_hold,
        _write_hold,
    ),
    "seats": _Plan("seats", "shared, counter, number, end_s", "shared, number", SeatRow._make),
    "operations": _Plan(
        "operations",
        "key, call_id, tenant, until_s, payload",
        "call_id",
        lambda row: Operation(key=row[0], call_id=row[1], tenant=row[2], until_s=row[3], payload=row[4]),
        lambda row: (row.key, row.call_id, row.tenant, row.until_s, row.payload),
    ),
    "carries": _Plan("carries", "subscription, coins, pico_coins", "subscription", CarryRow._make),
    "aggregates": _Plan(
        "aggregates",
        "hour, scope, model, provider, requests, input_tokens, output_tokens, cost_nano_usd",
        "hour, scope, model, provider",
        HourRow._make,
    ),
    "records": _Plan(
        "records",
        "partition, place, seq, call_id, tenant, candidate, admitted_at_s, record",
        "partition, place",
        RecordRow._make,
    ),
    "sinks": _Plan(
        "sinks", f"sink, partition, {_BEHIND}, token, retry_at_s, failures", "sink, partition", SinkRow._make
    ),
    "aside": _Plan(
        "aside",
        "sink, partition, place, state, due_s, attempts, reason, first_attempt_s, last_attempt_s",
        "sink, partition, place",
        AsideRow._make,
    ),
    "alerts": _Plan(
        "alerts",
        "seq, id, end_s, alert",
        "seq",
        lambda row: AlertRow(row[0], row[1], row[2], msgspec.structs.replace(_decode_alert(row[3]), seq=row[0])),
        lambda row: (*row[:3], _encode(msgspec.structs.replace(row.alert, seq=0))),
    ),
    "channels": _Plan("channels", "channel, position, token, lease_until_s", "channel", ChannelRow._make),
}


def _begin(db: sqlite3.Connection) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, 1)", (UNFINISHED,))
    tables = {plan.source for plan in _PLANS.values()} - {"workers"}
    for table in (*tables, "budgets", "keys", "digests", "askers", "item_versions", "sqlite_sequence"):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
    db.execute("UPDATE meta SET value = 0 WHERE name LIKE 'pruned%'")
    db.execute("DELETE FROM workers WHERE worker <> ?", (ELSEWHERE,))
    db.execute(SQL["new_forms"])


def _ends(db: sqlite3.Connection) -> list[EndRow]:
    last = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'alerts'").fetchone()[0]
    found = [EndRow("alerts", last), EndRow("records", db.execute("SELECT max(seq) FROM records").fetchone()[0] or 0)]
    places = db.execute("SELECT partition, max(place) FROM records GROUP BY partition")
    found += [EndRow(str(partition), place) for partition, place in places]
    if any(value for (value,) in db.execute("SELECT value FROM meta WHERE name LIKE 'pruned%'")):
        calls, cost, _, records_cost, *_ = db.execute(SQL["totals"], (0,)).fetchone()
        sums = {"calls": calls, "cost_nano_usd": cost, "records_nano_usd": records_cost}
        found += [EndRow(name, last) for name, last in sums.items()]
    return [row for row in found if row.last]


def _load_ends(db: sqlite3.Connection, ends: dict[str, int]) -> None:
    """What this engine sees in its rows it does not keep; numbers of alerts are not used again, and what rows that are
    gone came to still counts.
    """
    if "alerts" in ends:
        db.execute(
            "INSERT INTO sqlite_sequence (name, seq) SELECT 'alerts', ? WHERE NOT EXISTS "
            "(SELECT 1 FROM sqlite_sequence WHERE name = 'alerts')",
            (ends["alerts"],),
        )
    calls, cost, records, records_cost, *_ = db.execute(SQL["totals"], (0,)).fetchone()
    placed = sum(last for name, last in ends.items() if name.isdecimal())
    for name, ever, present in (
        ("calls", ends.get("calls", calls), calls),
        ("calls_nano_usd", ends.get("cost_nano_usd", cost), cost),
        ("records", max(placed, records), records),
        ("records_nano_usd", ends.get("records_nano_usd", records_cost), records_cost),
    ):
        db.execute(SQL["pruned"], (f"pruned_{name}", ever - present))


def _export(db: sqlite3.Connection, plan: _Plan, after: str | None, limit: int) -> Page:
    keys = plan.key.split(", ")
    beyond: list[Any] = [] if after is None else msgspec.json.decode(after)
    where = f"{plan.only} AND ({plan.key}) > ({', '.join('?' * len(keys))})" if beyond else plan.only
    text = f"SELECT {plan.key}, {plan.columns} FROM {plan.source} WHERE {where} ORDER BY {plan.key} LIMIT ?"  # noqa: S608
    rows = db.execute(text, (*beyond, limit)).fetchall()
    last = _encode(rows[-1][: len(keys)]).decode() if len(rows) == limit else None
    return Page([plan.read(row[len(keys) :]) for row in rows], last)


def _load(db: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    if table == "ends":
        _load_ends(db, {row.name: row.last for row in rows})
        return
    plan = _PLANS[table]
    columns = plan.columns.replace(_BEHIND, "position")
    values = ", ".join("?" * (columns.count(",") + 1))
    db.executemany(
        f"INSERT INTO {plan.source} ({columns}) VALUES ({values})",  # noqa: S608 - names of our own
        [plan.write(row) for row in rows],
    )
    if table == "sinks":
        for row in rows:
            db.execute(
                f"UPDATE sinks SET position = {_BEHIND} WHERE sink = ? AND partition = ?",  # noqa: S608 - as above
                (row.sink, row.partition),
            )
    elif table == "holds":
        held = [row for row in rows if row.state == "held"]
        db.executemany(
            SQL["add"], [(name, row.worker, row.nano_usd, end_s) for row in held for name, end_s in row.counters]
        )
    elif table == "items":
        db.executemany(SQL["items_changed"], [(row.kind, 1) for row in rows])
