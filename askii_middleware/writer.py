"""How settlements and releases reach the ledger: shielded from cancellation, bounded in time, and through the journal
while the store cannot be reached. Repeating any of them is harmless, because the store knows them by call id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .errors import StoreError
from .journal import Entry, Journal
from .stores.base import Settled, Settlement, Store

logger = logging.getLogger(__name__)

MAX_UNWRITTEN = 10_000
T = TypeVar("T")


class LedgerWriter:
    """Owns the writes that must not be lost.

    Args:
        store: the ledger.
        journal: where writes wait while the store is away; None keeps them in memory only (for `memory://`).
        settle_timeout_s: how long a write may take before it goes to the journal.
        on_store_error: called with the operation's name for each write the store did not take.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal | None,
        *,
        settle_timeout_s: float = 5.0,
        on_store_error: Callable[[str], None] = lambda _operation: None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._timeout_s = settle_timeout_s
        self._on_store_error = on_store_error
        self._unwritten: list[Entry] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replaying = False
        self._journal_turn: asyncio.Lock | None = None

    @property
    def refuses(self) -> str | None:
        """Why no new call may be admitted: there would be no place to write what it cost. None: all is well."""
        if self._unwritten and self._journal is not None:
            return "charges wait in memory because neither the store nor the journal can be written"
        if self._journal is not None and self._journal.full:
            return "the journal is full: bring the store back, or raise journal_max_bytes"
        if len(self._unwritten) >= MAX_UNWRITTEN:
            return "too many charges wait for the store"
        return None

    @property
    def waiting(self) -> bool:
        """Whether anything waits for the store to come back."""
        return bool(self._unwritten) or (self._journal is not None and self._journal.pending_bytes > 0)

    async def settle(self, settlement: Settlement) -> Settled | None:
        """Write a settlement. None: the store did not answer in time, and the settlement waits in the journal. Once
        begun it runs to its end, even if the caller is cancelled meanwhile.
        """
        return await self.shielded(self._settle(settlement))

    async def release(self, call_id: str) -> None:
        """Drop a hold, now or when the store is back."""
        await self.shielded(self._release(call_id))

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work to its end whatever happens to the caller."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _settle(self, settlement: Settlement) -> Settled | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._store.settle(settlement)
        except (StoreError, TimeoutError) as error:
            self._on_store_error("settle")
            logger.warning("call %s: the store did not take the charge (%s); it waits", settlement.call_id, error)
            await self._keep(Entry(settlement=settlement))
            return None

    async def _release(self, call_id: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._store.release(call_id)
        except (StoreError, TimeoutError) as error:
            self._on_store_error("release")
            logger.warning("call %s: the store did not release the hold (%s); it waits", call_id, error)
            await self._keep(Entry(release=call_id))

    async def _keep(self, entry: Entry) -> None:
        if self._journal is not None:
            try:
                async with self._turn():
                    await asyncio.to_thread(self._journal.append, entry)
            except StoreError as error:
                logger.error("%s; keeping the charge in memory, refusing new calls", error)  # noqa: TRY400
            else:
                return
        self._unwritten.append(entry)

    def _turn(self) -> asyncio.Lock:
        if self._journal_turn is None:
            self._journal_turn = asyncio.Lock()
        return self._journal_turn

    async def open(self) -> None:
        """Take a journal file. Raises StoreError."""
        if self._journal is not None:
            await asyncio.to_thread(self._journal.open)

    async def replay(self) -> int:
        """Write what waits, oldest first, including journals of dead processes. Returns how many entries reached the
        store; stops quietly where it is still away.
        """
        if self._replaying:
            return 0
        self._replaying = True
        try:
            return await self._replay()
        except (StoreError, TimeoutError) as error:
            logger.info("the store is still away: %s", error)
            return 0
        finally:
            self._replaying = False

    async def _replay(self) -> int:
        count = 0
        if self._journal is not None:
            async with self._turn():
                own = await asyncio.to_thread(self._journal.read)
                for entry in own:
                    await self._write(entry)
                if own:
                    await asyncio.to_thread(self._journal.clear)
            count += len(own)
        while self._unwritten:
            await self._write(self._unwritten[0])
            self._unwritten.pop(0)
            count += 1
        return count

    async def adopt_orphans(self) -> int:
        """Write what dead processes left in their journals."""
        if self._journal is None:
            return 0
        count = 0
        for orphan in await asyncio.to_thread(self._journal.orphans):
            try:
                entries = await asyncio.to_thread(orphan.read)
                for entry in entries:
                    await self._write(entry)
            except BaseException:
                orphan.close()
                raise
            await asyncio.to_thread(orphan.discard)
            count += len(entries)
        return count

    async def _write(self, entry: Entry) -> None:
        async with asyncio.timeout(self._timeout_s):
            if entry.settlement is not None:
                await self._store.settle(entry.settlement)
            if entry.release is not None:
                await self._store.release(entry.release)

    async def drain(self, timeout_s: float) -> None:
        """Wait for running writes, bounded."""
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def close(self) -> None:
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
