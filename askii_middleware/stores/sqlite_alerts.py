"""Alerts on their way to channels, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..errors import StoreError
from .base import Alert, Lease
from .sqlite_sql import SQL

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Alert).decode


def write(db: sqlite3.Connection, alerts: Iterable[Alert]) -> None:
    """Keep those that are new."""
    for alert in alerts:
        db.execute(SQL["write_alert"], (alert.id, alert.resets_at_s, _encode(alert)))


def register(db: sqlite3.Connection, names: Sequence[str], now_s: float) -> None:
    """See `Store.register_channels`."""
    db.executemany(SQL["register_channel"], [(name, now_s) for name in names])


def lease(db: sqlite3.Connection, name: str, owner: str, ttl_s: float, now_s: float) -> list[Lease]:
    """See `Store.lease`."""
    _, token, holder, lease_until_s = _find(db, name)
    if holder != owner:
        if ttl_s <= 0 or (holder is not None and lease_until_s > now_s):
            return []
        token += 1
    db.execute(SQL["lease_channel"], (name, owner, token, now_s + ttl_s))
    return [Lease(0, token, 0.0, 0)] if ttl_s > 0 else []


def fetch(db: sqlite3.Connection, name: str, limit: int) -> list[Alert]:
    """See `Store.fetch_alerts`."""
    position = _find(db, name)[0]
    return _alerts(db.execute(SQL["alerts_after"], (position, max(limit, 0))))


def acknowledge(db: sqlite3.Connection, name: str, token: int, through_seq: int) -> bool:
    """See `Store.acknowledge_alerts`."""
    if token != _find(db, name)[1]:
        return False
    db.execute(SQL["advance_channel"], (name, through_seq))
    return True


def recent(db: sqlite3.Connection, limit: int) -> list[Alert]:
    """See `Store.recent_alerts`."""
    return _alerts(db.execute(SQL["recent_alerts"], (max(limit, 0),)))


def _find(db: sqlite3.Connection, name: str) -> tuple[int, int, str | None, float]:
    row: tuple[int, int, str | None, float] | None = db.execute(SQL["channel"], (name,)).fetchone()
    if row is None:
        raise StoreError(f"alert channel {name!r} is not registered: call register_channels first")
    return row


def _alerts(rows: Iterable[tuple[int, bytes]]) -> list[Alert]:
    return [msgspec.structs.replace(_decode(alert), seq=seq) for seq, alert in rows]


def about(db: sqlite3.Connection, named: Callable[[str], bool]) -> list[int]:
    """The numbers of those about scopes that are `named`."""
    return [seq for seq, alert in db.execute(SQL["all_alerts"]) if named(_decode(alert).scope)]


def drop(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Forget alerts, whoever still waits for them."""
    db.executemany(SQL["drop_alert"], [(number,) for number in numbers])
