"""Erasing tenants and pruning old rows, on SQLite: in transactions of a bounded size, in a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from ..budgets import scope_text
from . import sqlite_alerts as alerts
from . import sqlite_budgets as budgets
from . import sqlite_keys as keys
from .base import PARTITIONS, Erased, partition_of
from .forgetting import DELETED, MARKED_S, PIECE, anonymous, check_erasable, naming, waiting_error
from .rules import hour_of, is_tenant
from .sqlite_database import Database
from .sqlite_sql import SQL

_HOURS = 200
"""So many are looked through for a tenant's aggregates at once."""
_LOOKS = 50_000
"""In them, for a tenant of many keys: each is looked up in each hour."""
_encode = msgspec.json.Encoder().encode

T = TypeVar("T")


class _Doomed(NamedTuple):
    """What an erasure will take, as it was when it began."""

    through_seq: int
    """The tenant's last record. Later ones may wait for a sink."""
    key_ids: Sequence[str]


async def erase(database: Database, tenant: str) -> Erased:
    """See `Store.erase`. What tells its aggregates, the keys, goes last: so an erasure that was cut short can be
    repeated.
    """
    check_erasable(tenant)
    doomed = await database.read_aside(lambda db: _look(db, tenant))
    records = aggregates = 0
    while count := await database.write_aside(lambda db: _anonymise(db, tenant, doomed.through_seq)):
        records += count
    after: int | None = -1
    while after is not None:
        after, count = await database.write_aside(partial(_move, tenant=tenant, key_ids=doomed.key_ids, after=after))
        aggregates += count
    count_keys, count_budgets = await _forget(database, tenant)
    return Erased(records, aggregates, count_keys, count_budgets)


def _look(db: sqlite3.Connection, tenant: str) -> _Doomed:
    waits = db.execute(SQL["waits"], (tenant, partition_of(tenant))).fetchone()
    if waits is not None:
        raise waiting_error(tenant, waits[0])
    last = db.execute(SQL["last_of"], (tenant,)).fetchone()[0]
    return _Doomed(last or 0, [row.id for row in keys.some(db, tenant, "", None)])


def _anonymise(db: sqlite3.Connection, tenant: str, through_seq: int) -> int:
    found = db.execute(SQL["some_of"], (tenant, through_seq, PIECE)).fetchall()
    db.executemany(SQL["rewrite"], [(seq, DELETED, anonymous(record)) for seq, record in found])
    return len(found)


def _move(db: sqlite3.Connection, tenant: str, key_ids: Sequence[str], after: int) -> tuple[int | None, int]:
    """Take a piece of the aggregates of the hours behind `after`. Where to go on, if anywhere, and how many rows."""
    most = max(min(_HOURS, _LOOKS // (len(key_ids) + 1)), 1)
    hours = [hour for (hour,) in db.execute(SQL["next_hours"], (after, most))]
    own, rest = (scope_text({"tenant": name}) for name in (tenant, DELETED))
    exact = [own, *(scope_text({"key": key_id}) for key_id in key_ids)]
    asked = (_encode(hours).decode(), _encode(exact).decode(), f"{own},", PIECE)
    found = db.execute(SQL["hours_named"], asked).fetchall()
    db.executemany(SQL["drop_hour"], [row[:4] for row in found])
    db.executemany(SQL["aggregate"], [(row[0], rest, *row[2:]) for row in found if row[1] == own])
    if len(found) == PIECE:
        return after, len(found)
    return hours[-1] if hours else None, len(found)


async def _forget(database: Database, tenant: str) -> tuple[int, int]:
    """Forget a tenant's alerts, its budgets and then its keys. How many keys, and how many budgets."""
    key_ids, numbers, budget_keys = await database.read_aside(lambda db: _find_named(db, tenant))
    for some_numbers in _pieces(numbers):
        await database.write_aside(partial(alerts.drop, numbers=some_numbers))
    count = 0
    for some_keys in _pieces(budget_keys):
        count += await database.write_aside(partial(_each, budgets.remove, some_keys))
    for some_ids in _pieces(key_ids):
        await database.write_aside(partial(_each, keys.bury, some_ids))
    return len(key_ids), count


def _find_named(db: sqlite3.Connection, tenant: str) -> tuple[list[str], list[int], list[str]]:
    key_ids = [row.id for row in keys.some(db, tenant, "", None)]
    named = naming(tenant, key_ids)
    return key_ids, alerts.about(db, named), budgets.on(db, named)


def _each(change: Callable[[sqlite3.Connection, str], object], names: Sequence[str], db: sqlite3.Connection) -> int:
    """Change each. How many there were."""
    return sum([change(db, name) is not False for name in names])


def _pieces(found: Sequence[T]) -> Iterator[Sequence[T]]:
    return (found[start : start + PIECE] for start in range(0, len(found), PIECE))


# Pruning -------------------------------------------------------------------------------------------------------------


async def prune(
    database: Database, records_before_s: float | None, aggregates_before_s: float | None, limit: int, now_s: float
) -> int:
    """See `Store.prune`."""
    kinds: list[Callable[..., int]] = []
    if records_before_s is not None:
        before_s = min(records_before_s, now_s - MARKED_S)
        kinds += [partial(_prune_records, partition=n, before_s=before_s) for n in range(PARTITIONS)]
    if aggregates_before_s is not None:
        kinds.append(partial(_prune_hours, before_s=aggregates_before_s))
    count = 0
    for prune_some in kinds:
        dropped = piece = PIECE
        while dropped == piece and count < limit:
            piece = min(PIECE, limit - count)
            dropped = await database.write_aside(partial(prune_some, limit=piece))
            count += dropped
    return count


def _prune_records(db: sqlite3.Connection, partition: int, before_s: float, limit: int) -> int:
    found = db.execute(SQL["free_records"], (partition, before_s, limit)).fetchall()
    db.executemany(SQL["drop_record"], [(seq,) for seq, _ in found])
    _count(db, "records", len(found), sum(cost for _, cost in found))
    return len(found)


def _prune_hours(db: sqlite3.Connection, before_s: float, limit: int) -> int:
    found = db.execute(SQL["old_hours"], (hour_of(before_s), limit)).fetchall()
    db.executemany(SQL["drop_hour"], [row[:4] for row in found])
    of_tenants = [(requests, cost) for _, scope, _, _, requests, cost in found if is_tenant(scope)]
    _count(db, "calls", sum(requests for requests, _ in of_tenants), sum(cost for _, cost in of_tenants))
    return len(found)


def _count(db: sqlite3.Connection, what: str, number: int, nano_usd: int) -> None:
    if number or nano_usd:
        db.executemany(SQL["pruned"], [(f"pruned_{what}", number), (f"pruned_{what}_nano_usd", nano_usd)])
