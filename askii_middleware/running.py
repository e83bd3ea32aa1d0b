"""The life of a tracker: opening the ledger, delivery and heartbeat beside it, flushing and closing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from .deferrals import Deferrals
from .fallbacks import Fallbacks
from .logs import EventLog
from .pricing import PriceBook
from .session import Session
from .stores.base import Store
from .tokens import warm as warm_tokenizer
from .writer import LedgerWriter


class Running:
    """Mixed into `CostTracker`; uses its ledger, its writer and what runs beside them."""

    store: Store
    prices: PriceBook
    fallbacks: Fallbacks
    deferrals: Deferrals
    log: EventLog
    unknown_price: str
    _session: Session
    _writer: LedgerWriter

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *, strict: bool = True) -> None:
        """Open the ledger and start heartbeat and delivery. Counted: as many `stop`s as `start`s end it.

        Without `strict` an unreachable store is no error: it is tried again at every call and every heartbeat.
        Raises StoreError, and ConfigurationError for fallbacks that cannot work.
        """
        # What takes long to load is loaded now and in a thread, so that no call waits for it on the event loop.
        await asyncio.to_thread(self._warm_up)
        self.fallbacks.check(unpriced_allowed=self.unknown_price != "reject")
        await self._session.start(strict=strict)

    async def stop(self, *, flush_s: float = 5.0) -> None:
        """Settle what is pending, flush what can be delivered within `flush_s`, and close. What is left stays in the
        outbox.
        """
        if not self._session.leave():
            return
        try:
            await self.deferrals.finish_all(flush_s)
        finally:
            await self._session.stop(flush_s)
            self.log.flush()

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Write and deliver what waits, within `timeout_s`. What is left stays where it is."""
        await self._session.flush(timeout_s)

    @property
    def journal_path(self) -> Path | None:
        """What the files begin with where charges wait while the store is away; None: they wait in memory."""
        return self._writer.journal_path

    @property
    def rejected_path(self) -> Path | None:
        """The file of charges that the ledger could never take, if there are any."""
        return self._writer.rejected_path

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The running event loop that serves this tracker, while it is open."""
        return self._session.running_loop

    def _warm_up(self) -> None:
        self.prices.warm()
        warm_tokenizer()

    async def ready(self) -> None:
        """Open the ledger if it is not open yet. Raises StoreError."""
        await self._session.ready()

    async def ping(self) -> None:
        """Raise StoreError unless calls can be admitted and charged."""
        await self._session.can_hold()
        await self.store.ping()

    def journalled(self) -> tuple[int, int]:
        """Charges that wait on this machine for the ledger, and their bytes. Blocks: call it from threads."""
        return self._writer.journalled()
