"""Sums over the aggregates and the newest records, on SQLite. Each function runs inside one transaction that the caller
opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from .base import SpendRow, SpendSums
from .rules import hours, hours_between
from .sqlite_sql import SQL
from .sqlite_sums import parts_of, runs_of

_LAST = (1 << 63) - 1
_encode = msgspec.json.Encoder().encode


def spend_over(db: sqlite3.Connection, scopes: Sequence[str], edges_s: Sequence[float]) -> list[list[SpendRow]]:
    """See `Store.spend_over`."""
    edges = hours_between(edges_s)
    spans: list[list[SpendRow]] = [[] for _ in edges[1:]]
    parts = parts_of(edges, _summed_hour(db))
    asked = [_encode(each).decode() for each in (list(scopes), *parts)]
    for number, *row in db.execute(SQL["spend_over"], asked) if spans else ():
        spans[number].append(SpendRow(*row))
    return spans


def top_spend(db: sqlite3.Connection, prefix: str, start_s: float, end_s: float, limit: int) -> list[SpendSums]:
    """See `Store.top_spend`."""
    days, parts = parts_of(hours(start_s, end_s), _summed_hour(db))
    runs = [run for whole in days for run in runs_of(whole.first, whole.last)]
    asked = (prefix, len(prefix) + 1, _encode(runs).decode(), _encode(parts).decode(), max(limit, 0))
    return [SpendSums(*row) for row in db.execute(SQL["top_spend"], asked)]


def _summed_hour(db: sqlite3.Connection) -> int:
    hour: int = db.execute(SQL["summed_hour"]).fetchone()[0]
    return hour


def latest(db: sqlite3.Connection, tenant: str | None, limit: int, before_seq: int | None) -> list[tuple[int, bytes]]:
    """See `Store.latest`."""
    page = (_LAST if before_seq is None else before_seq, max(limit, 0))
    if tenant is None:
        return db.execute(SQL["latest"], page).fetchall()
    return db.execute(SQL["latest_of"], (tenant, *page)).fetchall()
