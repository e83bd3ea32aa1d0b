"""One metered request's way through the application: what it sees, what the client sees, and how it is settled.

The application gets the (perhaps rewritten) body once and then the server's own `receive`. Its answer is forwarded as
it comes, while a reader looks at the bytes that pass. A plain JSON answer up to 64 kB waits for its usage, so that
the headers can carry the cost.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .calls import Call, RequestContext
from .currency import nano_to_coins_text
from .headers import call_headers
from .settling import Conclusion, Ending
from .usage import Report

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from .providers.base import Api, StreamReader
    from .tracker import CostTracker

WAIT_BYTES = 65_536
PIECE_BYTES = 1 << 16
MAX_DECODED_BYTES = 256 << 20
"""Decoding is work: an answer that unpacks to more is read no further."""
_ZLIB_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class MeteredRequest:
    """The state of one metered request. `receive` and `send` are what the application gets."""

    __slots__ = (
        "_api",
        "_body",
        "_buffer",
        "_called",
        "_client_left",
        "_context",
        "_decoder",
        "_expose",
        "_hide_usage",
        "_reader",
        "_receive",
        "_send",
        "_start",
        "_status",
        "_tracker",
        "call",
        "complete",
        "started",
    )

    def __init__(
        self,
        tracker: CostTracker,
        api: Api,
        call: Call,
        context: RequestContext,
        body: bytes,
        receive: Receive,
        send: Send,
        *,
        hide_usage: bool,
        expose_amounts: bool,
    ) -> None:
        self._tracker = tracker
        self._api = api
        self.call = call
        self._context = context
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._hide_usage = hide_usage
        self._expose = expose_amounts
        self._called = False
        self._client_left = False
        self._status: int | None = None
        self._start: Message | None = None
        """The start message while it waits for the cost."""
        self._buffer: list[bytes] = []
        self._reader: StreamReader | None = None
        self._decoder: Any = None
        self.started = False
        """The client has been sent something; no refusal can follow."""
        self.complete = False

    async def receive(self) -> Message:
        body = self._body
        if body is not None:
            self._body = None
            self._called = True
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._begin(message)
        elif kind == "http.response.body":
            await self._pass(message.get("body", b""), last=not message.get("more_body", False))
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        self._status = message["status"]
        content_type = encoding = b""
        for name, value in message.get("headers", ()):
            lower = name.lower()
            if lower == b"content-type":
                content_type = value
            elif lower == b"content-encoding":
                encoding = value.strip().lower()
        if encoding not in (b"", b"identity"):
            window = _ZLIB_WINDOW.get(encoding)
            self._decoder = _Inflater(window) if window else _Opaque()
        if content_type.startswith((b"application/json", b"application/problem+json")) or self._status >= 400:
            self._start = message
            return
        if not content_type.startswith((b"text/event-stream", b"application/x-ndjson")) and not self.call.spec.stream:
            # An answer of some other kind: metered as a whole body that is not kept.
            self._reader = self._api.body_reader()
        else:
            hide = self._hide_usage and self._decoder is None
            self._reader = self._api.stream_reader(hide_usage=hide)
            if hide:
                headers = [h for h in message.get("headers", ()) if h[0].lower() != b"content-length"]
                message = {**message, "headers": headers}
        await self._send_start(message, None)

    async def _send_start(self, message: Message, cost_coins: str | None) -> None:
        self._start = None
        self.started = True
        extra = call_headers(self.call, cost_coins=cost_coins, expose_amounts=self._expose)
        await self._send({**message, "headers": [*message.get("headers", ()), *extra]})

    async def _pass(self, body: bytes, *, last: bool) -> None:
        if self._start is not None:
            self._buffer.append(body)
            if last:
                await self._answer_whole()
                return
            if sum(map(len, self._buffer)) <= WAIT_BYTES:
                return
            # Too large to wait for: the rest passes through a reader that keeps only what may hold the usage.
            self._reader = self._api.body_reader()
            body = b"".join(self._buffer)
            self._buffer.clear()
            await self._send_start(self._start, None)
        out = self._read(body)
        if last:
            if self._reader is not None and self._decoder is None:
                out += self._reader.finish()
            elif self._reader is not None:
                self._reader.finish()
        if out or last:
            if last:
                self.complete = True
            await self._send({"type": "http.response.body", "body": out, "more_body": not last})
        if last:
            await self.close()

    def _read(self, body: bytes) -> bytes:
        reader = self._reader
        if reader is None:
            return body
        if self._decoder is None:
            return reader.feed(body)
        for piece in self._decoder.feed(body):
            reader.feed(piece)
        return body

    async def _answer_whole(self) -> None:
        """A plain answer is complete: read its usage, tell its cost, then settle without keeping the client."""
        body = b"".join(self._buffer)
        self._buffer.clear()
        report = self._read_whole(body)
        start = self._start
        assert start is not None
        self.complete = True
        conclusion = None
        cost = None
        if not self._context.taken:
            conclusion = self._tracker.concluder.conclude(self.call, report, self._ending())
            if conclusion.verdict.usage is not None:
                cost = nano_to_coins_text(conclusion.billed.nano_usd, self.call.rate)
        try:
            await self._send_start(start, cost)
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            await self.close(report, conclusion)

    def _ending(self) -> Ending:
        return Ending(status=self._status, complete=self.complete, client_left=self._client_left, called=self._called)

    async def close(self, report: Report | None = None, conclusion: Conclusion | None = None) -> None:
        """Settle, release or defer: once. Called at the answer's end, and again when the application is done."""
        if self.call.closed or self._context.taken:
            return
        if conclusion is None:
            if report is None:
                report = self._partial_report()
            conclusion = self._tracker.concluder.conclude(self.call, report, self._ending())
        await self._tracker.close_call(self.call, conclusion, status=self._status)

    def _partial_report(self) -> Report:
        if self._reader is not None:
            return self._reader.report
        return self._read_whole(b"".join(self._buffer)) if self._buffer else Report()

    def _read_whole(self, body: bytes) -> Report:
        if self._decoder is None:
            return self._api.read_body(body)
        reader = self._api.body_reader()
        for piece in self._decoder.feed(body):
            reader.feed(piece)
        reader.finish()
        return reader.report

    def cancelled(self) -> None:
        """The server ended the application, as servers do when the client leaves."""
        if not self.complete:
            self._client_left = True

    async def returned(self) -> None:
        """The application has returned. A plain answer it left unfinished goes out as it stands."""
        if self._start is not None and self._buffer:
            body = b"".join(self._buffer)
            await self._send_start(self._start, None)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


class _Inflater:
    """A bounded decoded copy of an encoded answer. A bomb, or bytes that do not decode, end the reading, not the
    forwarding.
    """

    __slots__ = ("_inflater", "_left")

    def __init__(self, window: int) -> None:
        self._inflater: Any = zlib.decompressobj(window)
        self._left = MAX_DECODED_BYTES

    def feed(self, body: bytes) -> Iterator[bytes]:
        while self._inflater is not None and body:
            try:
                piece = self._inflater.decompress(body, PIECE_BYTES)
            except zlib.error:
                self._inflater = None
                return
            body = self._inflater.unconsumed_tail
            self._left -= len(piece)
            if self._left < 0:
                self._inflater = None
                return
            yield piece


class _Opaque:
    """An encoding that cannot be read here: the answer passes, its usage is estimated."""

    __slots__ = ()

    def feed(self, body: bytes) -> Iterator[bytes]:
        del body
        return iter(())
