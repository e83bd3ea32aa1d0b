"""Named values of the store, such as suspended tenants, as every worker has them at hand: copies that follow the store
by asking about once a second what has changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .errors import StoreError
from .log_fields import fields
from .waiting import bounded

if TYPE_CHECKING:
    from .stores.base import Item, Store

logger = logging.getLogger(__name__)

Take = Callable[[Sequence["Item"]], None]
"""Gets all values of a kind, by name, whenever any of them has changed. Must not block."""


class ItemWatcher:
    """Hands the items of the kinds that are watched to those who want them.

    While the store is away nothing is handed on: what was handed on last stays in force.

    Attributes:
        every_s: how long a change made elsewhere may take to arrive here, besides the time of the answer.
    """

    def __init__(self, store: Store, *, every_s: float = 1.0, answer_timeout_s: float = 5.0) -> None:
        self._store = store
        self._answer_timeout_s = answer_timeout_s
        self._takers: dict[str, Take] = {}
        self._seen: dict[str, int] = {}
        self._looking = asyncio.Lock()
        self.every_s = every_s

    def watch(self, kind: str, take: Take) -> None:
        """From the next look on, call `take` with the items of a kind at first and after every change."""
        self._takers[kind] = take
        self._seen.pop(kind, None)

    async def look(self) -> None:
        """Ask what has changed, and hand it on. Raises StoreError, also where the store does not answer in time."""
        async with self._looking:
            try:
                await bounded(self._look(), self._answer_timeout_s)
            except TimeoutError:
                raise StoreError(f"the ledger {self._store.url} did not answer in time") from None

    async def _look(self) -> None:
        versions = await self._store.item_versions()
        for kind, take in list(self._takers.items()):
            # Asked for after its version: what changes in between is seen again at the next look.
            version = versions.get(kind, 0)
            if self._seen.get(kind, 0) != version:
                take(await self._store.items(kind))
                self._seen[kind] = version

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.every_s)
            try:
                await self.look()
            except StoreError as error:
                # The heartbeat says aloud that the store is away.
                logger.debug("named values were not read: %s", error, extra=fields("items_unread"))
            except Exception:  # one value that nobody can use must not end the rest
                logger.exception("named values were not read", extra=fields("items_unread"))

    def come_here(self) -> None:
        """Belong to the event loop that runs now."""
        self._looking = asyncio.Lock()
