"""Connections of one process to one SQLite file, and how transactions get their turn.

A transaction takes some 30 µs, less than handing it to a thread, so it runs where it is called, on the event loop,
with SQLite's own waiting switched off. If another process is writing, the task sleeps and tries again: the loop goes
on, nothing is ever cancelled half way, and no thread holds the file's lock while it waits for the interpreter's.
(SQLite's busy handler in a thread was measured to starve whole processes for seconds.)

What may take long goes to threads with connections of their own: reading much, upkeep, checkpoints, and with `full`
synchronisation every write, because each then waits for the disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar
from weakref import WeakKeyDictionary

from ..errors import StoreError
from .base import UnwritableError
from .sqlite_errors import BusyError, explain
from .sqlite_schema import configure, prepare
from .sqlite_sql import SQL

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 500
"""Commits of this process between two checkpoints: some 10 MB of WAL."""
SPINS = 20
"""Tries that only let other tasks run in between: most transactions of others end within them."""
POLL_S = 0.001

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_inherited: list[object] = []
"""Connections from before a fork. To close them here could break the parent's locks, so they are kept for good."""


class Lane:
    """A connection with the one thread that uses it."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.connection = connection
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"askii-sqlite-{name}")


class Database:
    """See the module. All methods raise StoreError; after one, nothing of the transaction is in the file."""

    def __init__(self, path: str, *, full_sync: bool = False, lock_timeout_s: float = 5.0) -> None:
        self.path = path
        self._full_sync = full_sync
        self._lock_timeout_s = lock_timeout_s
        self._front: sqlite3.Connection | None = None
        self._upkeep: Lane | None = None
        self._reading: Lane | None = None
        self._pid = 0
        self._front_lock = threading.Lock()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._waiting: set[object] = set()
        """Operations that wait for their turn; while there are any, later ones queue behind them."""
        self._commits = 0
        self._checkpointing: Future[None] | None = None

    async def open(self) -> None:
        if self._front is not None and self._pid != os.getpid():
            _inherited.extend((self._front, self._upkeep, self._reading))
            self._front = self._checkpointing = None
            self._waiting.clear()
        async with self._turn():
            if self._front is None:
                self._front_lock = threading.Lock()
                await _finished(asyncio.get_running_loop().run_in_executor(None, self._connect))

    def _connect(self) -> None:
        connections: list[sqlite3.Connection] = []
        try:
            for _ in range(3):
                connection = sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
                )
                connections.append(connection)
                if len(connections) == 1:
                    prepare(connection, self.path, timeout_s=self._lock_timeout_s)
                configure(connection, full_sync=self._full_sync)
        except sqlite3.Error as error:
            raise explain(self.path, error) from error
        else:
            front, upkeep, reading = connections
            connections = []
            self._upkeep, self._reading = Lane(upkeep, "upkeep"), Lane(reading, "reading")
            self._pid = os.getpid()
            self._front = front
        finally:
            for connection in connections:
                connection.close()

    async def close(self) -> None:
        async with self._turn():
            front, upkeep, reading = self._front, self._upkeep, self._reading
            if front is None or upkeep is None or reading is None:
                return
            self._front = None
            if self._pid != os.getpid():
                _inherited.extend((front, upkeep, reading))
                return
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(reading.thread, reading.connection.close)
            # The last to close merges the WAL into the file, which waits for the disk.
            await loop.run_in_executor(upkeep.thread, front.close)
            await loop.run_in_executor(upkeep.thread, upkeep.connection.close)
            reading.thread.shutdown(wait=False)
            upkeep.thread.shutdown(wait=False)

    # Transactions ------------------------------------------------------------------------------------------------

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction that can write."""
        if self._full_sync:
            return await self.write_aside(work)
        if not self._waiting:
            try:
                return self._on_front("BEGIN IMMEDIATE", work)
            except BusyError:
                pass
        return await self._in_turn(lambda: _done(self._on_front("BEGIN IMMEDIATE", work)))

    def write_at_once(self, work: Work[T]) -> T | None:
        """Like `write`, if nobody else is writing and no disk has to be waited for; else None, and nothing is done."""
        if self._full_sync or self._waiting:
            return None
        try:
            return self._on_front("BEGIN IMMEDIATE", work)
        except BusyError:
            return None

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which is short, on one snapshot."""
        try:
            return self._on_front("BEGIN", work)
        except BusyError:
            return await self._until_free(lambda: _done(self._on_front("BEGIN", work)))

    async def write_aside(self, work: Work[T]) -> T:
        """Like `write`, in a thread."""
        return await self._in_turn(lambda: self._on_lane(self._upkeep, "BEGIN IMMEDIATE", work))

    async def read_aside(self, work: Work[T]) -> T:
        """Like `read`, in a thread: for what may take long."""
        return await self._until_free(lambda: self._on_lane(self._reading, "BEGIN", work))

    def _turn(self) -> asyncio.Lock:
        return self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _in_turn(self, attempt: Callable[[], Awaitable[T]]) -> T:
        give_up_s = time.monotonic() + self._lock_timeout_s  # the turns of others count: they wait for the same lock
        ticket = object()
        self._waiting.add(ticket)
        try:
            async with self._turn():
                return await self._until_free(attempt, give_up_s)
        finally:
            self._waiting.discard(ticket)

    async def _until_free(self, attempt: Callable[[], Awaitable[T]], give_up_s: float | None = None) -> T:
        if give_up_s is None:
            give_up_s = time.monotonic() + self._lock_timeout_s
        tries = 0
        while True:
            try:
                return await attempt()
            except BusyError as error:
                if time.monotonic() >= give_up_s:
                    raise StoreError(f"{error}; gave up after {self._lock_timeout_s:g} s") from error
            tries += 1
            await asyncio.sleep(0 if tries < SPINS else POLL_S)

    def _on_front(self, begin: str, work: Work[T]) -> T:
        self._check()
        front = self._front
        assert front is not None
        if not self._front_lock.acquire(blocking=False):
            raise BusyError(f"the ledger {self.path} is in use by another thread of this process")
        try:
            return self._transact(front, begin, work)
        finally:
            self._front_lock.release()

    async def _on_lane(self, lane: Lane | None, begin: str, work: Work[T]) -> T:
        self._check()
        assert lane is not None
        return await _finished(
            asyncio.get_running_loop().run_in_executor(lane.thread, self._transact, lane.connection, begin, work)
        )

    def _check(self) -> None:
        if self._front is None:
            raise StoreError(f"the ledger {self.path} is not open: call open() first")
        if self._pid != os.getpid():
            raise StoreError(f"the ledger {self.path} was opened before a fork: call open() in this process too")

    def _transact(self, connection: sqlite3.Connection, begin: str, work: Work[T]) -> T:
        try:
            if connection.in_transaction:  # the ROLLBACK below failed last time
                connection.execute("ROLLBACK")
            connection.execute(begin)
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise explain(self.path, error) from error
        except (OverflowError, UnicodeError) as error:
            raise UnwritableError(f"the ledger {self.path} cannot hold a value: {error}") from error
        if begin != "BEGIN":
            self._commits += 1
            if not self._commits % CHECKPOINT_EVERY:
                self._checkpoint()
        return result

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        upkeep = self._upkeep
        if upkeep is not None and (self._checkpointing is None or self._checkpointing.done()):
            self._checkpointing = upkeep.thread.submit(self._merge_wal, upkeep.connection)

    def _merge_wal(self, connection: sqlite3.Connection) -> None:
        try:
            # The bulk goes without stopping anybody; the rest, which came in meanwhile, with writers held off for a
            # moment. Under steady load the WAL would otherwise never be merged whole, and grow without end.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if not busy:
                # The next write starts the WAL anew and waits for the disk: better this one than one on the loop.
                self._transact(connection, "BEGIN IMMEDIATE", lambda db: db.execute(SQL["touch"]))
        except BusyError:
            pass  # somebody else writes and does that
        except (sqlite3.Error, StoreError) as error:
            logger.warning("the checkpoint of %s failed and will be tried again: %s", self.path, error)


async def _done(result: T) -> T:
    return result


async def _finished(future: asyncio.Future[T]) -> T:
    """Await work of a thread. A cancellation waits for it too: whoever cancels may undo it next."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()
        raise
