"""Records on their way to sinks, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing
from heapq import merge
from itertools import count, islice
from typing import NamedTuple

from ..errors import StoreError
from .rows import PARTITIONS, DeadLetter, Entry, Lease, Outcome, Place
from .rules import check_outcomes, due_again
from .sharing import hand_of, share_of
from .sqlite_sql import SQL

_FRESH = tuple(f"{SQL['fresh']} -- {n}" for n in range(PARTITIONS))
"""A text for each partition, so that each keeps a prepared statement: they run side by side."""


class _Place(NamedTuple):
    """How far a sink has come in one partition."""

    partition: int
    position: int
    token: int
    owner: str | None
    lease_until_s: float
    retry_at_s: float
    failures: int


def find_sink(db: sqlite3.Connection, name: str) -> list[_Place]:
    """A sink's places by partition."""
    rows = db.execute(SQL["sink"], (name,)).fetchall()
    if not rows:
        raise StoreError(f"sink {name!r} is not registered: call register_sinks first")
    return [_Place(*row) for row in rows]


def register(db: sqlite3.Connection, names: Sequence[str]) -> None:
    """See `Store.register_sinks`."""
    db.executemany(SQL["register_sink"], [(name, partition) for name in names for partition in range(PARTITIONS)])


def forget(db: sqlite3.Connection, name: str) -> bool:
    """See `Store.forget_sink`."""
    known = db.execute(SQL["forget_sink"], (name,)).rowcount > 0
    db.execute(SQL["forget_askers"], (name,))
    db.execute(SQL["forget_aside"], (name,))
    return known


def lease(db: sqlite3.Connection, name: str, owner: str, ttl_s: float, now_s: float) -> list[Lease]:
    """See `Store.lease`."""
    places = find_sink(db, name)
    db.execute(SQL["forget_asker"], (name, owner, now_s))
    share = 0
    if ttl_s > 0:
        db.execute(SQL["ask"], (name, owner, now_s + ttl_s))
        share = share_of(owner, [asker for (asker,) in db.execute(SQL["askers"], (name,))])
    hand = hand_of(owner, share, [(place.owner, place.lease_until_s) for place in places], now_s)
    taken = [place._replace(token=place.token + (place.owner != owner)) for place in places if place.partition in hand]
    db.executemany(SQL["lease"], [(name, place.partition, owner, place.token, now_s + ttl_s) for place in taken])
    given_up = [place for place in places if place.owner == owner and place.partition not in hand]
    db.executemany(SQL["give_up"], [(name, place.partition, now_s) for place in given_up])
    return [Lease(place.partition, place.token, place.retry_at_s, place.failures) for place in taken]


def fetch(db: sqlite3.Connection, name: str, partitions: Sequence[int], limit: int, now_s: float) -> list[Entry]:
    """See `Store.fetch`."""
    asked = [place for place in find_sink(db, name) if place.partition in partitions]
    limit = max(limit, 0)
    numbers = json.dumps([place.partition for place in asked])
    due = [Entry(*row) for row in db.execute(SQL["due"], (name, numbers, now_s, limit))]
    aside = {row[:2] for row in db.execute(SQL["aside_ahead"], (name,))}
    with ExitStack() as cursors:  # an open one would keep its snapshot, and the WAL could not be merged
        fresh = merge(
            *(
                cursors.enter_context(closing(db.execute(_FRESH[place.partition], (place.partition, place.position))))
                for place in asked
            )
        )
        rows = list(islice((row for row in fresh if row[1:3] not in aside), limit))
    found = due[: due_again(len(due), len(rows), limit)]
    return found + [Entry._make((*row[1:], 0)) for row in rows[: limit - len(found)]]


def acknowledge(
    db: sqlite3.Connection,
    name: str,
    leases: Sequence[Lease],
    outcomes: Sequence[Outcome],
    *,
    retry_at_s: float,
    failures: int,
    now_s: float,
) -> list[int]:
    """See `Store.acknowledge`."""
    places = find_sink(db, name)
    check_outcomes(outcomes)
    tokens = {(place.partition, place.token) for place in places if place.token}
    held = {lease.partition for lease in leases if (lease.partition, lease.token) in tokens}
    positions = {place.partition: place.position for place in places if place.partition in held}
    _write_outcomes(db, name, positions, outcomes, now_s)
    back_off = retry_at_s, failures
    db.executemany(
        SQL["advance"],
        [
            (name, place.partition, positions[place.partition], *back_off)
            for place in places
            if place.partition in held
            and (place.position, place.retry_at_s, place.failures) != (positions[place.partition], *back_off)
        ],
    )
    return sorted({lease.partition for lease in leases} - held)


def _write_outcomes(
    db: sqlite3.Connection, name: str, positions: dict[int, int], outcomes: Sequence[Outcome], now_s: float
) -> None:
    """Set aside what has to be, and move the positions of these partitions in `positions`."""
    outcomes = [outcome for outcome in outcomes if outcome.partition in positions]
    if not outcomes:
        return
    last: dict[int, int] = dict(db.execute(SQL["last_places"], (json.dumps(list(positions)),)))
    known: dict[tuple[int, int], str] = {row[:2]: row[2] for row in db.execute(SQL["aside_ahead"], (name,))}
    ahead = set(known)
    passed = [outcome[:2] for outcome in outcomes if outcome.seq <= positions[outcome.partition]]
    if passed:
        known.update({row[:2]: row[2] for row in db.execute(SQL["aside_states"], (name, json.dumps(passed)))})
    delivered: set[tuple[int, int]] = set()
    for partition, place, result, reason, after_s in outcomes:
        key = partition, place
        is_open = known[key] != "delivered" if key in known else positions[partition] < place <= last[partition]
        if not is_open or key in delivered:
            continue
        ahead.add(key)
        if result == "delivered":
            delivered.add(key)
        else:
            known[key] = result
            due_s = now_s + after_s if result == "again" else now_s
            db.execute(SQL["put_aside"], (name, *key, result, due_s, reason, now_s))
    before = dict(positions)
    for partition, start in before.items():
        positions[partition] = next(place for place in count(start) if (partition, place + 1) not in ahead)
    beyond = {key for key in delivered if key[1] > positions[key[0]]}
    db.executemany(SQL["put_aside"], [(name, *key, "delivered", now_s, "", now_s) for key in beyond])
    db.executemany(SQL["take_back"], [(name, *key) for key in delivered - beyond if key in known])
    moved = [(name, partition, start, positions[partition]) for partition, start in before.items()]
    db.executemany(SQL["forget_delivered"], [row for row in moved if row[2] != row[3]])


def dead_letters(db: sqlite3.Connection, name: str, limit: int) -> list[DeadLetter]:
    """See `Store.dead_letters`."""
    find_sink(db, name)
    return [DeadLetter(*row) for row in db.execute(SQL["dead_letters"], (name, max(limit, 0)))]


def retry_dead(db: sqlite3.Connection, name: str, now_s: float) -> int:
    """See `Store.retry_dead`."""
    find_sink(db, name)
    return db.execute(SQL["retry_dead"], (name, now_s)).rowcount


def places(db: sqlite3.Connection, name: str) -> list[Place]:
    """See `Store.places`."""
    return [
        Place(place.partition, place.owner, place.lease_until_s, place.retry_at_s, place.failures)
        for place in sorted(find_sink(db, name))
    ]
