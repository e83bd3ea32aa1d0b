"""Settlements on their way out: the first at once, those that come in quick succession together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..stores.base import Settled, Settlement, UnwritableError

GATHER_S = 0.010
MOST = 100
FLIGHTS = 8
"""So many batches may be under way; further ones wait for one of them."""

Answer = asyncio.Future[Settled]


class SettleBatches:
    """Belongs to one event loop. A caller that gives up before its settlement is sent takes it back; it has to repeat
    it, as after any settlement that was not answered.

    Args:
        send: writes a batch, with one answer for each settlement.
    """

    def __init__(self, send: Callable[[list[Settlement]], Awaitable[list[Settled | UnwritableError]]]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Settlement, Answer]] = []
        self._timer: asyncio.Handle | None = None
        self._flights: set[asyncio.Task[None]] = set()
        self._next = self._loop.time()
        """From when on nothing needs to wait for company."""

    async def settle(self, settlement: Settlement) -> Settled:
        """Raises what the store raises."""
        answer: Answer = self._loop.create_future()
        self._waiting.append((settlement, answer))
        if len(self._waiting) >= MOST:
            self._flush()
        elif self._timer is None:
            now = self._loop.time()
            # Those of the same turn of the loop go together, too.
            wait = self._loop.call_soon if now >= self._next else lambda f: self._loop.call_later(self._next - now, f)
            self._timer = wait(self._flush)
        return await answer

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._flights) >= FLIGHTS:
            return  # the next one that lands comes back here
        batch = [entry for entry in self._waiting[:MOST] if not entry[1].done()]
        del self._waiting[:MOST]
        self._next = self._loop.time() + GATHER_S
        if batch:
            flight = self._loop.create_task(self._fly(batch))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)
        if self._waiting:
            self._timer = self._loop.call_soon(self._flush)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if self._waiting and self._timer is None:
            self._flush()

    async def _fly(self, batch: list[tuple[Settlement, Answer]]) -> None:
        try:
            settled = await self._send([settlement for settlement, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if answer.done():
                    continue
                if isinstance(error, Exception):
                    answer.set_exception(error)
                else:
                    answer.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), outcome in zip(batch, settled, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, UnwritableError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    async def drain(self) -> None:
        """Wait until all that waits is answered."""
        while self._waiting or self._flights:
            self._flush()
            if self._flights:
                await asyncio.wait(self._flights)
