"""Requests that would have to wait for each other's locks travel together instead, as one transaction: one that finds
the way free takes along all that wait, so under load a hot counter is locked and committed once for many calls.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ...errors import StoreError

Q = TypeVar("Q")
A = TypeVar("A")

LANES = 2
"""Transactions under way at once: one that waits for its answer, and one that the server works on."""


class Together(Generic[Q, A]):
    """No task of its own: whoever asks first sends for those who wait.

    Args:
        send: answers requests in order, each by itself. Requests may be sent again.
        most: requests of one transaction.
        timeout_s: bounds each request, from asking to its answer; after it StoreError.
    """

    def __init__(self, send: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], *, most: int, timeout_s: float) -> None:
        self._send = send
        self._most = most
        self._timeout_s = timeout_s
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._forget()

    def _forget(self) -> None:
        self._busy = 0
        self._waiting: list[tuple[Q, asyncio.Future[A | None]]] = []

    def _adopt(self, home: tuple[int, asyncio.AbstractEventLoop]) -> None:
        """Belong to this process and event loop: what another one had under way that is over, it took with it."""
        if home == self._home:
            return
        is_alive = self._home is not None and self._home[0] == home[0] and self._home[1].is_running()
        if is_alive and (self._busy or self._waiting):
            raise StoreError("the ledger is in use by another event loop: open a store for each")
        self._home = home
        self._forget()

    async def ask(self, request: Q) -> A:
        """Raises StoreError, and what `send` raises."""
        loop = asyncio.get_running_loop()
        self._adopt((os.getpid(), loop))
        try:
            async with asyncio.timeout(self._timeout_s) as bound:
                while self._busy >= LANES:
                    answer = await self._follow(request, loop.create_future())
                    if answer is not None:
                        return answer
                return await self._lead(request)
        except TimeoutError:
            if not bound.expired():
                raise
            raise StoreError(
                f"the ledger did not answer within {self._timeout_s:g} s: see whether the server is reachable and not "
                "overloaded, or raise the time-out"
            ) from None

    async def _follow(self, request: Q, answer: asyncio.Future[A | None]) -> A | None:
        """None: whoever sent it could not finish, or the way is free."""
        waiter = request, answer
        self._waiting.append(waiter)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._busy < LANES:  # it may have been the one that was woken
                self._wake(but=waiter)
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    async def _lead(self, request: Q) -> A:
        # One that was woken or gave up sends for itself, or not at all.
        waiting = [waiter for waiter in self._waiting if not waiter[1].done()]
        taken, self._waiting = waiting[: self._most - 1], waiting[self._most - 1 :]
        answers: Sequence[A] | None = None
        failed: Exception | None = None
        self._busy += 1
        try:
            answers = await self._send([request, *(asked for asked, _ in taken)])
        except StoreError as error:
            failed = error
            raise
        finally:
            self._busy -= 1
            for place, (_, future) in enumerate(taken, 1):
                if future.done():
                    continue
                if failed is not None:
                    future.set_exception(failed)
                else:
                    future.set_result(None if answers is None else answers[place])
            self._wake()
        return answers[0]

    def _wake(self, but: object = None) -> None:
        """Let the first of those who wait send for the others."""
        for waiter in self._waiting:
            if waiter is not but and not waiter[1].done():
                waiter[1].set_result(None)
                return
