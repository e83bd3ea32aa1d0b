"""Making a connection ready: is the file ours, is its schema ours, is it in the mode we need?"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from ..errors import StoreError
from .rows import partition_of
from .sqlite_sql import SQL, STEPS

APPLICATION_ID = 0x41736B69
"""`Aski` in the file's header tells our files from those of other applications."""
UNFINISHED = "unfinished_copy"
"""The row of `meta` that marks the target of a copy."""
_WAL_KEPT_BYTES = 64 << 20
"""What stays of a WAL that a long reader let grow. Below this its space is used again, which is cheaper."""
_CACHE_KIB = 16_384
_POLL_S = 0.0005


def prepare(connection: sqlite3.Connection, path: str, *, timeout_s: float) -> None:
    """Bring the file into shape. Waits up to `timeout_s` for other processes. Raises StoreError and sqlite3.Error."""
    give_up_s = time.monotonic() + timeout_s
    while True:
        try:
            _prepare(connection, path)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_s:
                raise
            time.sleep(_POLL_S)
        else:
            return


def configure(connection: sqlite3.Connection, *, full_sync: bool) -> None:
    """Bring a connection to a prepared file into shape."""
    _pragma(connection, f"synchronous = {'FULL' if full_sync else 'NORMAL'}")
    _pragma(connection, "wal_autocheckpoint = 0")
    _pragma(connection, f"journal_size_limit = {_WAL_KEPT_BYTES}")
    _pragma(connection, f"cache_size = -{_CACHE_KIB}")


def is_unfinished(connection: sqlite3.Connection) -> bool:
    """Whether a copy into this file has not come to its end."""
    return connection.execute("SELECT 1 FROM meta WHERE name = ?", (UNFINISHED,)).fetchone() is not None


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    _check_owner(connection, path)
    mode = _pragma(connection, "journal_mode = WAL")
    if mode != "wal":
        raise StoreError(f"the ledger {path} needs SQLite's WAL mode, which its file system does not offer ({mode})")
    connection.execute("BEGIN IMMEDIATE")
    try:
        _migrate(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    # In this order: whoever creates the file at this moment writes both in one transaction.
    used = connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]
    if used and _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another application: name another file in the store's URL")


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    version = _pragma(connection, "user_version")
    if version > len(STEPS):
        raise StoreError(
            f"the ledger {path} has schema {version} and this version of askii-middleware knows {len(STEPS)}: "
            "upgrade askii-middleware, or name another file"
        )
    connection.create_function("partition_of", 1, partition_of, deterministic=True)
    for step in STEPS[version:]:
        for statement in _split(step):
            connection.execute(statement)
    _pragma(connection, f"user_version = {len(STEPS)}")
    _pragma(connection, f"application_id = {APPLICATION_ID}")
    connection.execute(SQL["touch"])  # shows now, not at the first call, if the file cannot be written


def _split(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _pragma(connection: sqlite3.Connection, text: str) -> Any:
    row = connection.execute(f"PRAGMA {text}").fetchone()
    return row[0] if row else None
