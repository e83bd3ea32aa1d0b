"""One call on its way through the gateway: to the upstream, back, and what can end it early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Literal

from .errors import AskiiError, MissingExtraError
from .gateway_upstreams import response_headers
from .log_fields import fields

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("gateway", "askii serve") from error

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

logger = logging.getLogger(__name__)

WATCH_AFTER_S = 0.05
"""Calls answered sooner need nobody to watch whether their client is still there."""
_BODILESS = frozenset({204, 205, 304})
_FAILURES = (aiohttp.ClientError, OSError)
"""What the client library raises when an upstream fails or answers with something that is not HTTP."""


class ClientLeftError(ConnectionError):
    """The client went away before its request was whole."""


class BrokenAnswerError(AskiiError):
    """An answer stopped after it had begun: the connection to the client must not end cleanly either."""


class RefusalError(AskiiError):
    """A call that gets an error of ours, in JSON, because no answer of an upstream has begun."""

    def __init__(self, status: int, code: str, message: str, kind: str = "upstream_error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind


class Call:
    """One request and its answer.

    Two things end a call early: its client leaves, or no byte moves for too long. Both close the connection to the
    upstream, which wakes whoever waits for it. A call is never torn out of `send`, behind which a settlement may be
    running, just because its client has left.

    `first_byte_timeout_s` bounds the wait for the request, and then, from its last byte, for the answer to begin;
    `idle_timeout_s` runs from the last byte of the answer that moved on.
    """

    __slots__ = (
        "_cancelled",
        "_deadline_s",
        "_ended",
        "_first_byte_timeout_s",
        "_idle_timeout_s",
        "_loop",
        "_receive",
        "_response",
        "_send",
        "_sending",
        "_task",
        "_timer",
        "_upstream",
        "_watcher",
        "more",
    )

    def __init__(self, receive: Receive, send: Send, *, first_byte_timeout_s: float, idle_timeout_s: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must be served in a task")
        self.more = True
        """The request's body has not arrived to its end. Until it has, only `read` listens to the client."""
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._send = send
        self._upstream: str | None = None
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._response: aiohttp.ClientResponse | None = None
        self._ended: Literal["left", "timeout", "over"] | None = None
        self._sending = False
        self._cancelled = False
        self._watcher: asyncio.Task[None] | None = None
        self._deadline_s = self._loop.time() + first_byte_timeout_s
        self._timer = self._loop.call_later(min(WATCH_AFTER_S, first_byte_timeout_s), self._tick)

    async def read(self) -> bytes:
        """The next part of the request's body. Raises ClientLeftError."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError("the client left before its request was whole")
        self.more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    def goes_to(self, upstream: str) -> None:
        """From here on it is this upstream's turn."""
        self._upstream = upstream
        self._deadline_s = self._loop.time() + self._first_byte_timeout_s

    async def run(self, request: Awaitable[aiohttp.ClientResponse]) -> None:
        """Await `request` (which reads from the client, and asks an upstream) and pass the answer on. Returns quietly
        when the client has left.

        Raises RefusalError when no answer came, BrokenAnswerError when it did not come whole.
        """
        try:
            self._response = response = await self._answer_to(request)
            await self._pass_on(response)
        except ClientLeftError:
            return
        except asyncio.CancelledError:
            if not self._cancelled or self._task.uncancel():
                raise  # not our doing, or not ours alone
            if self._ended == "timeout" and self._response is None:
                raise self._late() from None
            if self._ended == "timeout":
                raise BrokenAnswerError(f"a client took nothing of its answer for {self._idle_timeout_s} s") from None
        finally:
            self._ended = "over"
            self._timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()
            if self._response is not None:
                self._response.close()  # in the pool again already if it was read to its end

    async def upload(self, first: bytes) -> AsyncIterator[bytes]:
        """The request's body as it arrives, beginning with `first`. Runs beside `run`, in the client library's task."""
        if first:
            yield first
        while self.more:
            try:
                part = await self.read()
            except ClientLeftError:
                self._end("left")
                raise  # ending the iteration would make half a body look like a whole one
            if part:
                yield part
            if self._response is None:
                self._deadline_s = self._loop.time() + self._first_byte_timeout_s
        self._watch()

    async def _answer_to(self, request: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        try:
            response = await request
        except ClientLeftError:
            raise
        except TimeoutError as error:
            raise self._late() from error
        except _FAILURES as error:
            # The text of some errors repeats the address, whose query may hold a client's key.
            reason = error.message if isinstance(error, aiohttp.ClientResponseError) else error
            logger.warning(
                "upstream %r failed: %s: %s",
                self._upstream,
                type(error).__name__,
                reason,
                extra=fields("upstream_failed", upstream=self._upstream, error_type=type(error).__name__),
            )
            raise self._unreachable("could not be reached, or did not answer in HTTP") from error
        if response.status == 101:
            response.close()
            raise self._unreachable("switched protocols unasked")
        return response

    async def _pass_on(self, response: aiohttp.ClientResponse) -> None:
        content, send, time, idle_timeout_s = response.content, self._send, self._loop.time, self._idle_timeout_s
        headers = response_headers(response.raw_headers, keep_length=response.status not in _BODILESS)
        message: Message = {"type": "http.response.start", "status": response.status, "headers": headers}
        last = False
        while True:
            self._deadline_s = time() + idle_timeout_s
            self._sending = True
            await send(message)
            self._sending = False
            if last:
                return
            try:
                chunk = await content.readany()
            except _FAILURES as error:
                if self._ended == "left":
                    return
                # What arrived before the failure is still the client's; the reader itself no longer gives it out.
                rest = b"".join(content._buffer)  # noqa: SLF001 - as said
                if rest:
                    self._sending = True
                    await send({"type": "http.response.body", "body": rest, "more_body": True})
                why = f"sent nothing for {idle_timeout_s} s" if self._ended == "timeout" else f"broke off: {error}"
                raise BrokenAnswerError(f"upstream {self._upstream!r} {why}") from error
            last = content.at_eof()
            message = {"type": "http.response.body", "body": chunk, "more_body": not last}

    def _late(self) -> RefusalError:
        if self._upstream is None:
            return RefusalError(408, "request_timeout", "the request did not arrive in time", "invalid_request_error")
        return RefusalError(504, "upstream_timeout", f"upstream {self._upstream!r} did not answer in time")

    def _unreachable(self, what: str) -> RefusalError:
        return RefusalError(502, "upstream_unreachable", f"upstream {self._upstream!r} {what}")

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._until_left())

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end("left")

    def _tick(self) -> None:
        if not self.more:
            self._watch()
        left_s = self._deadline_s - self._loop.time()
        if left_s <= 0:
            self._end("timeout")
        else:  # the deadline may have come nearer when the answer began, but never nearer than this
            self._timer = self._loop.call_later(min(left_s, self._idle_timeout_s), self._tick)

    def _end(self, why: Literal["left", "timeout"]) -> None:
        if self._ended == "over":
            return
        self._ended = why
        if self._response is not None:
            self._response.close()
        if self._response is None or (self._sending and why == "timeout"):
            self._cancelled = self._task.cancel()
