"""One WebSocket on its way through the gateway: to the upstream, back, and what can end it early.

Two loops pass messages on, one for each direction, each message when the one before it was taken: nothing queues up.
The upstream is reached before the client's opening is answered, so that its refusal can be passed on, unless the model
that decides where to go stands in the first frame: then the client is let in first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from .errors import MissingExtraError
from .gateway_call import RefusalError
from .gateway_upstreams import OWN_KEY_PREFIX, response_headers
from .log_fields import fields

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("gateway", "askii serve") from error

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 32 << 20
"""A larger message of an upstream closes the socket with 1009."""
CLOSE_TIMEOUT_S = 5.0
_KEY_SUBPROTOCOLS = ("openai-insecure-api-key.",)
"""Beginnings of subprotocols that carry a key, where a browser could set no header."""
_HANDSHAKE = frozenset(
    (
        *("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"),
        *("sec-websocket-accept", "connection", "upgrade", "content-length", "content-type", "date", "server"),
    )
)
"""Headers of one connection's opening, which each side makes for itself."""
_FIRST_FRAME_PATHS = ("/responses", "bidigeneratecontent", "bidigeneratecontentconstrained")
_UNSENDABLE = frozenset((1005, 1006, 1015))
"""Codes that only say that none was sent (RFC 6455, section 7.4.1)."""
NORMAL, GOING_AWAY, TOO_BIG, BROKEN = 1000, 1001, 1009, 1011

Connect = Callable[[str | None], Awaitable[aiohttp.ClientWebSocketResponse]]
"""Opens the upstream's side, given the model. Raises RefusalError, aiohttp.ClientError, OSError, TimeoutError."""


class _Named(msgspec.Struct):
    model: str | None = None
    setup: dict[str, msgspec.Raw] | None = None


_read_named = msgspec.json.Decoder(_Named).decode
_read_text = msgspec.json.Decoder(str).decode


