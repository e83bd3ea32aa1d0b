"""Records on their way to sinks, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import StoreError
from .base import DeadLetter, Entry, Lease, Outcome
from .rules import check_outcomes
from .sqlite_sql import SQL


class _Sink(NamedTuple):
    position: int
    token: int
    owner: str | None
    lease_until_s: float
    retry_at_s: float
    failures: int


def find_sink(db: sqlite3.Connection, name: str) -> _Sink:
    row = db.execute(SQL["sink"], (name,)).fetchone()
    if row is None:
        raise StoreError(f"sink {name!r} is not registered: call register_sinks first")
    return _Sink(*row)


def lease(db: sqlite3.Connection, name: str, owner: str, ttl_s: float, now_s: float) -> Lease | None:
    """See `Store.lease`."""
    sink = find_sink(db, name)
    token = sink.token
    if sink.owner != owner:
        if sink.lease_until_s > now_s:
            return None
        token += 1
    db.execute(SQL["lease"], (name, owner, token, now_s + ttl_s))
    return Lease(token, sink.retry_at_s, sink.failures)


def fetch(db: sqlite3.Connection, name: str, limit: int, now_s: float) -> list[Entry]:
    """See `Store.fetch`."""
    sink = find_sink(db, name)
    limit = max(limit, 0)
    due = db.execute(SQL["due"], (name, now_s, limit)).fetchall()
    fresh = db.execute(SQL["fresh"], (name, sink.position, limit - len(due))).fetchall()
    return [Entry(*row) for row in (*due, *fresh)]


def acknowledge(
    db: sqlite3.Connection,
    name: str,
    token: int,
    outcomes: Sequence[Outcome],
    *,
    retry_at_s: float,
    failures: int,
    now_s: float,
) -> bool:
    """See `Store.acknowledge`."""
    sink = find_sink(db, name)
    if token != sink.token:
        return False
    check_outcomes(outcomes)
    position = sink.position
    seqs = json.dumps([outcome.seq for outcome in outcomes])
    known: dict[int, str] = dict(db.execute(SQL["aside_states"], (name, seqs)))
    ahead = {seq for (seq,) in db.execute(SQL["aside_ahead"], (name, position))}
    (last,) = db.execute(SQL["last_seq"]).fetchone()
    delivered: list[int] = []
    for seq, result, reason, after_s in outcomes:
        state = known.get(seq)
        if state == "delivered" or (state is None and not position < seq <= last):
            continue
        ahead.add(seq)
        if result == "delivered":
            delivered.append(seq)
        else:
            known[seq] = result
            db.execute(SQL["put_aside"], (name, seq, result, now_s + after_s, reason, now_s))
    while position + 1 in ahead:
        position += 1
    for seq in delivered:
        if seq > position:
            db.execute(SQL["put_aside"], (name, seq, "delivered", now_s, "", now_s))
        elif seq in known:
            db.execute(SQL["take_back"], (name, seq))
    db.execute(SQL["forget_delivered"], (name, position))
    db.execute(SQL["advance"], (name, position, retry_at_s, failures))
    return True


def dead_letters(db: sqlite3.Connection, name: str, limit: int) -> list[DeadLetter]:
    """See `Store.dead_letters`."""
    find_sink(db, name)
    return [DeadLetter(*row) for row in db.execute(SQL["dead_letters"], (name, max(limit, 0)))]


def retry_dead(db: sqlite3.Connection, name: str, now_s: float) -> int:
    """See `Store.retry_dead`."""
    find_sink(db, name)
    return db.execute(SQL["retry_dead"], (name, now_s)).rowcount
