"""The tracker's life within a server's: it starts before the application does and stops after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .tracker import CostTracker

_ENDS = ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed")


async def run_lifespan(app: ASGIApp, tracker: CostTracker, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a lifespan through. An application that does not know lifespans raises, and its server goes on without:
    the tracker then starts with the first request.
    """
    running = False

    async def stop() -> None:
        nonlocal running
        if running:
            running = False
            await tracker.stop()

    async def watch_receive() -> Message:
        nonlocal running
        message = await receive()
        if message["type"] == "lifespan.startup" and not running:
            running = True
            await tracker.start(strict=False)
        return message

    async def watch_send(message: Message) -> None:
        if message["type"] in _ENDS:
            await stop()
        await send(message)

    try:
        await app(scope, watch_receive, watch_send)
    finally:
        await stop()
