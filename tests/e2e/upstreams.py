"""The other side of the gateway: the simulated provider, served from a thread and watched."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.servers import serving

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Seen:
    """One request as it reached the upstream."""

    path: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the upstream was told that its client has gone."""


class Watched:
    """An application whose requests are written down. Lists may be read from any thread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.seen: list[Seen] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = Seen(scope["path"], dict(scope["headers"]))
        self.seen.append(seen)

        async def watch() -> Message:
            message = await receive()
            seen.body += message.get("body", b"")
            if message["type"] == "http.disconnect":
                seen.left.set()
            return message

        await self._app(scope, watch, send)


@contextlib.contextmanager
def in_thread(app: Any) -> Iterator[str]:
    """Serve an application in a thread with an event loop of its own; yields its base URL."""
    urls: queue.Queue[str] = queue.Queue()
    stop = threading.Event()

    async def serve() -> None:
        async with serving(app) as url:
            urls.put(url)
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield urls.get(timeout=10)
    finally:
        stop.set()
        thread.join()
