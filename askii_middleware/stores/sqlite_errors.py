"""What SQLite's errors mean for whoever runs the ledger."""

from __future__ import annotations

import sqlite3

from ..errors import StoreError
from .base import UnwritableError

_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: create its directory and let this user write there, or correct the URL",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: move that file away, or name another in the URL",
    sqlite3.SQLITE_CORRUPT: "is damaged: stop all workers and restore it from a backup, or use sqlite3's .recover",
    sqlite3.SQLITE_READONLY: "is read-only: let this user write to the file and to its directory",
    sqlite3.SQLITE_PERM: "is not accessible: let this user write to the file and to its directory",
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "cannot be read or written, the disk reports an error",
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked by another process",
    sqlite3.SQLITE_CONSTRAINT: "refused an amount: a counter holds at most 2**53 - 1 nano-USD",
}


class BusyError(StoreError):
    """Another connection is writing; trying again soon is enough."""


_KINDS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: BusyError,
    sqlite3.SQLITE_LOCKED: BusyError,
    sqlite3.SQLITE_CONSTRAINT: UnwritableError,
    sqlite3.SQLITE_TOOBIG: UnwritableError,
}


def explain(path: str, error: sqlite3.Error) -> StoreError:
    """Our error for one of SQLite's, which says what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind = _KINDS.get(code, StoreError)
    advice = _ADVICE.get(code)
    return kind(f"the ledger {path} {advice} ({error})" if advice else f"the ledger {path} failed: {error}")


def translate(path: str, error: Exception) -> Exception:
    """Our error for what SQLite or its adapter raised; any other as it is."""
    if isinstance(error, sqlite3.Error):
        return explain(path, error)
    if isinstance(error, OverflowError | UnicodeError):
        return UnwritableError(f"the ledger {path} cannot hold a value: {error}")
    return error


def refusal(path: str, error: Exception) -> UnwritableError | None:
    """Our error, if this one says that a value can never be written."""
    ours = translate(path, error)
    return ours if isinstance(ours, UnwritableError) else None
