"""The ledger's schema on PostgreSQL: made where there is none, brought up to date when asked, refused otherwise.

`sql/schema_N*.sql` bring it to version N; all other files of `sql/` are functions, which are replaced together with
it. A change of either is a new version, because all workers of a ledger share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

import msgspec

from ...errors import StoreError
from .address import Address
from .connection import Connection, Connections, Value

VERSION = 1
UNFINISHED = "unfinished_copy"
"""The row of `meta` that marks the target of a copy."""
MIGRATION_S = 3600.0
"""The bound of a migration, which may have to write many rows anew."""

Signatures = dict[str, tuple[tuple[int, ...], int]]
"""By function: the types of its arguments and of its result, by their numbers in PostgreSQL."""


class _Look(msgspec.Struct):
    isolation: str
    has_meta: bool
    is_used: bool
    functions: Signatures


_decode_look = msgspec.json.Decoder(_Look).decode
_LOOK = """
SELECT json_build_object(
    'isolation', current_setting('transaction_isolation'),
    'has_meta', to_regclass('{ns}.meta') IS NOT NULL,
    'is_used', EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('{ns}')),
    'functions', coalesce((
        SELECT json_object_agg(proname, json_build_array(proargtypes::oid[]::bigint[], prorettype::bigint))
        FROM pg_proc WHERE pronamespace = to_regnamespace('{ns}')
    ), '{{}}')
)::text"""
_VERSION = "SELECT (SELECT value FROM {ns}.meta WHERE name = 'schema')::text"


class Schema(NamedTuple):
    """What was found."""

    version: int
    """0: nothing."""
    functions: Signatures


async def look(connections: Connections, address: Address) -> Schema:
    """The schema as it is. Raises StoreError."""
    found: list[Schema] = []

    async def run(connection: Connection) -> Value:
        found.append(await _look(connection, address))
        return None

    await connections.use(run)
    return found[-1]


async def migrate(connections: Connections, address: Address, *, timeout_s: float = MIGRATION_S) -> None:
    """Make the schema, or bring it up to date, as one transaction. Others that want to wait, and find it done.
    Raises StoreError.
    """

    async def run(connection: Connection) -> Value:
        namespace = address.namespace
        await connection.script(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
            "SET LOCAL client_min_messages = error; "
            f"SELECT pg_advisory_xact_lock(hashtextextended('askii migrate {namespace}', 0))".encode()
        )
        found = await _look(connection, address)
        check_not_newer(found, address)
        if found.version < VERSION:
            await connection.script(_script(namespace, found.version).encode())
        return await connection.script(b"COMMIT")

    await connections.use(run, timeout_s=timeout_s)


def check_not_newer(found: Schema, address: Address) -> None:
    """Raise StoreError for a schema that a later release has made."""
    if found.version > VERSION:
        raise StoreError(
            f"the ledger {address.shown} has schema {found.version} and this version of askii-middleware knows "
            f"{VERSION}: upgrade askii-middleware, or name another namespace"
        )


def check_present(found: Schema, address: Address) -> None:
    """Raise StoreError unless the schema is of this release."""
    check_not_newer(found, address)
    if found.version < VERSION:
        raise StoreError(
            f"the ledger {address.shown} has schema {found.version} and needs {VERSION}: stop the workers of the "
            "earlier version and run `askii migrate`"
        )


async def _look(connection: Connection, address: Address) -> Schema:
    text = await connection.script(_LOOK.format(ns=address.namespace).encode())
    seen = _decode_look(text or b"")
    if seen.isolation != "read committed":  # decisions have to see what was committed while they waited for a lock
        raise StoreError(
            f"the ledger {address.shown}: its transactions are {seen.isolation} and have to be read committed: "
            "ALTER ROLE … SET default_transaction_isolation = 'read committed'"
        )
    if not seen.has_meta:
        if seen.is_used:
            raise StoreError(
                f"the ledger {address.shown}: its schema {address.namespace} holds tables of another application: "
                "name another namespace"
            )
        return Schema(0, {})
    version = await connection.script(_VERSION.format(ns=address.namespace).encode())
    return Schema(int(version or b"0"), seen.functions)


def _script(namespace: str, version: int) -> str:
    """All statements from `version` to the present one. They find and make everything in the namespace."""
    # `IF NOT EXISTS` asks for a right that the owner of an empty schema may not have.
    make = f"DO $$ BEGIN IF to_regnamespace('{namespace}') IS NULL THEN CREATE SCHEMA {namespace}; END IF; END $$;"
    begin = [] if version else [make]
    begin.append(f"SET LOCAL search_path = {namespace}, pg_temp; SET LOCAL check_function_bodies = off;")
    steps = [text for step in range(version, VERSION) for text in _texts(f"schema_{step + 1}")]
    return "\n".join((*begin, *steps, *_functions(), f"SELECT set_schema({VERSION});"))


def _texts(start: str) -> Iterable[str]:
    return [text for name, text in _FILES.items() if name == f"{start}.sql" or name.startswith(f"{start}_")]


def _functions() -> Iterable[str]:
    return [text for name, text in _FILES.items() if not name.startswith("schema_")]


def _read() -> dict[str, str]:
    found = {entry.name: entry for entry in (files(__package__) / "sql").iterdir() if entry.name.endswith(".sql")}
    return {name: found[name].read_text("utf-8") for name in sorted(found)}


_FILES = _read()
