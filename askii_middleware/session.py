"""This process's standing with the ledger: open, alive, with a place for every charge, delivering what is due."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import StoreError

if TYPE_CHECKING:
    from .budgets import BudgetIndex
    from .delivery import DeliveryLoop
    from .metrics import Metrics
    from .stores.base import Store
    from .writer import LedgerWriter

logger = logging.getLogger(__name__)

RECONNECT_S = 1.0
MAX_BEAT_S = 15.0


def worker_name() -> str:
    """A name no other worker has, living or dead."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:16]}"


class Session:
    """Starts, keeps alive and ends the work on one store. Times here are monotonic: they bound our own trust."""

    def __init__(
        self,
        store: Store,
        index: BudgetIndex,
        writer: LedgerWriter,
        delivery: DeliveryLoop,
        metrics: Metrics,
        *,
        sinks: Sequence[str],
        hold_ttl_s: float,
        outbox_max_pending: int,
    ) -> None:
        self._store = store
        self._index = index
        self._writer = writer
        self._delivery = delivery
        self._metrics = metrics
        self._sinks = tuple(sinks)
        self._hold_ttl_s = hold_ttl_s
        self._outbox_max_pending = outbox_max_pending
        self._outbox_full = False
        self._users = 0
        self._alive_until_s = 0.0
        self._next_try_s = 0.0
        self._turn: asyncio.Lock | None = None
        self._background: asyncio.Task[None] | None = None
        self.worker = worker_name()
        self.is_ready = False
        self.loop: asyncio.AbstractEventLoop | None = None

    async def start(self, *, strict: bool) -> None:
        """Open the ledger and start heartbeat and delivery. Without `strict` an unreachable store is tried again at
        every call and every heartbeat.
        """
        self._users += 1
        try:
            await self.ready()
        except StoreError as error:
            if strict:
                self._users -= 1
                raise
            logger.error("the ledger %s is not reachable: %s", self._store.url, error)  # noqa: TRY400
            self._tend_in_background()

    async def leave(self) -> bool:
        """One user less. True: it was the last, and everything is to be stopped."""
        self._users = max(self._users - 1, 0)
        return self._users == 0

    async def stop(self, flush_s: float) -> None:
        """Write and deliver what is left within `flush_s`, then close."""
        await self._writer.drain(flush_s)
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
            self._background = None
        if self.is_ready:
            await self._writer.replay()
            await self._delivery.flush(flush_s)
            await self._delivery.stop(flush_s)
        await self._writer.close()
        await self._store.close()
        self.is_ready = False
        self.loop = self._turn = None

    async def ready(self) -> None:
        """Open the ledger unless it is open. Raises StoreError at once while a failed try is a moment ago."""
        if self.is_ready:
            return
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            if self.is_ready:
                return
            now_s = time.monotonic()
            if now_s < self._next_try_s:
                raise StoreError(f"the ledger {self._store.url} is not reachable; trying again within a second")
            self._next_try_s = now_s + RECONNECT_S
            await self._writer.open()
            await self._store.open()
            await self.beat()
            self._index.update(*await self._store.forms())
            await self._store.register_sinks(self._sinks)
            self.loop = asyncio.get_running_loop()
            self.is_ready = True
            self._next_try_s = 0.0
        self._delivery.start()
        self._tend_in_background()

    def _tend_in_background(self) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.get_running_loop().create_task(self._tend(), name="askii-heartbeat")

    async def _tend(self) -> None:
        """Heartbeats, journals and the outbox bound, for as long as the session lives."""
        calm_s = min(self._hold_ttl_s / 4, MAX_BEAT_S)
        while True:
            try:
                await self.ready()
                self._metrics.flush()
                await self.beat()
                await self._writer.replay()
                await self._writer.adopt_orphans()
                waiting = await self._store.pending()
                self._outbox_full = any(count >= self._outbox_max_pending for count in waiting.values())
            except (StoreError, TimeoutError) as error:
                self._metrics.store_error("heartbeat")
                logger.warning("heartbeat: %s", error)
            troubled = self._writer.waiting or not self.is_ready
            await asyncio.sleep(min(calm_s, RECONNECT_S) if troubled else calm_s)

    async def beat(self) -> None:
        """Keep our holds alive. Where they had expired, they will settle as late, and we go on under a new name."""
        before_s = time.monotonic()
        if not await self._store.heartbeat(self.worker, self._hold_ttl_s):
            if self._alive_until_s:
                self._metrics.lost_lease()
            self.worker = worker_name()
            await self._store.heartbeat(self.worker, self._hold_ttl_s)
        # Our own deadline comes first, so that we never hold under a name the store has given up.
        self._alive_until_s = before_s + self._hold_ttl_s * 0.9

    async def can_hold(self) -> None:
        """Raise StoreError where a new call's charge would find no place; refresh a stale heartbeat."""
        if not self.is_ready:
            await self.ready()
        refusal = self._writer.refuses
        if refusal is None and self._outbox_full:
            refusal = "the outbox is full: records wait for their sinks (see askii_outbox_pending)"
        if refusal is not None:
            raise StoreError(refusal)
        if time.monotonic() > self._alive_until_s:
            await self.beat()
