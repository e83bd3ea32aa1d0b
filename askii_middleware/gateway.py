"""The streaming reverse proxy behind `askii serve`.

`Proxy` is a plain ASGI application that sends every request to one of its upstreams (`gateway_upstreams.py` says which
one, and what becomes of path and headers) and passes the answer on as it comes. Budgets and metering are not its job:
the middleware stands in front, has usually read the body already, and names the admitted model in
`scope["state"]["askii_model"]`.

- **Bytes** pass untouched in both directions. The upstream is asked for `accept-encoding: identity`, so that the
  answer can be metered; redirects are not followed and cookies not kept.
- **Bounded**: `max_connections` calls at once, the next one is told 503 at once; nothing queues. Reading stops while
  the other side does not take what was read. A call in which no byte moves for `idle_timeout_s` is ended.
- **Ends**: a client that leaves ends its call upstream; an upstream that breaks off after its answer began makes the
  application raise, so that the server closes the connection without a clean end and the client can tell.
- **Errors** before an answer began are JSON in OpenAI's envelope: 502 `upstream_unreachable`, 504 `upstream_timeout`,
  503 `gateway_busy`, 404 `model_not_found`.
- **WebSockets** go the same ways (`gateway_socket.py`): one that is open counts as a call.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from .errors import ConfigurationError, MissingExtraError
from .gateway_call import BrokenAnswerError, Call, RefusalError
from .gateway_socket import (
    CLOSE_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    SocketCall,
    model_in_query,
    names_model_in_frame,
    query_without_key,
    socket_headers,
    subprotocols,
)
from .gateway_upstreams import BadTargetError, Route, Router, Upstream
from .log_fields import fields

try:
    import aiohttp
    from yarl import URL
except ImportError as error:
    raise MissingExtraError("gateway", "askii serve") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BrokenAnswerError", "Proxy", "Upstream", "gateway_app"]

logger = logging.getLogger(__name__)

_MAX_ROUTED_BODY_BYTES = 32 << 20
"""A JSON body that arrives in parts is read up to here where the model named in it decides the upstream."""
_PIECEWISE_BYTES = 1 << 20
"""Larger bodies are written piece by piece."""
_REFUSED_METHODS = frozenset({"CONNECT", "TRACE"})
"""CONNECT opens a tunnel; TRACE sends a request's headers back, the upstream's key among them."""
_READ_BUFFER_BYTES = 256 << 10
_MAX_HEADER_BYTES = 64 << 10


class _Named(msgspec.Struct):
    model: str | None = None


_read_model = msgspec.json.Decoder(_Named).decode


class Proxy:
    """A streaming reverse proxy as an ASGI application.

    Args:
        upstreams: where requests go; at least one.
        max_connections: calls at once; the next is refused with 503.
        connect_timeout_s: for resolving, connecting and TLS.
        first_byte_timeout_s: from the request's last byte to the first of the answer; also how long the request may
            take to arrive as far as it is needed to choose an upstream.
        idle_timeout_s: the longest pause within an answer, also of a client that does not read it.
        keepalive_s: how long an idle connection is kept. Shorter than the five seconds after which many servers close
            theirs: a POST that meets a closing connection cannot be repeated safely.
        accept_encoding: what upstreams are asked for; None passes the client's wish on.
        client_factory: makes the HTTP client, called on the running loop; for other TLS settings or a forward proxy.

    Raises ConfigurationError for upstreams that could never work.
    """

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        *,
        max_connections: int = 512,
        connect_timeout_s: float = 10.0,
        first_byte_timeout_s: float = 600.0,
        idle_timeout_s: float = 300.0,
        keepalive_s: float = 4.0,
        accept_encoding: str | None = "identity",
        client_factory: Callable[[], aiohttp.ClientSession] | None = None,
    ) -> None:
        if max_connections < 1:
            raise ConfigurationError("max_connections must be at least 1")
        if min(connect_timeout_s, first_byte_timeout_s, idle_timeout_s, keepalive_s) <= 0:
            raise ConfigurationError("the gateway's time-outs must be above 0 s")
        self._router = Router(Route(upstream, accept_encoding=accept_encoding) for upstream in upstreams)
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._keepalive_s = keepalive_s
        self._client_factory = client_factory or self._make_client
        self._client: aiohttp.ClientSession | None = None
        self._busy = 0

    @property
    def busy(self) -> int:
        """Calls under way."""
        return self._busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._serve_socket(scope, receive, send)

    async def aclose(self) -> None:
        """Close the connections to the upstreams. The next request would open new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in _REFUSED_METHODS:
            refusal = RefusalError(405, "method_not_allowed", "not through this gateway", "invalid_request_error")
            await _refuse(send, refusal)
            return
        if self._busy >= self._max_connections:
            await _refuse(send, _busy(), (b"retry-after", b"1"))
            return
        self._busy += 1
        try:
            call = Call(
                receive,
                send,
                first_byte_timeout_s=self._first_byte_timeout_s,
                idle_timeout_s=self._idle_timeout_s,
            )
            await call.run(self._ask(scope, call))
        except RefusalError as refusal:
            await _refuse(send, refusal)
        finally:
            self._busy -= 1

    async def _ask(self, scope: Scope, call: Call) -> aiohttp.ClientResponse:
        """Read the request, as far as needed, and send it to the upstream that serves it."""
        body = await call.read()
        model: str | None = None
        if self._router.needs_model:
            model = scope.get("state", {}).get("askii_model")
            if model is None and _may_be_json(scope):
                body = await _read_rest(call, body)
                model = _model_in(body)
        route = self._pick(model)
        # Gemini's clients put their key there; ours is no business of the upstream's.
        url = _target(route, scope, query_without_key(scope.get("query_string", b""), own_key=False))
        raw_headers = scope["headers"]
        headers = route.request_headers(raw_headers)
        data: bytes | io.BytesIO | AsyncIterator[bytes] | None = body or None
        if call.more:
            # With the client's length the upstream sees the same framing; without one it is chunked, as it came.
            headers += [("content-length", value.decode()) for name, value in raw_headers if name == b"content-length"]
            data = call.upload(body)
        elif len(body) > _PIECEWISE_BYTES:
            data = io.BytesIO(body)
        call.goes_to(route.name)
        return await self._session().request(scope["method"], url, data=data, headers=headers, allow_redirects=False)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._busy >= self._max_connections:
            await _refuse_socket(scope, send, _busy())
            return
        self._busy += 1
        try:
            call = SocketCall(receive, send, idle_timeout_s=self._idle_timeout_s)
            model = (scope.get("state") or {}).get("askii_model") or model_in_query(scope.get("query_string", b""))
            await call.run(
                lambda model: self._open_socket(scope, model),
                model,
                reads_model=self._router.needs_model and model is None and names_model_in_frame(scope["path"]),
                offered=subprotocols(scope, own_key=True),
            )
        except RefusalError as refusal:
            await _refuse_socket(scope, send, refusal)
        finally:
            self._busy -= 1

    async def _open_socket(self, scope: Scope, model: str | None) -> aiohttp.ClientWebSocketResponse:
        """The upstream's side of a socket."""
        route = self._pick(model)
        own_key = not route.forwards_credentials
        query = query_without_key(scope.get("query_string", b""), own_key=own_key)
        url = _target(route, scope, query)
        async with asyncio.timeout(self._first_byte_timeout_s):
            return await self._session().ws_connect(
                url,
                protocols=subprotocols(scope, own_key=own_key),
                headers=socket_headers(route.request_headers(scope["headers"])),
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                max_msg_size=MAX_MESSAGE_BYTES,
            )

    def _pick(self, model: str | None) -> Route:
        route = self._router.pick(model)
        if route is None:
            what = "requests without a model" if model is None else f"the model {model!r:.256}"
            raise RefusalError(404, "model_not_found", f"no upstream serves {what}", "invalid_request_error")
        return route

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = self._client_factory()
        return self._client

    def _make_client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # The pool is bounded by the number of calls; a limit here would make them queue.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_s),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )


