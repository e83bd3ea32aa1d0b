"""`metrics_port`: a listener of its own that serves nothing but metrics, beside whatever serves the application.

It takes one request per connection and knows just enough of HTTP for a scraper. Every worker listens on the same port,
and the system gives each connection to one of them: any of them can answer, and none is missed when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .log_fields import fields
from .scraping import exposition, may_scrape

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .tracker import CostTracker

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
HEAD_S = 5.0
ANSWER_S = 30.0
MAX_CONNECTIONS = 16
_STATUS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_TEXT = "text/plain; charset=utf-8"
Answer = tuple[int, bytes, str]


class MetricsListener:
    """Serves a tracker's metrics on a port.

    Args:
        token: what `Authorization: Bearer …` must show, if anything.
        shared: other workers listen on the same port.
    """

    def __init__(
        self, tracker: CostTracker, host: str, port: int, *, token: str | None = None, shared: bool = False
    ) -> None:
        self._tracker = tracker
        self._address = host, port
        self._token = token
        self._shared = shared
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that was bound; useful where 0 was asked for."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Raises ConfigurationError where nobody can listen there."""
        host, port = self._address
        try:
            self._server = await asyncio.start_server(
                self._serve, host or None, port, limit=MAX_HEAD_BYTES, reuse_port=self._shared or None
            )
        except OSError as error:
            raise ConfigurationError(f"metrics_port: cannot listen on {host} port {port}: {error.strerror}") from None

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for task in self._open:
                task.cancel()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(ANSWER_S):
                status, body, content_type = await self._answer(head)
                writer.write(_head(status, len(body), content_type))
                if not head.startswith(b"HEAD "):
                    writer.write(body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            logger.debug("metrics: a connection ended with %r", error, extra=fields("metrics_connection_failed"))
        except asyncio.CancelledError:
            # Nobody waits for this task.
            logger.debug("metrics: the listener ends", extra=fields("metrics_listener_ended"))
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> Answer:
        if len(self._open) > MAX_CONNECTIONS:
            return 503, b"too many scrapes at once\n", _TEXT
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        if not rest.partition(" ")[2].startswith("HTTP/1."):
            return 400, b"not HTTP/1\n", _TEXT
        if method not in ("GET", "HEAD"):
            return 405, b"metrics are read with GET\n", _TEXT
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if not may_scrape(headers.get("authorization", "").encode("latin-1"), self._token):
            return 401, b"a token is needed\n", _TEXT
        try:
            return 200, *await exposition(self._tracker, headers.get("accept", ""))
        except Exception:  # the connection's own: the next scrape may fare better
            logger.exception("metrics", extra=fields("metrics_failed"))
            return 500, b"see the log\n", _TEXT


def _head(status: int, size: int, content_type: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {_STATUS[status]}",
        f"content-type: {content_type}",
        f"content-length: {size}",
        "connection: close",
        *(["www-authenticate: Bearer"] if status == 401 else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def with_listener(app: ASGIApp, listener: MetricsListener) -> ASGIApp:
    """`app`, whose lifespan is the listener's too. A listener that cannot start is a start that failed."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return

        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await listener.start()
                except ConfigurationError as error:
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        try:
            await app(scope, receive, started)
        finally:
            await listener.stop()

    return wrapped


def check_port(host: str, port: int) -> None:
    """Raise ConfigurationError where no worker could listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {host} port {port}: {error.strerror or error}"
        ) from None
