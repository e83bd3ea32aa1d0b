"""This process's standing with the ledger: open, alive, with a place for every charge, delivering what is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .alerts import lease_of
from .errors import StoreError
from .log_fields import fields
from .registrations import register
from .stores.base import DeadWorkerError
from .writer import NoPlaceError

if TYPE_CHECKING:
    from .budgets import BudgetIndex
    from .channels.base import AlertChannel
    from .delivery import DeliveryLoop
    from .item_watch import ItemWatcher
    from .logs import EventLog
    from .metrics import Metrics
    from .sinks.base import Sink
    from .stores.base import Store
    from .writer import LedgerWriter

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECONNECT_S = 1.0
MAX_BEAT_S = 15.0


def worker_name() -> str:
    """A name no other worker has, living or dead."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:16]}"


class Session:
    """Starts, keeps alive and ends the work on one store. Times here are monotonic: they bound our own trust.

    It belongs to one event loop at a time. When that is gone (a second `asyncio.run`, a fork), the next use opens it
    again on the loop that runs then.

    Args:
        new_delivery: makes a delivery loop for the given owner; asked at each start, because an owner is one process
            and a loop's tasks belong to one event loop.
        watcher: follows the named values of the store for as long as the session lives.
        upkeep: what else every heartbeat does, in order. They raise StoreError and TimeoutError.
    """

    def __init__(
        self,
        store: Store,
        index: BudgetIndex,
        writer: LedgerWriter,
        metrics: Metrics,
        *,
        sinks: Sequence[Sink],
        channels: Sequence[AlertChannel],
        new_delivery: Callable[[str], DeliveryLoop],
        watcher: ItemWatcher,
        hold_ttl_s: float,
        outbox_max_pending: int,
        upkeep: Sequence[Callable[[], Coroutine[Any, Any, None]]],
        log: EventLog,
    ) -> None:
        self._store = store
        self._index = index
        self._writer = writer
        self._metrics = metrics
        self._sinks = tuple(sinks)
        self._channels = tuple(channels)
        self._new_delivery = new_delivery
        self._delivery: DeliveryLoop | None = None
        self._watcher = watcher
        self._hold_ttl_s = hold_ttl_s
        self._outbox_max_pending = outbox_max_pending
        self._upkeep = tuple(upkeep)
        self._log = log
        self._outbox_full = False
        self._users = 0
        self._alive_until_s = 0.0
        self._next_try_s = 0.0
        self._background: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._beating = asyncio.Lock()
        self._pid = 0
        self._trouble = asyncio.Event()
        """The store has failed since the last heartbeat: the next one is not to be waited for."""
        writer.on_waiting = self._trouble_met
        self._moved = False
        """The sinks may still have connections of an event loop that is gone."""
        self.worker = worker_name()
        self.is_ready = False
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop it belongs to, from the first attempt to open it until it is closed."""

    @property
    def running_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that serves this session, if that can be waited for."""
        loop = self.loop
        return loop if loop is not None and self._pid == os.getpid() and loop.is_running() else None

    # Start and stop -----------------------------------------------------------------------------------------------

    async def start(self, *, strict: bool) -> None:
        """Open the ledger and start heartbeat and delivery. Without `strict` an unreachable store is tried again at
        every call and every heartbeat.
        """
        self._users += 1
        try:
            await self.ready()
        except StoreError as error:
            if not strict:
                logger.error(  # noqa: TRY400
                    "the ledger %s is not reachable: %s",
                    self._store.url,
                    error,
                    extra=fields("store_unreachable", store=self._store.url),
                )
                self._tend_in_background()
                return
            self._users -= 1
            if not self._users and self._background is None:
                await self._close()
            raise
        except BaseException:
            self._users -= 1
            raise

    def leave(self) -> bool:
        """One user less. True: it was the last, and everything is to be stopped."""
        self._users = max(self._users - 1, 0)
        return self._users == 0

    async def stop(self, flush_s: float) -> None:
        """Write and deliver what is left within `flush_s`, then close. Cut short, it closes all the same. Whoever
        started meanwhile finds it open again.
        """
        try:
            if self.loop is asyncio.get_running_loop():
                await self._end_background()
                await self._writer.drain(flush_s)
                if self.is_ready:
                    async with asyncio.timeout(flush_s):
                        await self._writer.replay()
                delivery, self._delivery = self._delivery, None
                if delivery is not None:
                    await delivery.stop(flush_s)
        except TimeoutError:
            logger.warning(
                "not everything could be written within %g s; the rest waits for the next start",
                flush_s,
                extra=fields("stop_incomplete", waited_s=flush_s),
            )
        finally:
            await self._close()
        if self._users:
            await self.ready()

    async def _close(self) -> None:
        """Let go of everything, each thing even if another one resists."""
        delivery, self._delivery = self._delivery, None
        self.is_ready = False
        async with contextlib.AsyncExitStack() as stack:
            for sink in self._sinks:
                stack.push_async_callback(sink.close)
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._writer.close)
            if self.loop is asyncio.get_running_loop():
                if delivery is not None:
                    stack.push_async_callback(delivery.stop, 0.0)
                stack.push_async_callback(self._end_background)
            self.loop = self._background = self._watching = None
        self._metrics.flush()

    async def _end_background(self) -> None:
        ending = [task for task in (self._background, self._watching) if task is not None]
        self._background = self._watching = None
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def _come_here(self) -> None:
        """Belong to the running event loop. Raises RuntimeError while another one still serves this tracker."""
        here = asyncio.get_running_loop()
        if self.loop is here:
            return
        forked = self._pid != os.getpid()
        if self.running_loop is not None:
            raise RuntimeError(
                "this tracker already runs on another event loop, in another thread: give each loop a tracker of its "
                "own, or call from synchronous code with @tracked, which finds the right loop"
            )
        if forked:
            self.worker = worker_name()
            self._alive_until_s = 0.0
        self._pid = os.getpid()
        self._moved = self._moved or self.loop is not None
        self.loop = here
        self.is_ready = False
        self._background = self._watching = self._delivery = None
        self._watcher.come_here()
        self._next_try_s = 0.0
        self._opening = asyncio.Lock()
        self._beating = asyncio.Lock()
        self._trouble = asyncio.Event()

    # Standing -----------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Open the ledger unless it is open. Raises StoreError at once while a failed try is a moment ago."""
        if self.is_ready and self.loop is asyncio.get_running_loop():
            return
        self._come_here()
        async with self._opening:
            if self.is_ready:
                return
            self._check_patience()
            try:
                await self._open()
            except StoreError:
                self._next_try_s = time.monotonic() + RECONNECT_S
                raise
            self.is_ready = True
        self._delivery = self._new_delivery(worker_name())
        self._delivery.start()
        self._tend_in_background()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watcher.run(), name="askii-items")

    def _check_patience(self) -> None:
        """Whoever queued behind a failed try gets its error, instead of a time-out of its own."""
        if time.monotonic() < self._next_try_s:
            raise StoreError(f"the ledger {self._store.url} is not reachable; trying again within a second")

    async def _open(self) -> None:
        if self._moved:
            for sink in self._sinks:
                # To close a connection of an event loop that is gone may fail; what counts is that it is let go.
                with contextlib.suppress(Exception):
                    await sink.close()
            self._moved = False
        await self._writer.open()
        await self._store.open()
        await self._beat()
        self._index.update(*await self._store.forms())
        await self._watcher.look()  # before any call: a tenant may be suspended since long
        await register(self._store, [sink.name for sink in self._sinks])
        await self._store.register_channels([lease_of(channel) for channel in self._channels])

    def wake(self) -> None:
        """Something new is in the outbox."""
        if self._delivery is not None:
            self._delivery.wake()

    async def flush(self, timeout_s: float) -> None:
        """Write and deliver what waits, within `timeout_s`."""
        await self._writer.drain(timeout_s)
        await self._writer.replay()
        if self._delivery is not None:
            await self._delivery.flush(timeout_s)

    async def can_hold(self) -> None:
        """Raise NoPlaceError where a new call's charge would find no place, other StoreErrors where the store is away;
        refresh a stale heartbeat.
        """
        away: StoreError | None = None
        if not self.is_ready or self.loop is not asyncio.get_running_loop():
            try:
                await self.ready()
            except StoreError as error:
                away = error
        refusal = self._writer.refuses
        if refusal is None and self._outbox_full:
            refusal = "the outbox is full: records wait for their sinks (see askii_outbox_pending)"
        if refusal is not None:
            raise NoPlaceError(refusal) from away
        if away is not None:
            raise away
        if time.monotonic() > self._alive_until_s:
            await self._beat_unless(lambda: time.monotonic() <= self._alive_until_s)

    async def _beat_unless(self, done: Callable[[], bool]) -> None:
        """One heartbeat for all calls that need one."""
        async with self._beating:
            if done():
                return
            self._check_patience()
            try:
                await self._beat()
            except StoreError:
                self._next_try_s = time.monotonic() + RECONNECT_S
                raise

    async def as_worker(self, ask: Callable[[str], Coroutine[Any, Any, T]]) -> T:
        """Ask the store under this worker's name. Where the store takes it for dead, perhaps because the machine slept,
        go on under a new one.
        """
        worker = self.worker
        try:
            return await ask(worker)
        except DeadWorkerError:
            await self._beat_unless(lambda: self.worker != worker)
            return await ask(self.worker)

    def _tend_in_background(self) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.get_running_loop().create_task(self._tend(), name="askii-heartbeat")

    async def _tend(self) -> None:
        """Heartbeats, journals, the outbox bound and operations, for as long as the session lives."""
        calm_s = min(self._hold_ttl_s / 4, MAX_BEAT_S)
        while True:
            try:
                await self.ready()
                async with self._beating:
                    await self._beat()
                await self._writer.replay()
                await self._writer.adopt_orphans()
                waiting = await self._store.pending()
                self._outbox_full = any(count >= self._outbox_max_pending for count in waiting.values())
                for tend in self._upkeep:
                    await tend()
            except (StoreError, TimeoutError) as error:
                self._metrics.store_error("heartbeat")
                self._log.store_failed("heartbeat", error)
            except Exception:  # without heartbeats every hold would expire
                self._metrics.store_error("heartbeat")
                logger.exception("heartbeat", extra=fields("heartbeat_failed"))
            self._metrics.flush()
            self._log.tick()
            troubled = self._writer.waiting or self._outbox_full or not self.is_ready
            if not troubled and not await self._is_troubled_within(calm_s):
                continue
            await asyncio.sleep(min(calm_s, RECONNECT_S))
            self._trouble.clear()

    def _trouble_met(self) -> None:
        self._trouble.set()

    async def _is_troubled_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._trouble.wait()
        except TimeoutError:
            return False
        return True

    async def _beat(self) -> None:
        """Keep our holds alive. Where they had expired, they will settle as late, and we go on under a new name."""
        before_s = time.monotonic()
        if not await self._store.heartbeat(self.worker, self._hold_ttl_s):
            if self._alive_until_s:
                self._metrics.lost_lease()
            self.worker = worker_name()
            await self._store.heartbeat(self.worker, self._hold_ttl_s)
        self._metrics.lost_holds(self._store.lost_holds)
        # Our own deadline comes first, so that we never hold under a name the store has given up.
        self._alive_until_s = before_s + self._hold_ttl_s * 0.9
