"""Running the tracker's coroutines from synchronous code."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .tracker import CostTracker

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run_sync(tracker: CostTracker, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine of a tracker and wait for it, from a thread without an event loop.

    A tracker that runs on some loop is served there; one that has not started gets a loop in a thread of its own.
    Raises RuntimeError on the tracker's own loop, which cannot wait for itself.
    """
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    loop = tracker.loop if tracker.loop is not None and not tracker.loop.is_closed() else _portal_loop()
    if running is loop:
        raise RuntimeError(
            "a synchronous function under @tracked was called on the event loop that serves its tracker: call it in a "
            "thread (await asyncio.to_thread(...)), or make it async"
        )
    context = contextvars.copy_context()

    async def in_context() -> T:
        # The request's context variables belong to the calling thread.
        return await asyncio.get_running_loop().create_task(make(), context=context)

    return asyncio.run_coroutine_threadsafe(in_context(), loop).result()


def _portal_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603 - one thread serves all synchronous code of the process
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_loop.run_forever, name="askii-portal", daemon=True)
            thread.start()
            atexit.register(_stop, _loop, thread)
        return _loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
