"""Calls whose charge comes later than their end: each is finished once, when its counts are there or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

MAX_WAITING = 100_000
"""Beyond so many, the one that has waited longest is finished as it is."""

Finish = Callable[[], Coroutine[Any, Any, None]]


class _Waiting(NamedTuple):
    finish: Finish
    timer: asyncio.TimerHandle
    loop: asyncio.AbstractEventLoop


class Deferrals:
    """Waits on behalf of calls, without a task for each."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call_id: str, finish: Finish, after_s: float) -> None:
        """Run `finish` on this event loop after `after_s`, or earlier when `due` says so."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(after_s, self._finish, call_id)
        self._waiting[call_id] = _Waiting(finish, timer, loop)
        if len(self._waiting) > MAX_WAITING:
            self._finish(next(iter(self._waiting)))

    def due(self, call_id: str) -> bool:
        """Finish a call soon, from any thread. False: it has been finished before."""
        waiting = self._waiting.get(call_id)
        if waiting is None:
            return False
        if not waiting.loop.is_closed():
            waiting.loop.call_soon_threadsafe(self._finish, call_id)
        return True

    async def finish_all(self, timeout_s: float) -> None:
        """Finish what still waits, now."""
        for call_id in list(self._waiting):
            self._finish(call_id)
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)

    def _finish(self, call_id: str) -> None:
        waiting = self._waiting.pop(call_id, None)
        if waiting is not None:
            waiting.timer.cancel()
            task = asyncio.get_running_loop().create_task(waiting.finish())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
