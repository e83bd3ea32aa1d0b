"""How settlements, releases and operations reach the ledger: shielded from cancellation, bounded in time, and through
the journal while the store cannot be reached. Repeating any of them is harmless, because the store knows them by call
id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import StoreError
from .journal import Entry, Journal, Orphan
from .log_fields import fields, shown
from .logs import EventLog
from .stores.base import Operation, Settled, Settlement, Store, UnwritableError
from .waiting import bounded

logger = logging.getLogger(__name__)

MAX_UNWRITTEN = 10_000
T = TypeVar("T")
OnSettled = Callable[[Settled | None], None]


class NoPlaceError(StoreError):
    """What a new call costs could not be kept, not even for later: it is refused under every policy."""


class LedgerWriter:
    """Owns the writes that must not be lost.

    Args:
        store: the ledger.
        journal: where writes wait while the store is away; None keeps them in memory only (for `memory://`).
        settle_timeout_s: how long a write may take before it goes to the journal.
        on_store_error: called with the operation's name for each write the store did not take.
        log: counts these for the log.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal | None,
        *,
        settle_timeout_s: float = 5.0,
        on_store_error: Callable[[str], None] = lambda _operation: None,
        log: EventLog | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._timeout_s = settle_timeout_s
        self._on_store_error = on_store_error
        self._log = log or EventLog()
        self.on_waiting: Callable[[], None] = lambda: None
        """Called when something has begun to wait for the store."""
        self._unwritten: deque[Entry] = deque()
        """What neither the store nor the journal took. Grows beyond `MAX_UNWRITTEN` only by the calls that run."""
        self._doubtful: deque[str] = deque(maxlen=MAX_UNWRITTEN)
        """Ids of refused calls whose hold may stand. Losing one is no harm: the hold then ends by its deadline."""
        self._released: deque[tuple[str, float]] = deque(maxlen=MAX_UNWRITTEN)
        """Those that were released once, and when again: the request to hold may be on its way still, and come after
        the release that was to undo it.
        """
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replaying: asyncio.Task[int] | None = None

    @property
    def refuses(self) -> str | None:
        """Why no new call may be admitted: there would be no place to write what it cost. None: all is well."""
        if self._journal is not None:
            if self._unwritten:
                return "charges wait in memory because neither the store nor the journal can be written"
            if self._journal.full:
                return "the journal is full: bring the store back, or raise journal_max_bytes"
        elif len(self._unwritten) >= MAX_UNWRITTEN:
            return "too many charges wait for the store"
        return None

    @property
    def journal_path(self) -> Path | None:
        """What the journal's files begin with."""
        return None if self._journal is None else self._journal.path

    @property
    def rejected_path(self) -> Path | None:
        """The file of what the store could never take, if there is any."""
        path = None if self._journal is None else self._journal.rejected_path
        return path if path is not None and path.exists() else None

    @property
    def waiting(self) -> bool:
        """Whether anything waits for the store to come back."""
        return bool(self._unwritten or self._doubtful) or (
            self._journal is not None and self._journal.pending_bytes > 0
        )

    def journalled(self) -> tuple[int, int]:
        """Entries and bytes that wait in the journals of all processes here. Blocks: call it from threads."""
        return (0, 0) if self._journal is None else self._journal.waiting()

    # Writing ------------------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement, on_settled: OnSettled = lambda _settled: None) -> Settled | None:
        """Write a settlement, then call `on_settled` with the answer. None: the store did not take it in time, and it
        waits in the journal. Once begun it runs to its end, even if the caller is cancelled meanwhile.
        """
        settlement = self._store.attributed(settlement)
        try:
            settled = self._store.settle_at_once(settlement)
        except Exception:  # noqa: BLE001 - it will be met again, and dealt with, below
            settled = None
        if settled is None:
            return await self.shielded(self._settle(settlement, on_settled))
        on_settled(settled)
        return settled

    async def release(self, call_id: str) -> None:
        """Drop a hold, now or when the store is back."""
        await self.shielded(self._release(call_id))

    async def defer(self, operation: Operation) -> None:
        """Keep an operation, now or when the store is back."""
        await self.shielded(self._defer(operation))

    def release_soon(self, call_id: str) -> None:
        """Like `release`, for those who cannot wait, not even for the answer to their request to hold."""
        self._begin(self._release(call_id))
        self._release_again(call_id)

    def release_doubtful(self, call_id: str) -> None:
        """The store failed to answer whether it holds for a call that was refused: drop the hold when it is back."""
        self._doubtful.append(call_id)
        self.on_waiting()

    def _release_again(self, call_id: str) -> None:
        """When nothing that was sent until now can be on its way any more."""
        self._released.append((call_id, time.monotonic() + 2 * self._timeout_s))

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work to its end whatever happens to the caller."""
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, settlement: Settlement, on_settled: OnSettled) -> Settled | None:
        settled = None
        entry = Entry(settlement=settlement)
        try:
            settled = await bounded(self._store.settle(settlement), self._timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the charge must not be lost
            await self._not_taken("settle", entry, error)
        except BaseException:
            self._keep_now(entry)
            raise
        on_settled(settled)
        return settled

    async def _release(self, call_id: str) -> None:
        entry = Entry(release=call_id)
        try:
            await bounded(self._store.release(call_id), self._timeout_s)
        except Exception as error:  # noqa: BLE001 - as above
            await self._not_taken("release", entry, error)
        except BaseException:
            self._keep_now(entry)
            raise

    async def _defer(self, operation: Operation) -> None:
        entry = Entry(operation=operation)
        try:
            await bounded(self._keep_operation(operation), self._timeout_s)
        except Exception as error:  # noqa: BLE001 - as above
            await self._not_taken("defer", entry, error)
        except BaseException:
            self._keep_now(entry)
            raise

    async def _keep_operation(self, operation: Operation) -> None:
        """Where another call has the key: a payer's two calls that began one operation are charged as one. Ids that
        two payers share are not one operation: the second call keeps a key of its own, and is charged what it holds.
        """
        if await self._store.defer(operation):
            return
        first = await self._store.operation(operation.key)
        same = first is not None and first.tenant == operation.tenant
        logger.warning(
            "call %s: another call has begun the operation %s; this one is %s",
            operation.call_id,
            shown(operation.key),
            "released" if same else "charged what it holds, when its time is up",
            extra=fields("operation_shared", call_id=operation.call_id, tenant=operation.tenant, released=same),
        )
        if same:
            await self._store.release(operation.call_id)
        else:
            await self._store.defer(msgspec.structs.replace(operation, key=f"call:{operation.call_id}"))

    async def _not_taken(self, operation: str, entry: Entry, error: Exception) -> None:
        self._on_store_error(operation)
        if isinstance(error, UnwritableError):
            await self._park(entry, error)
            return
        if isinstance(error, StoreError | TimeoutError):
            self._log.store_failed(operation, error, entry.call_id)
        else:
            logger.warning(
                "call %s: the store broke on its %s; it waits",
                shown(entry.call_id),
                operation,
                exc_info=error,
                extra=fields("store_broke", call_id=entry.call_id, operation=operation),
            )
        logger.debug(
            "call %s: its %s waits for the store",
            shown(entry.call_id),
            operation,
            extra=fields("write_waits", call_id=entry.call_id, operation=operation),
        )
        await self._keep(entry)

    async def _keep(self, entry: Entry) -> None:
        self.on_waiting()
        if self._journal is not None:
            try:
                await asyncio.to_thread(self._journal.append, entry)
            except StoreError as error:
                logger.error(  # noqa: TRY400
                    "%s; keeping the charge in memory, refusing new calls",
                    error,
                    extra=fields("journal_failed", call_id=entry.call_id),
                )
            else:
                return
        self._unwritten.append(entry)

    def _keep_now(self, entry: Entry) -> None:
        """The event loop ends, and with it the process perhaps: there is no later, and no thread."""
        if self._journal is not None:
            try:
                self._journal.append(entry)
            except StoreError as error:
                logger.error(  # noqa: TRY400
                    "%s; keeping the charge in memory", error, extra=fields("journal_failed", call_id=entry.call_id)
                )
            else:
                return
        self._unwritten.append(entry)

    async def _park(self, entry: Entry, error: Exception) -> None:
        """Put aside what the store will never take, so that everything else can go on."""
        self._on_store_error("rejected")
        place = "nowhere"
        if self._journal is not None:
            try:
                place = str(await asyncio.to_thread(self._journal.park, entry, _text(error)))
            except StoreError as failure:
                place = f"nowhere ({failure})"
        logger.error(
            "call %s: the ledger can never take what it cost (%s); kept in %s, to be booked by hand: %s",
            shown(entry.call_id),
            _text(error),
            place,
            entry.bill,
            extra=fields("charge_rejected", call_id=entry.call_id, tenant=entry.tenant, place=place),
        )

    # Catching up --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take a journal file. Raises StoreError."""
        if self._journal is not None:
            await asyncio.to_thread(self._journal.open)

    async def replay(self) -> int:
        """Write what waits, oldest first. Returns how many entries were worked off; stops quietly where the store is
        still away. One replay runs at a time: whoever asks meanwhile waits for it, and a cancelled asker ends nothing.
        """
        running = self._replaying
        if running is None or running.done() or running.get_loop() is not asyncio.get_running_loop():
            if not self.waiting and not self._released:
                return 0
            running = self._replaying = self._begin(self._replay_quietly())
        return await asyncio.shield(running)

    async def _replay_quietly(self) -> int:
        try:
            return await self._replay()
        except (StoreError, TimeoutError) as error:
            self._log.store_failed("replay", error)
            await self._spill()
            return 0

    async def _replay(self) -> int:
        count = 0
        while self._unwritten:
            await self._write(self._unwritten[0])
            self._unwritten.popleft()
            count += 1
        journal = self._journal
        written = 0
        # Others may append meanwhile; nothing is forgotten before all of it is in the ledger.
        while journal is not None and (end := journal.pending_bytes):
            for entry in (await asyncio.to_thread(journal.read, end))[written:]:
                await self._write(entry)
                written += 1
            if await asyncio.to_thread(journal.clear, end):
                break
        while self._doubtful:
            await bounded(self._store.release(self._doubtful[0]), self._timeout_s)
            self._release_again(self._doubtful.popleft())
        while self._released and self._released[0][1] <= time.monotonic():
            await bounded(self._store.release(self._released[0][0]), self._timeout_s)
            self._released.popleft()
        return count + written

    async def _spill(self) -> None:
        """Move what waits in memory to the journal, as far as that has room again."""
        while self._unwritten and self._journal is not None:
            try:
                await asyncio.to_thread(self._journal.append, self._unwritten[0])
            except StoreError:
                return
            self._unwritten.popleft()

    async def adopt_orphans(self) -> int:
        """Write what dead processes left in their journals. Raises StoreError."""
        if self._journal is None:
            return 0
        count = 0
        orphans: list[Orphan] = await asyncio.to_thread(self._journal.orphans)
        try:
            for orphan in orphans:
                entries = await asyncio.to_thread(orphan.read)
                for entry in entries:
                    await self._write(entry)
                await asyncio.to_thread(orphan.discard)
                count += len(entries)
        finally:
            for orphan in orphans:
                orphan.close()
        return count

    async def _write(self, entry: Entry) -> None:
        """Write one entry, or park it. Raises StoreError or TimeoutError where the store is away."""
        try:
            if entry.settlement is not None:
                await bounded(self._store.settle(entry.settlement), self._timeout_s)
            if entry.release is not None:
                await bounded(self._store.release(entry.release), self._timeout_s)
            if entry.operation is not None:
                await bounded(self._keep_operation(entry.operation), self._timeout_s)
        except UnwritableError as error:
            await self._park(entry, error)
        except (StoreError, TimeoutError):
            raise
        except Exception as error:
            # A defect. If the store works otherwise, it will meet this entry in the same way for ever.
            logger.exception(
                "call %s: the store broke on its charge",
                shown(entry.call_id),
                extra=fields("store_broke", call_id=entry.call_id, operation="replay"),
            )
            await bounded(self._store.ping(), self._timeout_s)
            await self._park(entry, error)

    async def drain(self, timeout_s: float) -> None:
        """Wait for running writes, bounded."""
        here = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if not task.done() and task.get_loop() is here]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def close(self) -> None:
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)


def _text(error: Exception) -> str:
    """Of an error without words, such as a time-out, its name."""
    return str(error) or type(error).__name__
