"""`AskiiMiddleware`: budgets and metering around any ASGI application.

The order of a request: is it metered at all, who makes it, what does its body ask for, may it run, run it, settle.
Everything that is no metered request passes through untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from .body import (
    BodyTooLargeError,
    ClientLeftError,
    UnreadableBodyError,
    decoded,
    parse_object,
    read_body,
)
from .calls import CallSpec, RequestContext, current_request, new_call_id
from .errors import BudgetExceededError, ConfigurationError, StoreError, UnknownModelError
from .identify import Identifier, IdentityFailure, late_tenant
from .identity import Identity
from .keys import KeyDirectory
from .metered import MeteredRequest
from .metrics import metrics_app
from .providers import choose_api, find_apis
from .providers.base import Api, CallRequest, InvalidRequestError, Rewrite
from .refusals import (
    budget_refusal,
    invalid_request,
    ledger_unavailable,
    model_not_allowed,
    model_not_priced,
    send_refusal,
    too_large,
    unauthorized,
    unmetered_route,
)
from .routes import Routes
from .tracker import CostTracker, get_cost_tracker

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .settings import Settings

logger = logging.getLogger(__name__)

INSIDE = "askii.metered"
"""Set in the scope by the outermost middleware; a second one inside passes through."""


class AskiiMiddleware:
    """Wrap an ASGI 3 application.

    Args:
        app: the application.
        tracker: the ledger; None: the process's own, built from the settings.
        identify: who makes a request, given its scope: a sync or async callable that returns a tenant's name, an
            `Identity`, a dict of its fields, or None. It replaces the configured sources.
        settings: None: the environment, `askii.toml` and the defaults, in this order.
        overrides: single settings of this middleware by name, such as `default_tenant="internal"`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tracker: CostTracker | None = None,
        identify: Callable[[Scope], Any] | None = None,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> None:
        from .settings import load_settings  # noqa: PLC0415 - pydantic only where something is configured

        if settings is not None and overrides:
            raise ConfigurationError("give settings or single overrides, not both")
        self.app = app
        self.tracker = tracker if tracker is not None else get_cost_tracker(settings)
        settings = settings or load_settings(**overrides)
        self.settings = settings
        self._identifier = _identifier(settings, self.tracker, identify)
        self._state_attribute = settings.identity.state_attribute if "state" in settings.identity.sources else None
        self._routes = Routes.from_settings(settings)
        self._max_body_bytes = settings.max_body_bytes
        self._expose = settings.expose_amounts
        self._budget_status = settings.budget_exceeded_status
        self._default_model = settings.default_model
        self._inject = settings.inject_usage
        self._metrics_path = settings.metrics_path
        token = settings.metrics_token
        self._metrics = metrics_app(self.tracker, token=token.get_secret_value() if token else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind != "http" or INSIDE in scope:
            await self.app(scope, receive, send)
        else:
            await self._http({**scope, INSIDE: True}, receive, send)

    # Life ---------------------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch_receive() -> Message:
            nonlocal started
            message = await receive()
            if message["type"] == "lifespan.startup" and not started:
                started = True
                await self.tracker.start(strict=False)
            return message

        async def watch_send(message: Message) -> None:
            nonlocal started
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed") and started:
                started = False
                await self.tracker.stop()
            await send(message)

        try:
            await self.app(scope, watch_receive, watch_send)
        finally:
            if started:
                await self.tracker.stop()

    # HTTP ---------------------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self._metrics_path is not None and path == self._metrics_path:
            await self._metrics(scope, receive, send)
            return
        context = RequestContext(scope, lambda: self._identify(scope))
        token = current_request.set(context)
        try:
            apis = find_apis(path) if scope["method"] == "POST" and self._routes.metered(path) else ()
            if apis:
                await self._metered(apis, context, scope, receive, send)
            else:
                await self._unmetered(scope, receive, send)
        finally:
            current_request.reset(token)

    async def _identify(self, scope: Scope) -> Identity | None:
        found = await self._identifier.identify(scope)
        return found if isinstance(found, Identity) else None

    async def _unmetered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A route that is not metered. A budget that a block inside ran into still becomes a clean refusal."""
        path_class = self._routes.path_class(scope["path"])
        if self._routes.denies(scope["method"], scope["path"]):
            self.tracker.metrics.refused("route", "unmetered")
            await send_refusal(None, unmetered_route(new_call_id()), send)
            return
        if scope["method"] == "POST":
            self.tracker.metrics.unmetered(path_class)
        started = False

        async def watch_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch_send)
        except BudgetExceededError as error:
            if started:
                raise
            await self._refuse_budget(None, error, new_call_id(), send)

    async def _metered(
        self, apis: tuple[Api, ...], context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        call_id = new_call_id(self.tracker.clock())
        api = apis[0]
        try:
            await self.tracker.ready()
        except StoreError as error:
            # A ledger that is away is the admission's business; a key it alone knows is refused just below.
            logger.warning("call %s: %s", call_id, error)
        try:
            found = await self._identifier.identify(scope)
        except StoreError as error:
            await self._refuse_unavailable(api, error, call_id, send)
            return
        if isinstance(found, IdentityFailure):
            self.tracker.metrics.refused("identity", found.kind)
            await send_refusal(api, unauthorized(found, call_id), send)
            return
        context.identity = identity = found
        try:
            body, plain, fields = await self._body(scope, receive)
        except ClientLeftError:
            return
        except BodyTooLargeError:
            self.tracker.metrics.refused("body", "too_large")
            await send_refusal(api, too_large(self._max_body_bytes, call_id), send)
            return
        except UnreadableBodyError as error:
            self.tracker.metrics.refused("body", "unreadable")
            await send_refusal(api, invalid_request(str(error), call_id), send)
            return
        owner = None if fields is None else choose_api(apis, fields)
        if owner is None or fields is None:
            await self._unmetered(scope, _replay(body, receive), send)
            return
        api = owner
        try:
            request = api.parse(fields, len(plain))
            if request.model is None:
                request.model = self._default_model
            if request.model is None:
                raise InvalidRequestError("model: the request names no model, and no default_model is configured")  # noqa: TRY301
        except InvalidRequestError as error:
            self.tracker.metrics.refused("request", "invalid")
            await send_refusal(api, invalid_request(str(error), call_id), send)
            return
        if identity.models and self.tracker.prices.canonical(request.model) not in identity.models:
            self.tracker.metrics.refused("model", "not_allowed")
            await send_refusal(api, model_not_allowed(request.model, call_id), send)
            return
        if request.end_user and identity.end_user is None:
            identity = context.identity = msgspec.structs.replace(identity, end_user=request.end_user[:256])
        try:
            context.call = await self.tracker.admit(identity, _spec(api, request, request.model), call_id=call_id)
        except BudgetExceededError as error:
            await self._refuse_budget(api, error, call_id, send)
            return
        except UnknownModelError as error:
            self.tracker.metrics.refused("model", "not_priced")
            await send_refusal(api, model_not_priced(str(error), call_id), send)
            return
        except StoreError as error:
            await self._refuse_unavailable(api, error, call_id, send)
            return
        await self._run(api, request, context, scope, body, plain, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, bytes, dict[str, msgspec.Raw] | None]:
        """The body as it came, without its encoding, and its top level."""
        encoding = b""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_body_bytes:
                raise BodyTooLargeError
            if name == b"content-encoding":
                encoding = value
        body = await read_body(receive, self._max_body_bytes)
        plain = decoded(body, encoding, self._max_body_bytes) if encoding else body
        return body, plain, parse_object(plain)

    async def _run(
        self,
        api: Api,
        request: CallRequest,
        context: RequestContext,
        scope: Scope,
        body: bytes,
        plain: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        call = context.call
        assert call is not None
        inject = self._injects(call.model) and api.injects_usage(request, call.model)
        change = Rewrite(
            model=call.model if call.model != request.model or b"model" not in plain else None,
            output_limit=call.write_output_limit,
            inject_usage=inject,
        )
        if change.model is None and change.output_limit is None and not inject:
            out = body
        else:
            out = api.rewrite(request, change)
            scope = _with_body(scope, len(out), identity_only=inject)
        state = scope.get("state")
        if isinstance(state, dict):
            state["askii_model"] = call.model
        else:
            scope["state"] = {"askii_model": call.model}
        metered = MeteredRequest(
            self.tracker, api, call, context, out, receive, send, hide_usage=inject, expose_amounts=self._expose
        )
        try:
            await self.app(scope, metered.receive, metered.send)
            await metered.returned()
        except BudgetExceededError as error:
            if metered.started:
                raise
            await metered.close()
            await self._refuse_budget(api, error, call.id, send)
        except asyncio.CancelledError:
            metered.cancelled()
            raise
        finally:
            await metered.close()
            if self._state_attribute is not None:
                self._notice_late_identity(scope, context, self._state_attribute)

    def _injects(self, model: str) -> bool:
        if isinstance(self._inject, bool):
            return self._inject
        return self._inject.get(model, self._inject.get("*", True))

    def _notice_late_identity(self, scope: Scope, context: RequestContext, attribute: str) -> None:
        """A tenant that appeared in the state only after the application ran was not the one whose budget was
        checked: say so loudly, because it is an error in the order of the middleware.
        """
        late = late_tenant(scope, attribute)
        if context.identity is not None and late is not None and late != context.identity.tenant:
            self.tracker.metrics.late_identity()
            logger.error(
                "the tenant appeared in request.state after AskiiMiddleware had admitted the call as %r: the "
                "middleware that sets it must run first (add it after AskiiMiddleware), or use identify=...",
                context.identity.tenant,
            )

    async def _refuse_unavailable(self, api: Api, error: StoreError, call_id: str, send: Send) -> None:
        logger.error("call %s refused: %s", call_id, error)
        self.tracker.metrics.refused("ledger", "unavailable")
        await send_refusal(api, ledger_unavailable(call_id), send)

    async def _refuse_budget(self, api: Api | None, error: BudgetExceededError, call_id: str, send: Send) -> None:
        refusal = budget_refusal(error, call_id, status=self._budget_status, expose_amounts=self._expose)
        self.tracker.metrics.refused(refusal.scope_kind or "global", error.reason)
        await send_refusal(api, refusal, send)


def _identifier(settings: Settings, tracker: CostTracker, identify: Callable[[Scope], Any] | None) -> Identifier:
    keys = KeyDirectory(settings.keys, tracker.store, clock=tracker.clock)
    if identify is None:
        return Identifier.from_settings(settings, keys, clock=tracker.clock)
    return Identifier((identify,), default_tenant=settings.default_tenant)


def _spec(api: Api, request: CallRequest, model: str) -> CallSpec:
    limit = request.output_limit if request.output_limit is not None else api.default_output_limit
    return CallSpec(
        model=model,
        api=api.name,
        family=api.family,
        kind=api.kind,
        provider=api.provider,
        input_tokens=request.input_bound,
        # About four bytes a token, where the parser does not know better: a call without usage is never free.
        input_estimate=request.input_estimate or -(-request.input_bound // 4),
        output_tokens=None if limit is None else limit * request.choices,
        choices=request.choices,
        remote_input=request.remote_input,
        media=request.media,
        stream=request.stream,
        service_tier=request.service_tier,
        other_models=request.other_models,
    )


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives a body that was already read, then the server's own messages."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _with_body(scope: Scope, length: int, *, identity_only: bool) -> Scope:
    """The scope for a rewritten body: its length, no encoding, and no transfer coding."""
    dropped = {b"content-length", b"content-encoding", b"transfer-encoding"}
    if identity_only:
        # Usage that is to be taken out of the stream again must be readable.
        dropped.add(b"accept-encoding")
    headers = [header for header in scope["headers"] if header[0] not in dropped]
    headers.append((b"content-length", b"%d" % length))
    if identity_only:
        headers.append((b"accept-encoding", b"identity"))
    return {**scope, "headers": headers}
