"""Named values, on SQLite. Each function runs inside one transaction that the caller opened."""

from __future__ import annotations

import sqlite3

from .base import Item
from .sqlite_sql import SQL


def put(
    db: sqlite3.Connection,
    kind: str,
    name: str,
    value: bytes | None,
    *,
    until_s: float | None,
    only_new: bool,
    now_s: float,
) -> bool:
    """See `Store.put_item`."""
    over = db.execute(SQL["drop_items"], (kind, now_s)).rowcount
    if value is None:
        changed = db.execute(SQL["remove_item"], (kind, name)).rowcount
    else:
        changed = db.execute(SQL["new_item" if only_new else "put_item"], (kind, name, value, until_s)).rowcount
    if over + changed:
        db.execute(SQL["items_changed"], (kind, over + changed))
    return changed > 0


def find(db: sqlite3.Connection, kind: str, now_s: float) -> list[Item]:
    """See `Store.items`."""
    return [Item(name, value) for name, value in db.execute(SQL["items"], (kind, now_s))]


def versions(db: sqlite3.Connection, now_s: float) -> dict[str, int]:
    """See `Store.item_versions`."""
    return dict(db.execute(SQL["item_versions"], (now_s,)))
