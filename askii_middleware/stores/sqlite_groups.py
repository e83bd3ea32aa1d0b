"""Writes that go together in one transaction, and how processes that share a file keep each other from starving."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from .sqlite_errors import translate

T = TypeVar("T")

IGNORED_S = 10.0
MAX_GROUP = 64
"""Writes in one transaction: some 5 ms of the event loop."""


class Waiting(Generic[T]):
    """A write that waits for its group."""

    __slots__ = ("_error", "_future", "_result", "_work", "begun", "give_up_s", "loop")

    def __init__(self, work: Callable[[sqlite3.Connection], T], give_up_s: float) -> None:
        self._work = work
        self.give_up_s = give_up_s
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self.loop.create_future()
        self._error: Exception | None = None
        self.begun = False

    def begin(self) -> bool:
        """False: whoever asked for it is gone, and it is not to be run."""
        self.begun = not self._future.done()
        return self.begun

    def put_back(self) -> None:
        """It was not run: whoever gives up now need not wait for it."""
        self.begun = False

    def run(self, connection: sqlite3.Connection) -> None:
        self._error = None
        self._result = self._work(connection)

    def refuse(self, error: Exception) -> None:
        """It failed by itself, and the rest of its group stands."""
        self._error = error

    def finish(self, path: str) -> None:
        """Its group is committed."""
        if self._error is not None:
            self.fail(translate(path, self._error))
        elif not self._future.done():
            self._future.set_result(self._result)

    def fail(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)

    async def result(self) -> T:
        """A cancellation waits for what has begun: whoever cancels may undo it next."""
        try:
            return await asyncio.shield(self._future)
        except asyncio.CancelledError:
            if not self.begun:
                self._future.cancel()
            while not self._future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self._future])
            if not self._future.cancelled():
                self._future.exception()
            raise


def run_group(connection: sqlite3.Connection, *, group: Sequence[Waiting[Any]]) -> None:
    """Run a group inside the open transaction. What fails takes back its own changes only."""
    if len(group) == 1:
        group[0].run(connection)
        return
    for waiting in group:
        connection.execute("SAVEPOINT one")
        try:
            waiting.run(connection)
        except Exception as error:
            if not connection.in_transaction:  # the disk is full or broken: SQLite has given up the whole
                raise
            connection.execute("ROLLBACK TO one")
            waiting.refuse(error)
        connection.execute("RELEASE one")


class Queue:
    """The writes of one event loop."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        """Groups, and writes in threads, one after the other."""
        self.waiting: deque[Waiting[Any]] = deque()
        """Writes that wait for the next group; while there are any, later ones queue behind them."""
        self.aside = 0
        """Writes in threads that wait for their turn or have it: later ones on the event loop queue behind them."""
        self.grouping: asyncio.Task[None] | None = None
        self._busy_tick = False
        """Something was written in this tick of the event loop: what follows goes together."""

    @property
    def is_free(self) -> bool:
        """Whether a write may run at once."""
        return not (self._busy_tick or self.waiting or self.aside)

    def begin_tick(self) -> None:
        self._busy_tick = True
        asyncio.get_running_loop().call_soon(self._end_tick)

    def _end_tick(self) -> None:
        self._busy_tick = False

    def next_group(self) -> list[Waiting[Any]]:
        group: list[Waiting[Any]] = []
        while self.waiting and len(group) < MAX_GROUP:
            waiting = self.waiting.popleft()
            if waiting.begin():
                group.append(waiting)
        return group


class Courtesy:
    """Tells the processes that write to one file that one of them has waited for long. A process looks before it
    begins a transaction, and lets the one that waits go first.

    It is a lock that nobody waits for, on the file's directory: SQLite's own locks are of another kind, and a lock
    ends with its process. Where there is no such lock to be had, nobody is ever known to wait.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._claimed = False
        self._ignored_until_s = 0.0
        self._fd: int | None = None
        with suppress(OSError):  # a directory that may be entered and not be read
            self._fd = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """After a fork, too: what the child has of its parent's lock would outlive it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def is_asked(self) -> bool:
        """Whether another process has waited for long."""
        if self._claimed or self._lock(fcntl.LOCK_SH):
            self._unlock()
            return False
        return self._clock() >= self._ignored_until_s

    def ignore(self) -> None:
        """Whoever asks makes no use of it, and may be no worker at all: do not look again for a while."""
        self._ignored_until_s = self._clock() + IGNORED_S

    def claim(self) -> None:
        """Ask the others to let this process go first. One at a time can."""
        self._claimed = self._claimed or (self._fd is not None and self._lock(fcntl.LOCK_EX))

    def yield_claim(self) -> None:
        if self._claimed:
            self._claimed = False
            self._unlock()

    def _lock(self, kind: int) -> bool:
        if self._fd is None:
            return True
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return kind == fcntl.LOCK_SH
        return True

    def _unlock(self) -> None:
        if not self._claimed and self._fd is not None:
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
