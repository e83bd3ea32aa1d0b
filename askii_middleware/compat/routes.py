"""`router`: the billing endpoints for a FastAPI application.

    app.include_router(router)

serves `/api/billing/…` of `tracker.api()` beside the application's own routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from ..errors import MissingExtraError
from ..portal import run_across
from . import homes

try:
    from fastapi import APIRouter
except ImportError as error:
    raise MissingExtraError("fastapi", "askii_middleware.compat.router") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..tracker import CostTracker

METHODS = ["GET", "PUT", "POST", "DELETE"]


class Billing:
    """`tracker.api()` on the event loop of the process's tracker, which need not be the application's."""

    def __init__(self) -> None:
        self._apps: dict[CostTracker, ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracker, here = homes.default(), asyncio.get_running_loop()
        app = self._app(tracker)
        await run_across(tracker, lambda: _served(app, scope, _back(receive, here), _back(send, here)))

    def _app(self, tracker: CostTracker) -> ASGIApp:
        """One for each tracker, of which a process has one."""
        if tracker not in self._apps:
            from .configuration import guide_settings  # noqa: PLC0415 - settings are read at the first request

            token = guide_settings().api.admin_token
            self._apps[tracker] = tracker.api(token.get_secret_value() if token else None, dashboard=False)
        return self._apps[tracker]


async def _served(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def _back(function: Callable[..., Awaitable[Any]], home: asyncio.AbstractEventLoop) -> Callable[..., Awaitable[Any]]:
    """A server's function, which is to be called on the server's event loop, for calls from any."""

    async def call(*values: Any) -> Any:
        if asyncio.get_running_loop() is home:
            return await function(*values)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(function(*values)), home))

    return call


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


router = APIRouter()
router.routes.append(Route("/api/billing/{path:path}", Billing(), methods=METHODS, include_in_schema=False))
