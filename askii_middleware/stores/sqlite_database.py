"""Connections of one process to one SQLite file, and how transactions get their turn.

A transaction takes some 30 µs, less than handing it to a thread, so it runs where it is called, on the event loop,
with SQLite's own waiting switched off. If another process is writing, the task sleeps and tries again: the loop goes
on, nothing is ever cancelled half way, and no thread holds the file's lock while it waits for the interpreter's.
(SQLite's busy handler in a thread was measured to starve whole processes for seconds.)

Transactions that meet go together: the first of an event loop's tick runs at once, all others of that tick, and those
that had to wait for another process, share one transaction, each behind a savepoint of its own. A page that they all
change is then written once, and processes take turns of many calls instead of fighting for each.

What may take long goes to threads with connections of their own: reading much, upkeep, checkpoints, and with `full`
synchronisation every group of writes, because each then waits for the disk.
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
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ..errors import StoreError
from ..log_fields import fields
from .sqlite_errors import BusyError, explain, translate
from .sqlite_groups import Courtesy, Queue, Waiting, run_group
from .sqlite_schema import configure, prepare
from .sqlite_sql import SQL

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 500
"""Commits of this process between two checkpoints: some 10 MB of WAL."""
SPINS = 20
"""Tries that only let other tasks run in between: most transactions of others end within them."""
POLL_S = 0.001
LONG_S = 0.004
"""Who has waited for so long asks the other processes to let it go first."""
PATIENCE_S = 0.05
"""So long a process lets others go first, one after the other."""

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
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Queue] = WeakKeyDictionary()
        self._courtesy: Courtesy | None = None
        self._commits = 0
        self._checkpointing: Future[None] | None = None

    async def open(self) -> None:
        if self._front is not None and self._pid != os.getpid():
            _inherited.extend((self._front, self._upkeep, self._reading))
            self._front = self._checkpointing = None
            self._loops.clear()
            if self._courtesy is not None:
                self._courtesy.close()
        async with self._here().turn:
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
            self._courtesy = Courtesy(self.path)
            self._pid = os.getpid()
            self._front = front
        finally:
            for connection in connections:
                connection.close()

    async def close(self) -> None:
        here = self._here()
        if here.grouping is not None and self._pid == os.getpid():
            await asyncio.wait([here.grouping])  # what waits ends first
        async with here.turn:
            front, upkeep, reading = self._front, self._upkeep, self._reading
            if front is None or upkeep is None or reading is None:
                return
            self._front = None
            if self._pid != os.getpid():
                _inherited.extend((front, upkeep, reading))
                return
            if self._courtesy is not None:
                self._courtesy.close()
                self._courtesy = None
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
        here = self._here()
        if not self._full_sync and here.is_free:
            try:
                return self._write_now(here, work)
            except BusyError:
                pass
        self._check()
        waiting: Waiting[T] = Waiting(work, time.monotonic() + self._lock_timeout_s)
        here.waiting.append(waiting)
        if here.grouping is None or here.grouping.done():
            here.grouping = waiting.loop.create_task(self._write_groups(here), name="askii-sqlite-groups")
        return await waiting.result()

    def write_at_once(self, work: Work[T]) -> T | None:
        """Like `write`, if nobody else is writing and no disk has to be waited for; else None, and nothing is done."""
        here = self._here()
        if self._full_sync or not here.is_free:
            return None
        try:
            return self._write_now(here, work)
        except BusyError:
            return None

    def _here(self) -> Queue:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = Queue()
        return here

    def _write_now(self, here: Queue, work: Work[T]) -> T:
        if self._courtesy is not None and self._courtesy.is_asked():
            raise BusyError(f"another process waits to write to {self.path}")
        result = self._on_front("BEGIN IMMEDIATE", work)
        here.begin_tick()
        return result

    async def _write_groups(self, here: Queue) -> None:
        """Write what waits, a group at a time, until nothing does."""
        try:
            while here.waiting:
                began_s = time.monotonic()
                while not await self._write_group(here, time.monotonic() - began_s):
                    pass
                if here.waiting:
                    await asyncio.sleep(0)
        finally:
            while here.waiting:  # the event loop ends
                here.waiting.popleft().fail(StoreError(f"the ledger {self.path} was left before this was written"))

    async def _write_group(self, here: Queue, waited_s: float) -> bool:
        """Try to write a group. False: not yet, another process is writing."""
        courtesy = self._courtesy
        if courtesy is not None:
            if waited_s > LONG_S:
                courtesy.claim()
            if courtesy.is_asked():
                if waited_s < PATIENCE_S:
                    await asyncio.sleep(POLL_S)
                    return False
                courtesy.ignore()
        async with here.turn:
            group = here.next_group()
            begin: Work[None] = partial(run_group, group=group)
            try:
                if not group:
                    pass
                elif self._full_sync:
                    await self._on_lane(self._upkeep, "BEGIN IMMEDIATE", begin)
                else:
                    self._on_front("BEGIN IMMEDIATE", begin)
            except BusyError as error:
                self._put_back(here, group, error)
            except Exception as error:  # noqa: BLE001 - each of them gets it
                for waiting in group:
                    waiting.fail(error)
                group = []
            except BaseException:
                # In a thread it may be written all the same; whoever repeats it changes nothing twice.
                for waiting in group:
                    waiting.fail(StoreError(f"writing to the ledger {self.path} was interrupted"))
                raise
            else:
                for waiting in group:
                    waiting.finish(self.path)
                group = []
        if not group:
            if courtesy is not None:
                courtesy.yield_claim()
            return True
        await asyncio.sleep(0 if waited_s < POLL_S else POLL_S)
        return False

    def _put_back(self, here: Queue, group: list[Waiting[Any]], error: BusyError) -> None:
        """Try again later, except those that have waited long enough."""
        now_s = time.monotonic()
        late = StoreError(f"{error}; gave up after {self._lock_timeout_s:g} s")
        for waiting in reversed(group):
            if waiting.give_up_s <= now_s:
                waiting.fail(late)
            else:
                waiting.put_back()
                here.waiting.appendleft(waiting)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which is short, on one snapshot."""
        try:
            return self._on_front("BEGIN", work)
        except BusyError:
            return await self._until_free(lambda: _done(self._on_front("BEGIN", work)))

    async def write_aside(self, work: Work[T]) -> T:
        """Like `write`, in a thread."""
        give_up_s = time.monotonic() + self._lock_timeout_s  # the turns of others count: they wait for the same lock
        here = self._here()
        here.aside += 1
        try:
            async with here.turn:
                return await self._until_free(lambda: self._on_lane(self._upkeep, "BEGIN IMMEDIATE", work), give_up_s)
        finally:
            here.aside -= 1

    async def read_aside(self, work: Work[T]) -> T:
        """Like `read`, in a thread: for what may take long."""
        return await self._until_free(lambda: self._on_lane(self._reading, "BEGIN", work))

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
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise translate(self.path, error) from error
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
            logger.warning(
                "the checkpoint of %s failed and will be tried again: %s",
                self.path,
                error,
                extra=fields("checkpoint_failed"),
            )


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
