"""API keys, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import sqlite3

import msgspec

from ..errors import StoreError
from .base import KeyRow
from .forgetting import tombstone
from .rules import digests_of
from .sqlite_sql import SQL

_ALL = -1
"""SQLite's word for no limit."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(KeyRow).decode


def put(db: sqlite3.Connection, row: KeyRow) -> None:
    """See `Store.put_key`."""
    digests = digests_of(row)
    if any(db.execute(SQL["digest_taken"], (digest, row.id)).fetchone()[0] for digest in digests):
        raise StoreError(f"key {row.id!r}: another key has the same secret")
    db.execute(SQL["drop_digests"], (row.id,))
    db.executemany(SQL["put_digest"], [(digest, row.id) for digest in digests])
    db.execute(SQL["put_key"], (row.id, row.tenant, _encode(row)))


def some(db: sqlite3.Connection, tenant: str | None, after: str, limit: int | None) -> list[KeyRow]:
    """See `Store.keys`."""
    page = (after, _ALL if limit is None else max(limit, 0))
    rows = db.execute(SQL["keys"], page) if tenant is None else db.execute(SQL["keys_of"], (tenant, *page))
    return [_decode(row) for (row,) in rows]


def get(db: sqlite3.Connection, key_id: str) -> KeyRow | None:
    """See `Store.key`."""
    row = db.execute(SQL["key"], (key_id,)).fetchone()
    return None if row is None else _decode(row[0])


def find(db: sqlite3.Connection, sha256: str) -> KeyRow | None:
    """See `Store.find_key`."""
    row = db.execute(SQL["find_key"], (sha256,)).fetchone()
    return None if row is None else _decode(row[0])


def bury(db: sqlite3.Connection, key_id: str) -> None:
    """Leave a key as a tombstone."""
    put(db, tombstone(key_id))
