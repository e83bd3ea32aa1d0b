"""One metered request's way through the application: what it sees, what the client sees, and how it is settled.

The application gets the (perhaps rewritten) body once and then the server's own `receive`. Its answer is forwarded as
it comes, while a reader looks at the bytes that pass. A plain JSON answer up to 64 kB waits for its usage, so that
the headers can carry the cost.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .calls import Call, RequestContext
from .currency import nano_to_coins_text
from .cutting import Cutting, StreamCutError
from .encodings import AnswerDecoder, codings
from .headers import OWN_PREFIX, call_headers
from .identity import Identity
from .log_fields import fields
from .settling import Conclusion, Ending
from .stream_gate import PIECE_BYTES
from .usage import Report

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from .errors import Denial
    from .headers import RawHeaders
    from .identify import IdentityFailure
    from .providers.base import Api, StreamReader
    from .stream_gate import StreamGate
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

WAIT_BYTES = 65_536
_UNTYPED = (b"text/plain", b"application/octet-stream")
"""What streams are called, too, by applications that do not care."""
_WAITING_TYPES = (b"application/json", b"application/problem+json")


class MeteredRequest(Cutting):
    """The state of one metered request. `receive` and `send` are what the application gets.

    Args:
        call: the admitted call.
        expose_amounts: whether headers may tell cost and budgets.
        payer: finds who makes the request, once more when the call is settled; None: that is known.

    Attributes:
        body: what the application is to read.
        watched: the call's hold has to grow with its stream.
        was_cut: the stream was ended for want of room; for the application, its client is gone.
        hide_usage: a stream's usage was not asked for by the client, and is taken out again.
        unanswered: a block inside found no room in a budget, and the application made an answer of 500 of that. It
            went nowhere: a refusal is due.
    """

    __slots__ = (
        "_answer_headers",
        "_buffer",
        "_called",
        "_client_left",
        "_expose",
        "_payer",
        "_receive",
        "_status",
        "body",
        "hide_usage",
        "unanswered",
    )

    def __init__(
        self,
        tracker: CostTracker,
        api: Api,
        call: Call,
        context: RequestContext,
        receive: Receive,
        send: Send,
        *,
        expose_amounts: bool,
        payer: Callable[[Mapping[str, Any]], Awaitable[Identity | IdentityFailure]] | None = None,
    ) -> None:
        self._tracker = tracker
        self._api = api
        self.call = call
        self._context = context
        self._receive = receive
        self._send = send
        self._expose = expose_amounts
        self._payer = payer
        self._called = False
        self._client_left = False
        self._complete = False
        self._status: int | None = None
        self._start: Message | None = None
        """The start message while it waits for the cost, and `_buffer` the bytes that wait with it."""
        self._headers: RawHeaders = []
        self._answer_headers: dict[bytes, bytes] = {}
        self._buffer = bytearray()
        self._reader: StreamReader | None = None
        """Reads an answer that goes out as it comes."""
        self._report = Report()
        """What was read of an answer that is over."""
        self._gate: StreamGate | None = None
        self._decoder: AnswerDecoder | None = None
        self._unsure = False
        """The answer does not say whether it is a stream of events: its first bytes will."""
        self.body: bytes | None = None
        self.hide_usage = False
        self.watched = tracker.meters.watches(call)
        self.was_cut = False
        self.unanswered: Denial | None = None

    @property
    def began(self) -> bool:
        """The application has begun an answer, so no refusal can follow."""
        return self._status is not None

    async def receive(self) -> Message:
        body = self.body
        if body is not None:
            self.body = None
            self._called = True
            return {"type": "http.request", "body": body, "more_body": False}
        if self.was_cut:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        if self.was_cut:
            raise StreamCutError
        reader = self._reader
        try:
            if reader is None or message["type"] != "http.response.body":
                await self._other(message)
                return
            body = message.get("body", b"")
            if body.__class__ is not bytes:  # Starlette lets memory views pass
                body = bytes(body)
                message = {**message, "body": body}
            last = not message.get("more_body", False)
            gate = self._gate
            if gate is None:
                out = reader.feed(body) if self._decoder is None else self._unpack(body, reader)
            elif last or self._unsure or len(body) > PIECE_BYTES or self._context.taken:
                out = await self._through(gate, body, last=last)
            else:
                out = reader.feed(body)
                if not gate.lets_pass():
                    out = await self._weighed(gate, out)
            if last:
                await self._finish(out)
            elif out is body:
                await self._send(message)
            elif out:
                await self._send({"type": "http.response.body", "body": out, "more_body": True})
        except OSError:  # how servers tell that the client is gone
            self._client_left = True
            raise

    async def _other(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._begin(message)
        elif self.unanswered is not None:
            return
        elif kind == "http.response.body" and self._start is not None:
            await self._collect(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        status: int = message["status"]
        if self._status is not None or status < 200:
            # Informational; or a second start, which is the server's to complain about.
            await self._send(message)
            return
        if status == 500 and self._context.denied is not None:
            self.unanswered = self._context.denied
            return
        self._status = status
        content_type = encoding = b""
        wanted = self._api.answer_headers
        for header in message.get("headers", ()):
            name = header[0].lower()
            if name == b"content-type":
                content_type = header[1].lower()
            elif name == b"content-encoding":
                encoding = encoding + b"," + header[1] if encoding else header[1].strip().lower()
            elif name in wanted:
                self._answer_headers[name] = header[1]
            if not name.startswith(OWN_PREFIX):
                self._headers.append(header)
        if encoding and codings(encoding):
            self._decoder = AnswerDecoder(encoding)
        self._start = message
        waits = content_type.startswith(_WAITING_TYPES)
        streams = content_type.startswith(self._api.stream_types) and (self.call.spec.stream or not waits)
        if self.call.spec.stream and (not content_type or content_type.startswith(_UNTYPED)):
            streams = self._unsure = True
        if status >= 300:
            self.watched = False  # no answer of a model, whatever comes
        if status >= 400:
            return
        if waits and not streams:
            await self._watch(self._api.body_reader(), streams=False)
            return
        if not streams and not self.call.spec.stream:
            self._reader = self._api.body_reader()
        elif self.hide_usage and self._decoder is None:
            self._reader = self._api.stream_reader(hide_usage=True)
            self._headers = [header for header in self._headers if header[0].lower() != b"content-length"]
        else:
            self._reader = self._api.stream_reader(hide_usage=False)
        if await self._watch(self._reader, streams=streams):
            await self._send_start(None)
        else:
            await self._cut(b"", None)

    async def _send_start(self, cost_coins: str | None) -> None:
        start, self._start = self._start, None
        assert start is not None
        extra = call_headers(self.call, cost_coins=cost_coins, expose_amounts=self._expose)
        await self._send({**start, "headers": self._headers + extra})

    async def _send_last(self, body: bytes, conclusion: Conclusion | None = None) -> None:
        """The end of the answer, and perhaps of the span that tells of it: what is to be said there is said before."""
        if self.call.trace is not None and not self._context.taken and not self.call.closed:
            self._tracker.tracing.concluded(self.call, conclusion or self._conclude(complete=True))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._complete = True

    def _unpack(self, body: bytes, reader: StreamReader) -> bytes:
        """Look at bytes of an encoded answer, and leave them as they are."""
        assert self._decoder is not None
        for piece in self._decoder.feed(body):
            reader.feed(piece)
        return body

    def _end_reading(self) -> bytes:
        """Nothing more comes for the reader. Returns what it still held back."""
        reader, self._reader = self._reader, None
        assert reader is not None
        rest = reader.finish()
        self._report = reader.report
        self._read_headers()
        return rest if self._decoder is None else b""

    async def _finish(self, body: bytes) -> None:
        """The last piece of an answer that went out as it came."""
        body += self._end_reading()
        if self._report.deferred:  # as of a plain answer: the ledger knows it before the client can ask for it
            await self.close(self._conclude(complete=True))
        await self._send_last(body)
        await self.close()

    async def _collect(self, message: Message) -> None:
        """A piece of a plain answer that waits for its usage, unless it is too large for that."""
        body = bytes(message.get("body", b""))
        if len(self._buffer) + len(body) > WAIT_BYTES:
            self._reader = self._api.body_reader()
            await self._send_start(None)
            if self._buffer:
                message = {**message, "body": bytes(self._buffer) + body}
                self._buffer.clear()
            await self.send(message)
        elif message.get("more_body", False):
            self._buffer += body
        else:
            await self._answer(bytes(self._buffer) + body)

    async def _answer(self, body: bytes) -> None:
        """A plain answer is whole: read its usage, tell its cost, then settle without keeping the client."""
        conclusion = cost = None
        self._report = self._read_whole(body)
        self._read_headers()
        self._buffer.clear()
        if not self._context.taken:
            conclusion = self._conclude(complete=True)
            if conclusion.verdict.usage is not None:
                cost = nano_to_coins_text(conclusion.billed.nano_usd, self.call.rate)
            if conclusion.verdict.deferred:
                # The client may ask for the operation as soon as it has the answer: by then the ledger must know it.
                await self.close(conclusion)
        try:
            await self._send_start(cost)
            await self._send_last(body, conclusion)
        finally:
            await self.close(conclusion)

    def _read_headers(self) -> None:
        if self._answer_headers:
            self._api.absorb_headers(self._report, self._answer_headers)

    def _read_whole(self, body: bytes) -> Report:
        if self._decoder is None:
            return self._api.read_body(body)
        reader = self._api.body_reader()
        self._unpack(body, reader)
        reader.finish()
        return reader.report

    def cancelled(self) -> None:
        """The server ended the application, as some do when the client leaves."""
        if not self._complete:
            self._client_left = True

    async def ended(self) -> None:
        """The application has ended. An answer it left unfinished goes out as it stands, for the server to break off:
        that it has ended is no sign that the answer has.
        """
        body = bytes(self._buffer)
        if self._reader is not None:
            finished = self._reader.report.finished
            body = b"" if self._gate is None else self._gate.rest()
            body += self._end_reading()
            self._report.finished = finished
        elif self._start is not None:
            await self._send_start(None)
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def broke_off(self) -> None:
        """The application has raised. Its client gets what it had sent so far, and the server the error."""
        with suppress(OSError):
            await self.ended()

    async def close(self, conclusion: Conclusion | None = None) -> None:
        """Settle, release or defer: once. Called at the answer's end, and again when the application is done. Where a
        block inside has taken over the hold, the block settles.
        """
        if self._gate is not None:
            self._gate.close()
        if self._context.taken:
            self._context.settle_own = self.close
            return
        if self.call.closed:
            return
        if conclusion is None:
            conclusion = self._conclude(complete=self._complete)
        payer = None
        if self._payer is not None:
            try:
                payer = await self._payer(self._context.scope)
            except Exception:  # the state is the application's: whatever it does, the charge must not be lost
                logger.exception(
                    "call %s: who makes it could not be read from the request's state",
                    self.call.id,
                    extra=fields("payer_unreadable", call_id=self.call.id, tenant=self.call.identity.tenant),
                )
        if isinstance(payer, Identity) and payer.tenant != self.call.identity.tenant:
            self._tracker.metrics.late_identity()
            logger.error(
                "call %s: its tenant appeared in request.state only after AskiiMiddleware had admitted it for the "
                "default tenant %r, whose budget was checked instead. The middleware that sets it must run first (add "
                "it after AskiiMiddleware), or use identify=...",
                self.call.id,
                self.call.identity.tenant,
                extra=fields("late_identity", call_id=self.call.id, tenant=payer.tenant),
            )
            await self._tracker.close_late(self.call, payer, conclusion, status=self._status)
        else:
            await self._tracker.close_call(self.call, conclusion, status=self._status)

    def _conclude(self, *, complete: bool) -> Conclusion:
        if self._reader is not None:
            self._report = self._reader.report
        elif self._buffer:
            self._report = self._read_whole(bytes(self._buffer))
        self._read_headers()
        ending = Ending(
            status=self._status,
            complete=complete,
            client_left=self._client_left,
            called=self._called,
            cut=self.was_cut,
        )
        return self._tracker.concluder.conclude(self.call, self._report, ending)