def gateway_app(proxy: ASGIApp, ready: Callable[[], Awaitable[bool]], *, ready_timeout_s: float = 5.0) -> ASGIApp:
    """`proxy` with `/healthz` (200: this process is alive) and `/readyz` (200 or 503, by what `ready()` answers).

    A `ready()` that raises or takes longer than `ready_timeout_s` is not ready, and its error is logged.
    """

    async def is_ready() -> bool:
        try:
            async with asyncio.timeout(ready_timeout_s):
                return await ready()
        except Exception:
            logger.exception("the readiness check failed", extra=fields("readiness_failed"))
            return False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else None
        if path == "/healthz":
            await _answer(send, 200, b"ok", b"text/plain; charset=utf-8")
        elif path == "/readyz":
            status, text = (200, b"ready") if await is_ready() else (503, b"not ready")
            await _answer(send, status, text, b"text/plain; charset=utf-8")
        else:
            await proxy(scope, receive, send)

    return app


def _raw_path(scope: Scope) -> bytes:
    """The path as the client sent it, below the place where the proxy is mounted."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.partition(b"?")[0].removeprefix(scope.get("root_path", "").encode())


def _may_be_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return not kinds or b"json" in kinds[0].lower()


def _model_in(body: bytes) -> str | None:
    try:
        return _read_model(body).model
    except msgspec.DecodeError:  # not JSON, or a model that is no string: the upstream will say so
        return None


async def _read_rest(call: Call, first: bytes) -> bytes:
    """The whole body, which begins with `first`."""
    parts = [first]
    size = len(first)
    while call.more:
        parts.append(await call.read())
        size += len(parts[-1])
        if size > _MAX_ROUTED_BODY_BYTES:
            raise RefusalError(413, "request_too_large", "the request is too large", "invalid_request_error")
    return b"".join(parts) if len(parts) > 1 else first


async def _refuse(send: Send, refusal: RefusalError, *headers: tuple[bytes, bytes]) -> None:
    error = {"message": str(refusal), "type": refusal.kind, "param": None, "code": refusal.code}
    await _answer(send, refusal.status, msgspec.json.encode({"error": error}), b"application/json", *headers)


async def _refuse_socket(scope: Scope, send: Send, refusal: RefusalError) -> None:
    """Before it is open: with HTTP where the server can."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1011, "reason": refusal.code})
        return

    async def as_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await _refuse(as_denial, refusal)


def _busy() -> RefusalError:
    return RefusalError(503, "gateway_busy", "the gateway is busy: all its connections are in use; retry soon")


def _target(route: Route, scope: Scope, query: bytes) -> URL:
    try:
        return URL(route.target(_raw_path(scope), query), encoded=True)
    except BadTargetError as error:
        raise RefusalError(400, "invalid_request", str(error), "invalid_request_error") from error


async def _answer(send: Send, status: int, body: bytes, content_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    own = [(b"content-type", content_type), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
