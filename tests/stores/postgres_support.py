"""One schema of PostgreSQL that is emptied for each test: much faster than a new one."""

from __future__ import annotations

from typing import Any, Self

import psycopg
from psycopg import sql

from askii_middleware.stores.postgres import migrations


class KeptLedger:
    """Args:
    server: URL of the server.
    namespace: the schema, which does not exist yet.
    """

    def __init__(self, server: str, namespace: str) -> None:
        self.url = f"{server}{'&' if '?' in server else '?'}namespace={namespace}"
        self._name = sql.Identifier(namespace)
        self._connection: psycopg.Connection[Any] = psycopg.connect(server, autocommit=True)
        self._run("SET client_min_messages = error")
        self._connection.execute(migrations._script(namespace, 0).encode())
        self._run("SET search_path = {}")
        names = [
            name
            for (name,) in self._connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
            )
        ]
        first = {name: self._connection.execute(f"SELECT * FROM {name}".encode()).fetchall() for name in names}
        self._emptied = "; ".join(f"DELETE FROM {name}" for name in names).encode()
        self._filled = [
            (f"INSERT INTO {name} VALUES ({', '.join('%s' for _ in rows[0])})".encode(), rows)
            for name, rows in first.items()
            if rows
        ]

    def _run(self, text: str) -> None:
        self._connection.execute(sql.SQL(text).format(self._name))

    def emptied(self) -> Self:
        """As it was at first."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(self._emptied)
            for text, rows in self._filled:
                cursor.executemany(text, rows)
            cursor.execute("ALTER SEQUENCE record_numbers RESTART")
        return self

    def close(self) -> None:
        self._run("DROP SCHEMA {} CASCADE")
        self._connection.close()
