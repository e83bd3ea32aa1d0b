"""The ledger in PostgreSQL. Needs the extra `postgres`."""

from __future__ import annotations

from ...errors import MissingExtraError

try:
    import psycopg  # noqa: F401 - says at once what is missing
except ImportError as error:
    raise MissingExtraError("postgres", "a store on postgresql://") from error

from .store import PostgresStore

__all__ = ["PostgresStore"]
