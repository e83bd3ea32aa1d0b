"""Alerts to a function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from .base import AlertNotice, OneThread


class CallbackChannel:
    """Calls a function with each alert. An async one runs on the tracker's event loop, a plain one in a thread, so
    that it may block. What it raises means that it did not take the alert.
    """

    def __init__(
        self,
        callback: Callable[[AlertNotice], Awaitable[object]] | Callable[[AlertNotice], object],
        *,
        name: str = "callback",
    ) -> None:
        self.name = name
        self._callback = callback
        self._is_async = any(map(inspect.iscoroutinefunction, (callback, type(callback).__call__)))
        self._thread = OneThread()

    async def send(self, alert: AlertNotice) -> None:
        given = self._callback(alert) if self._is_async else await self._thread.run(lambda: self._callback(alert))
        if inspect.isawaitable(given):
            await given
