"""One metered socket's way through the application: what each response on it may cost, and what it did cost.

Every response is a call of its own, `<socket id>.n`: held for before the frame that may begin it goes on, and settled
once when it is over. Where there is no money for one, the client is told in the API's own form, and both sides are
closed. Frames go on untouched and in order, each when it comes: nothing is queued here, and no task is started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from .calls import Call, CallSpec
from .errors import AskiiError
from .headers import OWN_PREFIX, call_headers
from .identity import Identity
from .log_fields import fields
from .providers.base import InvalidRequestError
from .refusals import RefusedError, body_too_large, invalid_request
from .settling import Ending
from .usage import Report

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from .providers.socket_base import Frame, Session, SocketApi, Turn
    from .settings import Settings
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

Admit = Callable[[Identity, CallSpec, str], Awaitable[Call]]

POLICY_VIOLATION = 1008
TOO_BIG = 1009
MAX_REASON_BYTES = 123
"""What fits into the control frame that closes a socket."""
CLOSED = {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
NOT_CALLED = Ending(called=False)
_SWITCHED = 101


class _OverError(OSError):
    """As servers say it to an application that goes on sending."""

    def __init__(self) -> None:
        super().__init__("the socket is closed")


class MeteredSocket:
    """One open socket. `receive` and `send` are what the application gets.

    Attributes:
        first: the opening, which was taken already.
        cut_off: the money has run out, and both sides were told.
    """

    __slots__ = (
        "_accepted",
        "_admit",
        "_api",
        "_calls",
        "_closed",
        "_count",
        "_default_model",
        "_expose",
        "_id",
        "_identity",
        "_ledger",
        "_left",
        "_max_frame",
        "_max_wait_s",
        "_over",
        "_receive",
        "_send",
        "_session",
        "_tracker",
        "cut_off",
        "first",
    )

    def __init__(
        self,
        tracker: CostTracker,
        api: SocketApi,
        session: Session,
        identity: Identity,
        admit: Admit,
        settings: Settings,
        call_id: str,
        receive: Receive,
        send: Send,
    ) -> None:
        self._tracker = tracker
        self._api = api
        self._session = session
        self._identity = identity
        self._admit = admit
        self._default_model = settings.default_model
        self._expose = settings.expose_amounts
        self._max_frame = settings.max_body_bytes
        self._max_wait_s = settings.max_call_s / 2
        """How long a hold may wait for its response to begin: what is left of its life is the response's own."""
        self._id = call_id
        self._receive = receive
        self._send = send
        self._count = 0
        self._calls: dict[Turn, Call] = {}
        self._ledger = asyncio.Lock()
        """The next response is not held for while the last one is being settled: its hold and its charge together would
        leave less than there is.
        """
        self._accepted = False
        self._closed = False
        """By the application itself."""
        self._left = False
        self._over = False
        """Nothing more may pass: it was cut off, or the application has ended."""
        self.first: Message | None = None
        self.cut_off = False

    async def open(self, scope: Scope) -> bool:
        """Hold for what the opening names. Whether it named anything. Raises RefusedError."""
        turn = self._session.opening()
        if turn is not None:
            call = await self._hold(turn)
            if call.model != turn.request.model:
                scope["query_string"] = self._api.renamed_query(scope["query_string"], call.model)
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        if isinstance(state, MutableMapping):
            state["askii_model"] = self._session.model
        return turn is not None

    # What the application gets ---------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self.first is not None:
            first, self.first = self.first, None
            return first
        if self._over:
            return dict(CLOSED)
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._left = self._left or not (self._over or self._closed)
        elif message["type"] == "websocket.receive":
            text = message.get("text")
            frame: Frame = message.get("bytes") or b"" if text is None else text
            try:
                passed = await self._sent(frame)
            except RefusedError as refused:
                await self._cut(refused)
                return dict(CLOSED)
            except _OverError:
                return dict(CLOSED)
            if passed is not frame:
                return {"type": "websocket.receive", "text" if text is not None else "bytes": passed}
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            raise _OverError
        kind = message["type"]
        try:
            if kind == "websocket.send":
                text = message.get("text")
                await self._received(message.get("bytes") or b"" if text is None else text, message)
            elif kind == "websocket.accept" and not self._accepted:
                self._accepted = True
                await self._send({**message, "headers": self._headers(message.get("headers", ()))})
            else:
                self._closed = self._closed or kind == "websocket.close"
                await self._send(message)
        except _OverError:
            raise
        except OSError:  # how servers tell that the client is gone
            self._left = True
            raise

    async def _sent(self, frame: Frame) -> Frame:
        """A frame of the client, as it goes on. Raises RefusedError."""
        if len(frame) > self._max_frame:
            raise body_too_large(self._max_frame, self._id)
        try:
            changed, frame = self._session.sent(frame)
        except InvalidRequestError as error:
            raise invalid_request(str(error), self._id) from error
        stale = self._stale()
        if not changed and not stale:
            return frame
        async with self._ledger:
            await self._renew(stale)
            await self._settle_all(changed)
            for turn in changed:
                if turn.ending is None:
                    call = self._calls.get(turn) or await self._hold(turn)
                    model = call.model if call.model != turn.request.model else None
                    limit = call.write_output_limit
                    if model is not None or limit is not None:
                        frame = self._session.rewritten(turn, frame, model=model, output_limit=limit)
        return frame

    async def _received(self, frame: Frame, message: Message) -> None:
        """A frame of the server, which goes on before what it settles is written."""
        changed = self._session.received(frame)
        if not changed:
            await self._send(message)
            return
        async with self._ledger:
            for turn in changed:
                if turn not in self._calls:
                    await self._begun_unasked(turn)
            try:
                await self._send(message)
            finally:
                await self._settle_all(changed)

    async def _begun_unasked(self, turn: Turn) -> None:
        """The server has begun a turn, or told the usage of one, that nothing was held for. Raises _OverError where
        the socket had to be cut off.
        """
        over = turn.ending is not None
        if over and turn.report.usage is None:
            return
        try:
            await self._hold(turn)
        except RefusedError as refused:
            if over:
                await self._charge_unheld(turn)
                return
            await self._cut(refused)
            raise _OverError from None

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        own = [header for header in headers if not header[0].lower().startswith(OWN_PREFIX)]
        call = next(iter(self._calls.values()), None)
        if call is not None:
            extra = call_headers(call, cost_coins=None, expose_amounts=self._expose)
            own += [header for header in extra if header[0] != b"x-askii-call-id"]
        return [*own, (b"x-askii-call-id", self._id.encode())]

    # Calls -----------------------------------------------------------------------------------------------------------

    async def _hold(self, turn: Turn) -> Call:
        """Admit a turn. Raises RefusedError; the turn is then none."""
        try:
            call = await self._admit(self._payer(turn), self._spec(turn), self._next_id())
        except BaseException:
            if turn.ending is None:
                self._session.end(turn, "dropped")
            raise
        if self._over:  # the application has ended meanwhile, and with it the socket
            await self._tracker.close_call(call, self._tracker.concluder.conclude(call, turn.report, NOT_CALLED))
            raise _OverError
        self._calls[turn] = call
        self._session.admitted(turn, call.model)
        return call

    def _stale(self) -> list[Turn]:
        """Turns whose hold may be gone when they begin at last: a socket can wait longer than a hold lives."""
        if not self._calls:
            return []
        oldest_s = self._tracker.clock() - self._max_wait_s
        return [turn for turn, call in self._calls.items() if call.admitted_at_s < oldest_s and not turn.begun]

    async def _renew(self, turns: Iterable[Turn]) -> None:
        """Hold anew for turns that are still to come. Raises RefusedError."""
        for turn in turns:
            call = self._calls.pop(turn, None)
            if call is not None:
                await self._tracker.close_call(call, self._tracker.concluder.conclude(call, Report(), NOT_CALLED))
                if turn.ending is None:
                    turn.named, turn.request.model = False, call.model  # whoever is called is called already
                    await self._hold(turn)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._id}.{self._count}"

    def _payer(self, turn: Turn) -> Identity:
        end_user = turn.request.end_user
        if not end_user or self._identity.end_user is not None:
            return self._identity
        return msgspec.structs.replace(self._identity, end_user=end_user)

    def _spec(self, turn: Turn) -> CallSpec:
        request = turn.request
        model = request.model or self._default_model
        if model is None:
            raise invalid_request("model: the socket names no model, and no default_model is configured", self._id)
        limit = request.output_limit
        named = turn.named
        return CallSpec(
            model=model,
            api=self._api.name,
            family=self._api.family,
            kind=turn.kind,
            provider=self._api.provider,
            input_tokens=request.input_bound,
            input_estimate=request.input_estimate,
            output_tokens=None if limit is None else limit * request.choices,
            choices=request.choices,
            remote_input=request.remote_input,
            background=request.background,
            media=request.media,
            stream=True,
            service_tier=request.service_tier,
            other_models=request.other_models,
            units=request.units,
            accepts=lambda _model: named,
            takes_limit=False,  # a turn may have begun without a frame that a limit could be written into
        )

    async def _settle_all(self, turns: Iterable[Turn]) -> None:
        """Settle those that are over: all of them, whatever happens meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        for turn in turns:
            call = self._calls.pop(turn, None) if turn.ending is not None else None
            if call is not None:
                try:
                    await self._settle(turn, call)
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _settle(self, turn: Turn, call: Call) -> None:
        report, cut = turn.report, turn.ending is None and self.cut_off
        reported = report.usage is not None or report.visible_tokens > 0
        if not reported and (report.failed or turn.ending in ("dropped", "failed") or not (turn.sure or turn.begun)):
            ending = NOT_CALLED
        elif turn.ending in ("done", "failed"):
            report.finished = True
            ending = Ending(status=_SWITCHED, complete=True)
        else:
            left = self._left or cut or turn.ending == "stopped"
            ending = Ending(status=_SWITCHED if turn.begun else None, client_left=left)
        conclusion = self._tracker.concluder.conclude(call, report, ending)
        if cut and conclusion.verdict.usage is not None:
            conclusion = replace(conclusion, verdict=replace(conclusion.verdict, outcome="cut"))
        await self._tracker.close_call(call, conclusion, status=ending.status)

    async def _charge_unheld(self, turn: Turn) -> None:
        """What has run already is charged also where nothing could be held for it."""
        model = turn.report.model or turn.request.model or self._default_model or ""
        try:
            await self._tracker.record_usage(
                self._identity, model, usage=turn.report.usage, call_id=self._next_id(), provider=self._api.provider
            )
        except (AskiiError, ValueError):
            logger.exception(
                "socket %s: a response that nothing was held for was not charged",
                self._id,
                extra=fields("socket_uncharged", call_id=self._id, tenant=self._identity.tenant, model=model),
            )

    # Ends ------------------------------------------------------------------------------------------------------------

    async def _cut(self, refused: RefusedError) -> None:
        """End the socket: the client is told why, the application that nobody is there any more."""
        self.cut_off = self._over = True
        self._tracker.metrics.refused(refused.scope_kind, refused.reason)
        refusal = refused.refusal
        self._tracker.tracing.refused(refusal.code, refused.reason, refused.scope_kind, refusal.call_id)
        event = self._api.error_frame(refusal)
        with suppress(OSError):
            if not self._accepted:
                await self._send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return
            if event is not None:
                await self._send({"type": "websocket.send", "text": event})
            reason = f"{refusal.code}: {refusal.message}".encode()[:MAX_REASON_BYTES].decode(errors="ignore")
            code = TOO_BIG if refusal.status == 413 else POLICY_VIOLATION
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def cancelled(self) -> None:
        """The server ended the application, as some do when the client leaves."""
        self._left = True

    async def close(self) -> None:
        """The application has ended: whatever is still open is over."""
        self._over = True
        cancelled: asyncio.CancelledError | None = None
        while self._calls:
            try:
                await self._settle(*self._calls.popitem())
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
