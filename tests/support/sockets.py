"""A provider to talk to over WebSockets, a ledger with prices for it, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from askii_middleware import Budget
from askii_middleware.pricing import ModelPrice

from ..providers.support import CORPUS
from .ledgers import Ledger, ledger

LIVE_PATH = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
SECRET = "sk-askii-" + "k" * 43
BROKE = [Budget(scope="tenant=*", limit_usd=0)]
CREATE = {"type": "response.create", "model": "mini", "input": "hi"}
PRICES = {
    # 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
    name: ModelPrice(
        input_usd_per_mtok=1,
        output_usd_per_mtok=10,
        max_output_tokens=100,
        context_window=1000,
        audio_usd_per_hour=3600,
    )
    for name in ("big", "ear")
} | {"mini": ModelPrice(input_usd_per_mtok="0.1", output_usd_per_mtok=1, max_output_tokens=100, context_window=1000)}
HOLD = 1000 * 1000 + 100 * 10_000
"""Nano-USD: the window's tokens and the longest answer, of `big` on a realtime socket without seconds."""
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
COST = 7 * 1000 + 3 * 10_000
App = Callable[[Any, Any, Any], Awaitable[None]]


class Provider:
    """A provider behind the middleware, as an ASGI application: answers each request of a client, by its API.

    Attributes:
        usage: what each response reports.
        breaks: raise in the middle of a response.
        hangs: never end a response.
    """

    def __init__(self, *, breaks: bool = False, hangs: bool = False) -> None:
        self.breaks = breaks
        self.hangs = hangs
        self.scopes: list[Any] = []
        self.frames: list[Any] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        number = 0
        try:
            while (message := await receive())["type"] == "websocket.receive":
                self.frames.append(message.get("text") or message.get("bytes"))
                event = json.loads(self.frames[-1])
                if event.get("type") == "response.create":
                    number += 1
                    await self.respond(f"r{number}", scope["path"], event, receive, send)
                elif "setup" in event:
                    await tell(send, {"setupComplete": {}})
                elif "client_content" in event or "clientContent" in event:
                    await self.speak(send)
        finally:
            self.ended.set()

    async def respond(self, name: str, path: str, event: Any, receive: Any, send: Any) -> None:
        done = "response.completed" if path.endswith("/responses") else "response.done"
        lane = {"stream_id": event["stream_id"]} if "stream_id" in event else {}
        begun = {"type": "response.created", "response": {"id": name, "status": "in_progress"}, **lane}
        await tell(send, begun)
        await tell(send, {"type": "response.output_text.delta", "response_id": name, "delta": "hello you", **lane})
        self.begun.set()
        if self.breaks:
            raise RuntimeError("the provider broke")
        if self.hangs:
            assert (await receive())["type"] == "websocket.disconnect"
            raise ConnectionError("the client is gone")
        await tell(send, {"type": done, "response": {"id": name, "status": "completed", "usage": USAGE}, **lane})

    async def speak(self, send: Any) -> None:
        await tell(send, {"serverContent": {"modelTurn": {"parts": [{"text": "hello"}]}}})
        counts = {"promptTokenCount": 7, "responseTokenCount": 3, "totalTokenCount": 10}
        await tell(send, {"serverContent": {"turnComplete": True}, "usageMetadata": counts})


async def tell(send: Any, event: Any) -> None:
    await send({"type": "websocket.send", "text": json.dumps(event)})


def replaying(lines: list[dict[str, Any]]) -> App:
    """A provider that says what it once said, when the client has said what it once said."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        for line in lines:
            if line["direction"] == "received":
                kind = "bytes" if "serverContent" in line["data"] else "text"
                frame = json.dumps(line["data"], ensure_ascii=False)
                await send({"type": "websocket.send", kind: frame.encode() if kind == "bytes" else frame})
            else:
                assert json.loads((await receive())["text"]) == line["data"]
        assert (await receive())["type"] == "websocket.disconnect"

    return app


@contextlib.asynccontextmanager
async def booked(**options: Any) -> AsyncIterator[Ledger]:
    async with ledger(**{"prices": PRICES, "budgets": [Budget(scope="tenant=*", limit_usd=10)], **options}) as book:
        yield book


@contextlib.asynccontextmanager
async def socket_to(url: str, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect("ws" + url.removeprefix("http") + path, proxy=None, **options) as socket:
        yield socket


async def ask(socket: ClientConnection, event: Any, last: str = "response.done") -> list[Any]:
    """Send a request and take the events until its last one."""
    await socket.send(json.dumps(event))
    got: list[Any] = []
    while not got or (got[-1].get("type") != last and "usageMetadata" not in got[-1]):
        got.append(json.loads(await socket.recv()))
    return got


async def until_closed(socket: ClientConnection) -> list[Any]:
    got = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            got.append(json.loads(await socket.recv()))
    return got


async def soon_nothing_held(book: Ledger) -> bool:
    async with asyncio.timeout(5):
        while (await book.totals()).held_nano_usd:
            await asyncio.sleep(0.005)
    return True


def mini_hold() -> int:
    """The same of `mini`."""
    return HOLD // 10


def recorded() -> list[dict[str, Any]]:
    """The recorded sessions of the corpus; none where it is not here."""
    manifest = CORPUS / "manifest.json"
    if not manifest.exists():
        return []
    return [entry for entry in json.loads(manifest.read_text())["entries"] if entry["http_status"] == 101]
