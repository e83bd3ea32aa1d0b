"""A shared ledger with leases: calls are admitted here, from credit that was drawn ahead of need, where there is enough
of it on all their budgets; every other call goes to the store, as without leases.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from math import inf

from ..admission import Admission, ExtendRequest, Extension, ReserveRequest
from ..budgets import Budget
from ..errors import ConfigurationError, StoreError
from ..log_fields import fields
from ..stores.base import (
    DeadWorkerError,
    Operation,
    Settled,
    Settlement,
    ShortCreditError,
    StaleFormsError,
    Store,
    UnwritableError,
)
from ..waiting import bounded
from .batches import SettleBatches
from .book import LeaseBook
from .credit import LocalCall
from .delegating import DelegatingStore

logger = logging.getLogger(__name__)

CLOSE_S = 5.0


class LeasedStore(DelegatingStore):
    """See `Store`. Differences for a call that was admitted here: the store does not know it before it is settled,
    extended beyond the credit or deferred; if it is settled after its hold's deadline it still has its credit for ten
    minutes, so it is not late.

    Args:
        store: the shared ledger.
        lease_s: how long credit and what is known of budgets may be used after the store was asked; so budget edits
            take effect within this time.
        monotonic: seconds that no clock setting changes.
    """

    def __init__(self, store: Store, *, lease_s: float = 1.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        if store.url.startswith("memory://"):
            raise ConfigurationError(
                "lease: memory:// is one process's own, so there is nothing to lease; leave it out"
            )
        super().__init__(store)
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tending: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._store.open()
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():  # a fork must not spend its parent's credit
            self._pid = os.getpid()
            self._book = LeaseBook(self._lease_s)
        if self._loop is not loop:
            self._loop = loop
            self._batches = SettleBatches(self._store.settle_many)
            self._lane = asyncio.Lock()
            """Draws and promotions, one at a time."""
            self._wake = asyncio.Event()
            self._wakes_at = -inf
            self._tending = None

    async def close(self) -> None:
        """Send what waits and give everything back, within `CLOSE_S`."""
        try:
            if self._loop is asyncio.get_running_loop():
                self._loop = None
                async with asyncio.timeout(CLOSE_S):
                    await self._end_tending()
                    await self._batches.drain()
                    await self._draw(everything=True)
        except TimeoutError:
            logger.warning(
                "leases: the store did not answer; credit that lies here counts until its windows end",
                extra=fields("credit_kept"),
            )
        finally:
            await self._store.close()

    async def heartbeat(self, worker: str, ttl_s: float) -> bool:
        sent = self._monotonic()
        alive = await self._store.heartbeat(worker, ttl_s)
        self.lost_holds = self._store.lost_holds
        self._book.beat(worker, alive=alive, sent=sent, ttl_s=ttl_s)
        return alive

    async def set_budget(self, budget: Budget) -> None:
        await self._store.set_budget(budget)
        self._book.lapse()

    async def remove_budget(self, key: str) -> bool:
        removed = await self._store.remove_budget(key)
        self._book.lapse()
        return removed

    # Calls -----------------------------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> Admission:
        admission = self._book.admit(request, self._monotonic())
        if admission is None:
            return await self._directly(request)
        if self._book.hungry:
            self._hurry()
        return admission

    async def _directly(self, request: ReserveRequest) -> Admission:
        old = self._book.open_call(request.replaces)
        if old is not None:
            await self._tell(old)
        admission = await self._store.reserve(request)
        if admission.reason == "held" and await self._give_back(_counters(admission)):
            admission = await self._store.reserve(request)
        if old is not None and admission.candidate is not None:
            self._book.release(old.id)
        self._book.missed(request, admission, self._monotonic())
        self._hurry()
        return admission

    async def extend(self, request: ExtendRequest) -> Extension:
        extension = self._book.extend(request, self._monotonic())
        if extension is not None:
            return extension
        call = self._book.open_call(request.call_id)
        if call is not None:
            await self._promote(call)
        # An extension that was refused cannot be repeated, so what could be in its way goes back before.
        scarce = self._book.scarce(request.matches, request.target_nano_usd)
        if scarce:
            await self._give_back(scarce)
        return await self._store.extend(request)

    def attributed(self, settlement: Settlement) -> Settlement:
        return settlement if self._pid != os.getpid() else self._book.charge(settlement)

    async def settle(self, settlement: Settlement) -> Settled:
        charged = self._book.charge(settlement)
        try:
            settled = await self._batches.settle(charged)
        except UnwritableError:
            self._book.settled(settlement.call_id, written=False)
            raise
        self._book.settled(settlement.call_id)
        return settled

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Settled | UnwritableError]:
        answers = await self._store.settle_many([self._book.charge(settlement) for settlement in settlements])
        for settlement, answer in zip(settlements, answers, strict=True):
            self._book.settled(settlement.call_id, written=not isinstance(answer, UnwritableError))
        return answers

    async def release(self, call_id: str) -> None:
        call = self._book.open_call(call_id)
        if call is not None and call.doubtful:
            await self._tell(call)  # once it surely is a hold, that can be released, and its credit is not in doubt
        if not self._book.release(call_id):
            await self._store.release(call_id)

    async def defer(self, operation: Operation) -> bool:
        call = self._book.open_call(operation.call_id)
        if call is not None:
            await self._tell(call)
        return await self._store.defer(operation)

    async def _tell(self, call: LocalCall) -> None:
        """Make a hold of a local call if that can be done; else it keeps its credit, and the store knows of no hold."""
        try:
            await self._promote(call)
        except StoreError as error:
            logger.info(
                "call %s: its credit could not be made a hold: %s",
                call.id,
                error,
                extra=fields("credit_unpromoted", call_id=call.id),
            )

    async def _promote(self, call: LocalCall) -> None:
        async with self._lane:
            if self._book.open_call(call.id) is not call:
                return
            try:
                await self._promote_once(call)
            except ShortCreditError:
                await self._ask()  # which tells what there is, and brings more
                if self._book.open_call(call.id) is call:
                    await self._promote_once(call)

    async def _promote_once(self, call: LocalCall) -> None:
        doubtful, call.doubtful = call.doubtful, True  # until it is answered, whatever ends the wait
        try:
            await self._store.promote(self._book.promotion(call, self._monotonic()))
        except ShortCreditError:
            call.doubtful = doubtful  # an earlier one may still be on its way
            raise
        except DeadWorkerError:
            self._book.promoted(call, alive=False)
        else:
            self._book.promoted(call)

    # Drawing ---------------------------------------------------------------------------------------------------------

    def _hurry(self) -> None:
        """Something may have made a draw due earlier than it was."""
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._tend(), name="askii-leases")
        elif self._book.next_draw() < self._wakes_at:
            self._wake.set()

    async def _tend(self) -> None:
        while True:
            self._wakes_at = self._book.next_draw()
            wait_s = self._wakes_at - self._monotonic()
            if wait_s <= 0:
                await self._draw()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(None if wait_s == inf else wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _end_tending(self) -> None:
        tending, self._tending = self._tending, None
        if tending is not None:
            tending.cancel()
            await asyncio.wait([tending])

    async def _draw(self, *, everything: bool = False) -> None:
        async with self._lane:
            await self._ask(everything=everything)

    async def _give_back(self, counters: Collection[str]) -> bool:
        """True: there was idle credit on these counters, and it went back."""
        if not self._book.rest(counters, self._monotonic()):
            return False
        async with self._lane:  # of several calls that lack it the first gives back for all
            if self._book.rest(counters, self._monotonic()):
                await self._ask()
        return True

    async def _ask(self, *, everything: bool = False) -> None:
        """One draw for all busy budgets. Where it fails the credit lapses, and calls go to the store."""
        sent = self._monotonic()
        request = self._book.plan(sent, everything=everything)
        if request is None:
            return
        try:
            drawn = await bounded(self._store.draw(request), self._lease_s)
        except DeadWorkerError:
            self._book.forget()
        except StaleFormsError:
            self._book.outdated()
        except (StoreError, TimeoutError) as error:
            self._book.failed()
            logger.info("leases: %s", str(error) or "the store did not answer in time", extra=fields("draw_failed"))
        except Exception:
            self._book.failed()
            logger.exception("leases", extra=fields("draw_failed"))
        else:
            self._book.answered(request, drawn, sent=sent, received=self._monotonic())


def _counters(refusal: Admission) -> set[str]:
    """Those that a refusal is about."""
    found = {state.counter for state in refusal.states}
    if refusal.deciding is not None:
        found.add(refusal.deciding.counter)
    return found