class SocketCall:
    """One socket. `idle_timeout_s` is the longest time in which no message passes in either direction."""

    def __init__(self, receive: Receive, send: Send, *, idle_timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._idle_timeout_s = idle_timeout_s
        self._upstream: aiohttp.ClientWebSocketResponse | None = None
        self._accepted = False
        self._closed = False
        """The client's side has a close, from either end."""

    async def run(self, connect: Connect, model: str | None, *, reads_model: bool, offered: Sequence[str]) -> None:
        """Pass messages on until either side closes. Raises RefusalError as long as the client was not let in.

        Args:
            connect: opens the upstream's side.
            model: where it is known already.
            reads_model: it is to be read from the first frame.
            offered: the client's subprotocols.
        """
        message = await self._receive()
        if message["type"] != "websocket.connect":
            return
        first: Message | None = None
        try:
            if reads_model:
                await self._accept(next(iter(offered), None), ())
                first = await self._receive()
                if first["type"] == "websocket.disconnect":
                    return
                model = model_in(_content(first))
            self._upstream = upstream = await self._connect(connect, model)
            if not self._accepted:
                await self._accept(upstream.protocol, _headers_of(upstream))
            if first is not None:
                await _forward(upstream, first)
            await self._pass_on(upstream)
        except RefusalError as refusal:
            if not self._accepted:
                raise
            await self._close(BROKEN, str(refusal))
        finally:
            if self._upstream is not None and not self._upstream.closed:
                await self._upstream.close(code=GOING_AWAY)

    async def _connect(self, connect: Connect, model: str | None) -> aiohttp.ClientWebSocketResponse:
        try:
            return await connect(model)
        except aiohttp.WSServerHandshakeError as error:
            raise RefusalError(
                error.status if 400 <= error.status < 600 else 502,
                "upstream_refused",
                f"the upstream refused the socket with status {error.status}",
            ) from error
        except TimeoutError as error:
            raise RefusalError(504, "upstream_timeout", "the upstream did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            # The text of some errors repeats the address, whose query may hold a client's key.
            kind = type(error).__name__
            logger.warning(
                "an upstream's socket could not be opened: %s", kind, extra=fields("upstream_failed", error_type=kind)
            )
            raise RefusalError(502, "upstream_unreachable", "the upstream could not be reached") from error

    async def _accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._accepted = True
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers)})

    async def _pass_on(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        """Both directions, until the first of them ends."""
        timer = _Idle(self._idle_timeout_s)
        up = asyncio.create_task(self._to_upstream(upstream, timer))
        down = asyncio.create_task(self._to_client(upstream, timer))
        idle = asyncio.create_task(timer.run_out())
        try:
            await asyncio.wait((up, down, idle), return_when=asyncio.FIRST_COMPLETED)
            if up.done():  # the upstream's side is closed, which ends the other direction, in its own time
                await asyncio.wait((down,), timeout=CLOSE_TIMEOUT_S)
        finally:
            for way in (up, down, idle):
                way.cancel()
            await asyncio.wait((up, down, idle))
        for way in (up, down):
            if not way.cancelled():
                way.result()
        if not self._closed:
            await self._close(GOING_AWAY, "nothing passed for too long")

    async def _to_upstream(self, upstream: aiohttp.ClientWebSocketResponse, timer: _Idle) -> None:
        while True:
            message = await self._receive()
            timer.touch()
            if message["type"] == "websocket.disconnect":
                self._closed = True
                code = message.get("code") or NORMAL
                reason = (message.get("reason") or "").encode()
                await upstream.close(code=GOING_AWAY if code in _UNSENDABLE else code, message=reason)
                return
            try:
                await _forward(upstream, message)
            except (aiohttp.ClientError, OSError):
                return  # it has closed: the other direction says with what code

    async def _to_client(self, upstream: aiohttp.ClientWebSocketResponse, timer: _Idle) -> None:
        while True:
            message = await upstream.receive()
            timer.touch()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                kind = "text" if message.type is aiohttp.WSMsgType.TEXT else "bytes"
                try:
                    await self._send({"type": "websocket.send", kind: message.data})
                except OSError:  # the client is gone
                    self._closed = True
                    return
            elif message.type is aiohttp.WSMsgType.CLOSE:
                await self._close(message.data or NORMAL, message.extra or "")
                return
            else:  # closing, closed, or an error: its connection broke, or it sent what may not be
                too_big = upstream.close_code == TOO_BIG
                await self._close(TOO_BIG if too_big else BROKEN, "the upstream broke off")
                return

    async def _close(self, code: int, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        shown = reason.encode()[:123].decode(errors="ignore")
        with suppress(OSError):
            code = NORMAL if code in _UNSENDABLE else code
            await self._send({"type": "websocket.close", "code": code, "reason": shown})


class _Idle:
    """Runs out once nothing was touched for so long."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()

    def touch(self) -> None:
        self._last_s = self._loop.time()

    async def run_out(self) -> None:
        # An event would have to be set with each message; this looks once in all that time.
        while (left_s := self._last_s + self._timeout_s - self._loop.time()) > 0:  # noqa: ASYNC110 - as said
            await asyncio.sleep(left_s)


def socket_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The request headers of the upstream's opening: those of a request, without what the opening itself has."""
    return [(name, value) for name, value in headers if name.lower() not in _HANDSHAKE]


def subprotocols(scope: Scope, *, own_key: bool) -> tuple[str, ...]:
    """The client's subprotocols. A key among them stays only where the upstream has none of its own, and never ours."""
    ours = OWN_KEY_PREFIX.decode()
    return tuple(
        word
        for word in scope.get("subprotocols") or ()
        if not (word.startswith(_KEY_SUBPROTOCOLS) and (own_key or ours in word))
    )


def query_without_key(query: bytes, *, own_key: bool) -> bytes:
    """The query without the key that Gemini's clients put there, by the same rule. Untouched where there is none."""
    if b"key=" not in query:
        return query
    ours = OWN_KEY_PREFIX.decode()
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if not (name == "key" and (own_key or ours in value))]
    return query if kept == pairs else urlencode(kept).encode()


def names_model_in_frame(path: str) -> bool:
    """Whether sockets of this path name their model in the first frame."""
    return path.rstrip("/").casefold().endswith(_FIRST_FRAME_PATHS)


def model_in_query(query: bytes) -> str | None:
    """The model of a realtime session."""
    return next((value for name, value in parse_qsl(query.decode("latin-1")) if name == "model"), None)


def model_in(frame: str | bytes) -> str | None:
    """The model that a first frame names: of a Responses request, or of Gemini's setup."""
    try:
        named = _read_named(frame)
        if named.model is not None or named.setup is None:
            return named.model
        return _read_text(named.setup["model"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError):
        return None  # the upstream will say what is wrong with it


def _content(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return message.get("bytes") or b"" if text is None else text


async def _forward(upstream: aiohttp.ClientWebSocketResponse, message: Message) -> None:
    content = _content(message)
    if isinstance(content, str):
        await upstream.send_str(content)
    else:
        await upstream.send_bytes(content)


def _headers_of(upstream: aiohttp.ClientWebSocketResponse) -> list[tuple[bytes, bytes]]:
    answer: Any = upstream._response  # noqa: SLF001 - the library shows the answer's headers nowhere else
    kept = response_headers(answer.raw_headers, keep_length=False)
    return [(name, value) for name, value in kept if name.decode("latin-1") not in _HANDSHAKE]
