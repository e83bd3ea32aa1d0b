"""WebSockets that carry metered calls: who may open one, and how others are refused.

A socket is refused before it opens where nobody can be told to pay for it, or where what it names cannot be paid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from .admission import Admission, fitting
from .admitting import exceeded
from .calls import RequestContext, current_request, new_call_id
from .errors import StoreError
from .identity import Identity
from .keys import SECRET_PREFIX
from .log_fields import fields
from .metered_socket import POLICY_VIOLATION, Admit, MeteredSocket
from .providers.base import InvalidRequestError
from .refusals import RefusedError, budget_refused, invalid_request, ledger_unavailable, tenant_suspended

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .providers.socket_base import SocketApi
    from .settings import Settings
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

Who = Callable[[Any, str], Awaitable[Identity]]

DENIAL = "websocket.http.response"
"""The extension by which a server answers an opening with HTTP. Without it all refusals are its own 403."""
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""How browsers, which cannot set headers, send OpenAI's realtime API a key."""


class SocketDoor:
    """Lets metered sockets in. `who` and `admit` are the middleware's, and raise RefusedError."""

    def __init__(self, tracker: CostTracker, who: Who, admit: Admit, settings: Settings) -> None:
        self._tracker = tracker
        self._who = who
        self._admit = admit
        self._settings = settings

    async def serve(self, app: ASGIApp, api: SocketApi, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a socket from its opening to its end."""
        call_id = new_call_id(self._tracker.clock())
        connect = await receive()
        context = RequestContext(scope, None, self._tracker)
        try:
            identity = context.identity = await self._who(_with_key(scope), call_id)
            try:
                session = api.session(scope.get("query_string", b""))
            except InvalidRequestError as error:
                raise invalid_request(str(error), call_id) from error
            socket = MeteredSocket(
                self._tracker, api, session, identity, self._admit, self._settings, call_id, receive, send
            )
            if not await socket.open(scope):
                await self._check(identity, call_id)
        except RefusedError as refused:
            self._tracker.metrics.refused(refused.scope_kind, refused.reason)
            self._tracker.tracing.refused(
                refused.refusal.code, refused.reason, refused.scope_kind, refused.refusal.call_id
            )
            await deny(api, refused, scope, send)
            return
        context.resolve = lambda: _same(identity)
        token = current_request.set(context)
        socket.first = connect
        try:
            await app(scope, socket.receive, socket.send)
        except asyncio.CancelledError:
            socket.cancelled()
            raise
        except OSError:
            if not socket.cut_off:
                raise
            logger.debug(
                "socket %s: the application went on after it was cut off",
                call_id,
                extra=fields("socket_cut", call_id=call_id),
            )
        finally:
            context.over = True
            current_request.reset(token)
            await socket.close()

    async def _check(self, identity: Identity, call_id: str) -> None:
        """A socket whose model is not known yet needs somebody who may call and has anything left. Holds nothing."""
        tracker = self._tracker
        if tracker.modes.of(identity.tenant) != "enforce":
            return
        away: StoreError | None = None
        try:
            lines = await tracker.budget_lines(identity.dimensions())
        except StoreError as error:
            away = error
        # Only now: the first question of a process opens the ledger, and learns from it who is suspended.
        if tracker.tenants.find(identity.tenant) is not None:
            raise tenant_suspended(call_id)
        if away is not None:
            if self._settings.on_store_error == "allow":
                return
            raise ledger_unavailable(call_id) from away
        short = [line for line in lines if fitting((line,), 1) is None]
        if short:
            line = max(short, key=lambda line: line.resets_at_s)
            spent = line.limit_nano_usd is not None and line.spent_nano_usd >= line.limit_nano_usd
            answer = Admission(candidate=None, admitted_at_s=0.0, reason="spent" if spent else "held", deciding=line)
            raise budget_refused(
                exceeded(answer, tracker.rates.current()),
                call_id,
                identity=identity,
                status=self._settings.budget_exceeded_status,
                expose_amounts=self._settings.expose_amounts,
            )


async def deny(api: SocketApi | None, refused: RefusedError, scope: Scope, send: Send) -> None:
    """Refuse a socket before it opens: with HTTP, in its API's envelope, where the server can."""
    refusal = refused.refusal
    if api is None or DENIAL not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refusal.code})
        return
    body, more = api.refusal(refusal)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-askii-call-id", refusal.call_id.encode()),
        *more,
    ]
    await send({"type": f"{DENIAL}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{DENIAL}.body", "body": body})


async def _same(identity: Identity) -> Identity:
    return identity


def _with_key(scope: Scope) -> Scope:
    """The scope with a key of ours where it is looked for: browsers send it as a subprotocol, Gemini's clients in the
    query. Others' keys stay where they are.
    """
    words = [word.strip() for word in scope.get("subprotocols") or ()]
    found = {word.removeprefix(_KEY_SUBPROTOCOL) for word in words if word.startswith(_KEY_SUBPROTOCOL)}
    query = scope.get("query_string", b"")
    if b"key=" in query:
        found |= {value for name, value in parse_qsl(query.decode("latin-1")) if name == "key"}
    keys = [(b"x-api-key", key.encode("latin-1", "replace")) for key in sorted(found) if key.startswith(SECRET_PREFIX)]
    return {**scope, "headers": [*scope["headers"], *keys]} if keys else scope
