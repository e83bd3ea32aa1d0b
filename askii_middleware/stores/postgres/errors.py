"""What PostgreSQL's errors mean for whoever runs the ledger."""

from __future__ import annotations

from ...errors import StoreError
from ..base import DeadWorkerError, ShortCreditError, StaleFormsError, UnwritableError

OURS = {
    "AS001": StoreError,
    "AS002": UnwritableError,
    "AS003": StaleFormsError,
    "AS004": DeadWorkerError,
    "AS005": ShortCreditError,
}
"""Codes with which our own functions refuse; the message is theirs."""
REPEATABLE = frozenset({"40001", "40P01"})
"""The server undid the whole operation, to end a deadlock: it may be sent again."""
GONE = ("08", "57P")
"""What codes begin with after which the connection is of no use."""
UNDEFINED_FUNCTION = "42883"
UNTRANSLATABLE = "22P05"

_OUTGROWN = "has no such table or function: another version of askii-middleware changed its schema; restart this one"
_ADVICE = {
    "08": "cannot be reached: see that the server runs, and that the URL names it",
    "0A000": "lacks a feature: PostgreSQL 14 or newer is needed",
    "25006": "is read-only: name the primary in the URL, or add target_session_attrs=read-write to it",
    "26000": "runs behind a pooler that forgets prepared statements: add prepare=false to the URL",
    "28": "refuses the credentials: correct user and password in the URL",
    "3D000": "is not there: create the database, or correct the URL",
    "3F000": _OUTGROWN,
    "42501": "denies a right: let this user create and own the schema that `namespace` names",
    UNDEFINED_FUNCTION: _OUTGROWN,
    "42P01": _OUTGROWN,
    "42P05": "runs behind a pooler that mixes prepared statements: add prepare=false to the URL",
    "53100": "cannot grow, the server's disk is full: free some space",
    "53200": "is out of memory: give the server more",
    "53300": "has no connection left: lower pool_size in the URL, or raise the server's max_connections",
    "55P03": "is locked by a long transaction of someone else: end that one",
    "57014": "did not answer in time, or someone cancelled the statement: see what keeps the server busy",
    "57P": "cannot be reached: the server is stopping or starting",
    "58": "cannot be read or written, the server's disk reports an error",
    "XX001": "is damaged: stop all workers and restore the database from a backup",
    "XX002": "is damaged: an index needs REINDEX",
}
"""By code, or by what it begins with."""
_SAYINGS = {
    "the database system is": "57P03",
    "too many": "53300",
    "connection slots": "53300",
    "authentication": "28",
    "pg_hba.conf": "28",
    "no password supplied": "28",
    "role ": "28",
    "database ": "3D000",
}
"""What a server that refuses a connection says: libpq passes on no code. In order of precedence."""
_UNWRITABLE = ("22", "23514", "54")


def explain(url: str, code: str | None, message: str) -> StoreError:
    """Our error for one of PostgreSQL's, which says what to do.

    Args:
        url: the ledger, without secrets.
        code: SQLSTATE; None if the server said nothing.
        message: without secrets.
    """
    code = code or next((code for words, code in _SAYINGS.items() if words in _last_words(message)), "08")
    ours = OURS.get(code)
    if ours is not None:
        return ours(message)
    if code.startswith(_UNWRITABLE):
        return UnwritableError(f"the ledger {url} cannot hold this: {message}")
    advice = next((_ADVICE[start] for start in (code, code[:3], code[:2]) if start in _ADVICE), None)
    return StoreError(f"the ledger {url} {advice} ({message})" if advice else f"the ledger {url} failed: {message}")


def _last_words(message: str) -> str:
    """What the server said, without what libpq puts before it."""
    return message.rpartition("FATAL:")[2] if "FATAL:" in message else ""
