"""How a metered request watches its stream, and how it ends one for which its budgets have no more room."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn

from .log_fields import fields
from .refusals import stream_cut
from .stream_gate import StreamGate

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from .admission import Extension
    from .calls import Call, RequestContext
    from .encodings import AnswerDecoder
    from .headers import RawHeaders
    from .providers.base import Api, StreamReader
    from .settling import Conclusion
    from .tracker import CostTracker
    from .usage import Report

logger = logging.getLogger(__name__)

_OF_ITS_BYTES = (b"content-encoding", b"content-length")
_BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":", b"{", b"[")
"""Of streams of events, of lines, and of arrays."""


class StreamCutError(OSError):
    """The client is gone, as far as the application is concerned: its stream was cut."""

    def __init__(self) -> None:
        super().__init__("the stream was cut: its budgets have no more room")


class Cutting(ABC):
    """Mixed into `MeteredRequest`, whose state this is."""

    __slots__ = (
        "_api",
        "_complete",
        "_context",
        "_decoder",
        "_gate",
        "_headers",
        "_reader",
        "_report",
        "_send",
        "_start",
        "_tracker",
        "_unsure",
        "call",
        "was_cut",
        "watched",
    )

    call: Call
    was_cut: bool
    watched: bool
    _api: Api
    _complete: bool
    _context: RequestContext
    _decoder: AnswerDecoder | None
    _gate: StreamGate | None
    _headers: RawHeaders
    _reader: StreamReader | None
    _report: Report
    _send: Send
    _start: Message | None
    _tracker: CostTracker
    _unsure: bool

    @abstractmethod
    async def close(self, conclusion: Conclusion | None = None) -> None: ...

    @abstractmethod
    async def _send_start(self, cost_coins: str | None) -> None: ...

    @abstractmethod
    async def _send_last(self, body: bytes, conclusion: Conclusion | None = None) -> None: ...

    @abstractmethod
    def _read_headers(self) -> None: ...

    async def _watch(self, reader: StreamReader, *, streams: bool) -> bool:
        """See to the hold of a call that began with a part of it. An answer that cannot be watched as it comes, because
        it is no stream or its bytes are encoded, has all of it held now. False: there is no room, and the answer can
        still be replaced by a stream that ends at once.
        """
        if not self.watched or self._context.taken:
            return True
        meter = self._tracker.meters.meter(self.call, reader.report, counts_as_it_goes=self._api.counts_as_it_goes)
        if streams and self._decoder is None:
            self._gate = StreamGate(reader, meter)
            self._headers = [header for header in self._headers if header[0].lower() != b"content-length"]
            return True
        try:
            room = await meter.cover_all()
        finally:
            meter.close()
        if room:
            return True
        if not streams:
            logger.warning(
                "call %s: asked for a stream and got none; it may cost more than was held",
                self.call.id,
                extra=fields("stream_missing", call_id=self.call.id, tenant=self.call.identity.tenant),
            )
            return True
        self._decoder = None
        self._headers = [header for header in self._headers if header[0].lower() not in _OF_ITS_BYTES]
        return False

    async def _through(self, gate: StreamGate, body: bytes, *, last: bool) -> bytes:
        """What the client may have of the next bytes. Raises StreamCutError."""
        if self._context.taken:  # a block holds for the call now
            self._gate = None
            gate.close()
            assert self._reader is not None
            return gate.rest() + self._reader.feed(body)
        if self._unsure and body:
            self._unsure = False
            head = body.lstrip()[:6]
            if not any(head.startswith(mark) or mark.startswith(head) for mark in _BEGINNINGS):
                self._gate = None
                gate.close()
                assert self._reader is not None
                await self._watch(self._reader, streams=False)
                return self._reader.feed(body)
        out = await (gate.finish(body) if last else gate.take(body))
        if gate.shut:
            await self._cut(out, gate.refusal, ended=gate.ended)
        return out

    async def _weighed(self, gate: StreamGate, out: bytes) -> bytes:
        """What the client may have of what the reader has given out. Raises StreamCutError."""
        out = await gate.weigh(out)
        if gate.shut:
            await self._cut(out, gate.refusal, ended=gate.ended)
        return out

    async def _cut(self, out: bytes, refusal: Extension | None, *, ended: bool = False) -> NoReturn:
        """End the stream in its API's own form, settle, and tell the application that its client is gone."""
        reader, self._reader = self._reader, None
        assert reader is not None
        self.was_cut = True
        self._report = reader.report
        if self._gate is not None:
            self._gate.close()
        self._read_headers()
        logger.info(
            "call %s: cut after %d tokens",
            self.call.id,
            self._report.visible_tokens,
            extra=fields(
                "stream_cut",
                call_id=self.call.id,
                tenant=self.call.identity.tenant,
                output_tokens=self._report.visible_tokens,
            ),
        )
        end = b"" if ended else reader.closing(self._api.cut(self._report, stream_cut(refusal, self.call.id)))
        try:
            if self._start is not None:
                await self._send_start(None)
            await self._send_last(out + end)
        finally:
            await self.close()
        raise StreamCutError
