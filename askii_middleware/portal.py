"""Running a tracker's coroutines from synchronous code."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from .log_fields import fields

if TYPE_CHECKING:
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]

EXIT_S = 5.0
"""How long the end of the process waits for charges and deliveries."""


def run_sync(tracker: CostTracker, make: Make[T]) -> T:
    """Run a coroutine of a tracker and wait for it, from a thread without an event loop.

    A tracker that runs on some loop is served there; one that has not started gets the loop of a thread of its own,
    which ends with the process and stops the tracker then. Raises RuntimeError on the tracker's own loop, which cannot
    wait for itself.
    """
    loop = tracker.loop or _portal.loop_for(tracker)
    if _running_loop() is loop:
        raise RuntimeError(
            "a synchronous function under @tracked was called on the event loop that serves its tracker: call it in a "
            "thread (await asyncio.to_thread(...)), or make it async"
        )
    running = _submitted(loop, make)
    try:
        return running.result()
    except BaseException:
        # Interrupted, such as by Ctrl-C: what was begun here ends too. Where it has ended, this does nothing.
        running.cancel()
        raise


async def run_across(tracker: CostTracker, make: Make[T]) -> T:
    """Run a coroutine of a tracker on the event loop that serves it, as `run_sync` finds it, and wait without blocking
    the caller's own. Where the caller is cancelled, so is what runs there.
    """
    loop = tracker.loop or _portal.loop_for(tracker)
    if loop is asyncio.get_running_loop():
        return await make()
    return await asyncio.wrap_future(_submitted(loop, make))


def run_or_leave(tracker: CostTracker, make: Make[None]) -> None:
    """Like `run_sync`; on the tracker's own loop the coroutine runs soon after this has returned."""
    loop = _running_loop()
    if loop is None or loop is not tracker.loop:
        run_sync(tracker, make)
        return
    task = loop.create_task(make())
    _left.add(task)
    task.add_done_callback(_left.discard)


def _submitted(loop: asyncio.AbstractEventLoop, make: Make[T]) -> Future[T]:
    """A coroutine that runs on another loop, with the context variables of here: the request's belong to it."""
    context = contextvars.copy_context()

    async def in_context() -> T:
        return await asyncio.get_running_loop().create_task(make(), context=context)

    return asyncio.run_coroutine_threadsafe(in_context(), loop)


_left: set[asyncio.Task[None]] = set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Portal:
    """One thread with an event loop for all synchronous code of the process. A fork begins without one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trackers: WeakSet[CostTracker] = WeakSet()

    def loop_for(self, tracker: CostTracker) -> asyncio.AbstractEventLoop:
        with self._lock:
            self._trackers.add(tracker)
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="askii-portal", daemon=True)
                thread.start()
                pid = os.getpid()
                _before_exit(lambda: self._stop(loop, thread) if os.getpid() == pid else None)
            return self._loop

    def _stop(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        for tracker in list(self._trackers):
            if tracker.loop is loop:
                try:
                    asyncio.run_coroutine_threadsafe(tracker.stop(flush_s=EXIT_S / 2), loop).result(EXIT_S)
                except Exception:
                    logger.exception(
                        "the tracker of synchronous code could not be stopped cleanly", extra=fields("stop_failed")
                    )
        loop.call_soon_threadsafe(loop.stop)
        thread.join(EXIT_S)
        if not thread.is_alive():
            loop.close()


def _before_exit(stop: Callable[[], None]) -> None:
    """Call `stop` at the end of the process while threads can still be used; `atexit` alone comes after that."""
    getattr(threading, "_register_atexit", atexit.register)(stop)


_portal = _Portal()


def _after_fork() -> None:
    global _portal  # noqa: PLW0603 - the thread stayed in the parent process
    _portal = _Portal()


os.register_at_fork(after_in_child=_after_fork)
