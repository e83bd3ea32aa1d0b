"""Connections to PostgreSQL: as many as are needed up to a bound, each for one statement at a time.

Every statement is a transaction of its own. Whatever goes wrong with a connection, it is closed and never used again;
the next statement makes a new one, so a server that comes back is used at once. A caller that gives up, because of a
time-out or because it is cancelled, takes its connection with it: the server ends the statement within its own bound.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from ...errors import StoreError
from .address import Address
from .errors import GONE, REPEATABLE, explain

REPEATS = 5
"""How often a statement is sent again that the server undid to end a deadlock."""
Value = bytes | None
Values = Sequence[tuple[Value, Format]]
Run = Callable[["Connection"], Awaitable[Value]]


class ServerError(Exception):
    """The server refused a statement, which has changed nothing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Connection:
    """One connection, which nobody else uses meanwhile. All methods but `close` have to be awaited to their end, or the
    connection closed.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection  # which else would close the link when it is forgotten
        self._link: PGconn = connection.pgconn
        self._prepared: set[bytes] = set()
        self._pid = os.getpid()

    @property
    def is_clean(self) -> bool:
        """Nothing is under way, as far as this side knows."""
        return self._link.status == ConnStatus.OK and self._link.transaction_status == TransactionStatus.IDLE

    @property
    def is_silent(self) -> bool:
        """The server has not hung up: it says nothing else to a connection that is idle."""
        readable = select.poll()
        readable.register(self._link.socket, select.POLLIN)
        return not readable.poll(0)

    async def script(self, text: bytes) -> Value:
        """Run any number of statements and return the first value of the last answer. Raises ServerError,
        psycopg.Error.
        """
        self._link.send_query(text)
        return await self._answer()

    async def call(self, name: bytes, text: bytes, values: Values, *, prepare: bool) -> Value:
        """Run one statement, under `name` if it is to be prepared, and return the first value of its answer.
        Raises ServerError, psycopg.Error.
        """
        link = self._link
        sent, formats = [value for value, _ in values], [form for _, form in values]
        if not prepare:
            link.send_query_params(text, sent, None, formats, Format.BINARY)
            return await self._answer()
        if name not in self._prepared:
            link.send_prepare(name, text)
            await self._answer()
            self._prepared.add(name)
        link.send_query_prepared(name, sent, formats, Format.BINARY)
        return await self._answer()

    async def _answer(self) -> Value:
        link = self._link
        while link.flush():
            await _ready(link.socket, sending=True)
            link.consume_input()
        value: Value = None
        failed: ServerError | None = None
        while True:
            while link.is_busy():
                await _ready(link.socket)
                link.consume_input()
            result = link.get_result()
            if result is None:
                break
            if result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY):
                value = result.get_value(0, 0) if result.ntuples and result.nfields else None
            else:
                failed = failed or _refusal(result)
        if failed is not None:
            raise failed
        return value

    def close(self) -> None:
        """Close the socket, whatever is under way. In a forked child nothing: it would end the parent's session."""
        if self._pid == os.getpid():
            self._link.finish()


def _refusal(result: PGresult) -> ServerError:
    code = result.error_field(DiagnosticField.SQLSTATE) or b"08000"
    message = result.error_field(DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    return ServerError(code.decode("ascii", "replace"), message.decode("utf-8", "replace").strip())


async def _ready(socket: int, *, sending: bool = False) -> None:
    """Wait until the server has said something; `sending`: or takes more."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(socket, _wake, ready)
    if sending:
        loop.add_writer(socket, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)
        if sending:
            loop.remove_writer(socket)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class Connections:
    """The connections of one process to one server.

    Args:
        timeout_s: bounds each call: waiting for a connection, making it, and the statement.
    """

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._address = address
        self._conninfo = address.conninfo_within(timeout_s)
        self._timeout_s = timeout_s
        self._forget()

    def _forget(self) -> None:
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(self._address.pool_size)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    async def call(self, name: bytes, text: bytes, values: Values = ()) -> Value:
        """One statement as a transaction of its own. Raises StoreError."""
        prepare = self._address.prepare
        return await self.use(lambda connection: connection.call(name, text, values, prepare=prepare))

    async def use(self, run: Run, *, timeout_s: float | None = None) -> Value:
        """Let `run` have a connection, and repeat it if the server undid it. Raises StoreError, and what `run` does."""
        self._adopt()
        bound_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(bound_s) as bound, self._free:
                return await self._repeat(run)
        except TimeoutError:
            if not bound.expired():
                raise
            self._drop_idle()  # they would most likely let the next ones wait as long
            raise StoreError(
                f"the ledger {self._address.shown} did not answer within {bound_s:g} s: see whether the server is "
                "reachable and not overloaded, or raise the time-out"
            ) from None

    async def _repeat(self, run: Run) -> Value:
        for left in reversed(range(REPEATS)):
            try:
                return await self._run(run)
            except ServerError as error:
                if error.code not in REPEATABLE or not left:
                    if error.code.startswith(GONE):
                        self._drop_idle()
                    raise self._explained(error.code, error.message) from None
            except (psycopg.Error, OSError) as error:
                self._drop_idle()
                raise self._explained(getattr(error, "sqlstate", None), str(error)) from None
        raise AssertionError

    async def _run(self, run: Run) -> Value:
        connection = self._take() or await self._connect()
        try:
            return await run(connection)
        finally:
            if connection.is_clean:
                self._idle.append(connection)
            else:
                connection.close()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_silent:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        made = Connection(connection)
        if self._address.prepare:
            bound_ms = max(int(self._timeout_s * 1000), 1)
            try:
                await made.script(
                    b"SET default_transaction_isolation = 'read committed'; "
                    b"SET statement_timeout = %d; SET lock_timeout = %d" % (bound_ms, bound_ms)
                )
            except BaseException:
                made.close()
                raise
        return made

    def _adopt(self) -> None:
        """Belong to the event loop that asks now. Sockets made before a fork are the parent's: it goes on using them,
        so here they are neither used nor closed.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop and self._pid == os.getpid():
            return
        if self._pid != os.getpid():
            _INHERITED.extend(self._idle)
            self._forget()
        elif self._loop is not None and self._loop.is_running():
            raise StoreError(f"the ledger {self._address.shown} is in use by another event loop: open a store for each")
        self._free = asyncio.Semaphore(self._address.pool_size)
        self._loop = loop

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        """Let what runs come to its end, which is bounded, and close all connections."""
        self._adopt()
        taken = 0
        try:
            while taken < self._address.pool_size:
                await self._free.acquire()
                taken += 1
            self._drop_idle()
        finally:
            for _ in range(taken):
                self._free.release()

    def _explained(self, code: str | None, message: str) -> StoreError:
        for secret in self._address.secrets:
            message = message.replace(secret, "***")
        return explain(self._address.shown, code, " ".join(message.split()))


_INHERITED: list[Connection] = []
"""Of parents. Kept, because forgetting a connection closes it."""
