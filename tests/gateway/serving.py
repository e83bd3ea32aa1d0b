"""Real servers on loopback: an ASGI application under uvicorn, raw bytes under asyncio, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from askii_middleware.gateway import Proxy, Upstream

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"


class _Server(uvicorn.Server):
    """Stops as soon as its connections and tasks are done, where uvicorn looks every tenth of a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()
        self.ready = asyncio.Event()

    async def main_loop(self) -> None:
        self.ready.set()
        await self.stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not self.server_state.connections and not self.server_state.tasks, 1)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@asynccontextmanager
async def serving(app: ASGIApp, **options: Any) -> AsyncIterator[str]:
    """`app` under uvicorn on a free port; yields its address without a trailing slash."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        **options,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait_for(server.ready.wait(), 5)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stopping.set()
        await task


@asynccontextmanager
async def raw_upstream(handler: Handler) -> AsyncIterator[str]:
    """A TCP server whose every connection is given to `handler` and then closed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(raw: bytes) -> Handler:
    """Reads a request's head and answers with these bytes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return handler


@asynccontextmanager
async def proxied(upstream_url: str, **options: Any) -> AsyncIterator[tuple[str, Proxy]]:
    """A gateway in front of one upstream; yields its address and the proxy itself."""
    upstream = Upstream(name="up", url=upstream_url, api_key=options.pop("api_key", "sk-up"))
    proxy = Proxy([upstream], **options)
    async with serving(proxy) as url:
        yield url, proxy


def http_client(**options: Any) -> httpx.AsyncClient:
    """A client for loopback: loads no certificates, heeds no proxy settings."""
    return httpx.AsyncClient(verify=False, trust_env=False, timeout=20, **options)


async def exchange(url: str, request: bytes) -> bytes:
    """Sends these bytes and returns all that comes back until the server closes the connection."""
    reader, writer = await connect(url)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def eventually(condition: Callable[[], bool], within_s: float = 2.0) -> None:
    """Fails unless `condition` comes true in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


class Recorder:
    """An upstream that remembers every request and answers as told."""

    def __init__(
        self, *, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = (), body: bytes = b"ok"
    ) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self._status = status
        self._headers = [*headers, (b"content-length", b"%d" % len(body))]
        self._body = body

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The last request's."""
        return list(self.scopes[-1]["headers"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.scopes.append(scope)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})


class Stuck:
    """A raw upstream that sends `first` and then nothing, and notices when its peer goes away."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.reached = asyncio.Event()
        self.left = asyncio.Event()
        self.received = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received = await reader.readuntil(b"\r\n\r\n")
        writer.write(self.first)
        self.reached.set()
        try:
            while part := await reader.read(65536):
                self.received += part
        except ConnectionError:
            pass
        self.left.set()
