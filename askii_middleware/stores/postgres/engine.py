"""What all parts of the PostgreSQL ledger stand on: one call of one of its functions for each operation."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from psycopg.pq import Format

from ..base import Store, UnwritableError
from ..copying import unfinished_error
from .address import parse
from .connection import Connections, Value
from .errors import UNDEFINED_FUNCTION, explain
from .migrations import UNFINISHED, VERSION, check_present, look, migrate

JSONB_VERSION = b"\x01"
"""What begins a `jsonb` value on the wire."""
_float = struct.Struct("!d")


def _int(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


_JSONB = 3802
_READERS: dict[int, Callable[[bytes], Any]] = {
    16: lambda value: value == b"\x01",
    17: bytes,
    20: _int,
    21: _int,
    23: _int,
    25: bytes.decode,
    114: bytes,
    701: lambda value: _float.unpack(value)[0],
    _JSONB: lambda value: value[1:],
    2278: lambda _: None,
}
"""By the number PostgreSQL gives a type: bool, bytea, int8, int2, int4, text, json, float8, jsonb, void."""


class _Function:
    """A function of the ledger, with what its arguments and its result are.

    Args:
        lock_ms: bounds each wait for a lock, where connections keep no bound.
    """

    def __init__(
        self, namespace: str, name: str, arguments: tuple[int, ...], result: int, *, lock_ms: int | None = None
    ) -> None:
        places = ", ".join(f"${place + 1}" for place in range(len(arguments)))
        self.name = f"askii_{name}".encode()
        text = f"SELECT {namespace}.{name}({places})"
        if lock_ms is not None:
            bound = f"SELECT set_config('lock_timeout', '{lock_ms}', true) AS lock_ms"
            text = f"WITH bound AS MATERIALIZED ({bound}) {text} FROM bound WHERE lock_ms IS NOT NULL"
        self.text = text.encode()
        self.arguments = arguments
        self.read = _READERS.get(result, bytes)


class Engine(Store):
    """The connections of a store, and its clock.

    Args:
        url: `postgresql://…`, see `address`.
        timeout_s: bounds every operation; after it StoreError.
        clock: Unix seconds; None: the server's own.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, clock: Callable[[], float] | None = None) -> None:
        self._address = parse(url)
        self.url = self._address.shown
        self._clock = clock
        self._timeout_s = timeout_s
        self._connections = Connections(self._address, timeout_s=timeout_s)
        self._functions: dict[str, _Function] = {}

    async def open(self) -> None:
        found = await look(self._connections, self._address)
        if not found.version:
            await migrate(self._connections, self._address, timeout_s=self._timeout_s)
            found = await look(self._connections, self._address)
        check_present(found, self._address)
        namespace = self._address.namespace
        mark = f"SELECT count(*)::text FROM {namespace}.meta WHERE name = '{UNFINISHED}'".encode()  # noqa: S608
        if not self.for_copy and await self._connections.call(b"askii_unfinished", mark) != b"0":
            raise unfinished_error(self.url)
        lock_ms = None if self._address.prepare else max(int(self._timeout_s * 1000), 1)
        self._functions = {
            name: _Function(namespace, name, *signature, lock_ms=lock_ms) for name, signature in found.functions.items()
        }

    async def migrate(self) -> int:
        """Bring the schema up to date, or make it. Returns its version. Raises StoreError."""
        await migrate(self._connections, self._address)
        return VERSION

    async def close(self) -> None:
        await self._connections.close()

    async def ping(self) -> None:
        await self._call("touch")

    def _now(self) -> float | None:
        """The caller's clock, or None for the server's own."""
        return None if self._clock is None else self._clock()

    async def _call(self, function: str, *args: Any) -> Any:
        """Call one of the ledger's functions, as a transaction of its own.

        Args are ints, floats, bools, text, None, and bytes for `bytea`, `json`, `jsonb` and `text`. The result is an
        int, float, bool, text or None; `bytea`, `json` and `jsonb` are bytes. Raises StoreError.
        """
        if not self._functions:
            await self.open()  # a server that was not there at the start
        known = self._functions.get(function)
        if known is None:
            raise explain(self.url, UNDEFINED_FUNCTION, f"function {function}")
        try:
            values = [_sent(value, kind) for value, kind in zip(args, known.arguments, strict=True)]
        except UnicodeEncodeError as error:
            raise UnwritableError(f"the ledger {self.url} holds no text that is not UTF-8: {error.reason}") from None
        value: Value = await self._connections.call(known.name, known.text, values)
        return None if value is None else known.read(value)


def _sent(value: Any, kind: int) -> tuple[Value, Format]:
    if isinstance(value, str):
        value = value.encode()  # in binary, because as text it would end at a NUL
    if isinstance(value, bytes):
        return (JSONB_VERSION + value if kind == _JSONB else value), Format.BINARY
    if value is None:
        return None, Format.TEXT
    if isinstance(value, bool):
        return b"t" if value else b"f", Format.TEXT
    return repr(value).encode(), Format.TEXT
