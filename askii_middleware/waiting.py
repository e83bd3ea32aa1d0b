"""Waiting with a bound that costs nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def bounded(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Await `work` for at most `timeout_s`. Raises TimeoutError, with `work` cancelled.

    A store mostly answers without suspending: setting up and taking down a timer would then cost more than the answer.
    So the coroutine makes its first step here, and only if it suspends is the rest of it awaited under a timer, in
    the same task.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(timeout_s):
        return await _rest(work, waits_for)


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has begun and waits for something, as `await` would."""
    while True:
        resume: Callable[[], Any]
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001 - belongs to the coroutine
            thrown = error
            resume = lambda: work.throw(thrown)  # noqa: E731, B023 - called at once
        else:
            resume = lambda: work.send(value)  # noqa: E731, B023 - as above
        try:
            waits_for = resume()
        except StopIteration as done:
            result: T = done.value
            return result
