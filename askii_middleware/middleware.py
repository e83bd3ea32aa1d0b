"""`AskiiMiddleware`: budgets and metering around any ASGI application.

The order of a request: is it metered at all, who makes it, what does its body ask for, may it run, run it, settle.
Everything that is no metered request passes through untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, overload

import msgspec

from .body import BodyTooLargeError, ClientLeftError, UnreadableBodyError
from .bypass import Bypasses
from .calls import Call, CallSpec, RequestContext, current_request, new_call_id
from .default_tracker import get_cost_tracker
from .errors import BudgetExceededError, ConfigurationError, Denial, StoreError, TenantSuspendedError, UnknownModelError
from .identify import Identifier, IdentityFailure, key_directory
from .identity import Identity
from .intake import Intake, preferred_model, specify, take_in
from .lifespan import run_lifespan
from .log_fields import fields
from .metered import MeteredRequest
from .polling import watched
from .preparing import prepare
from .providers.base import Api, CallRequest, InvalidRequestError
from .refusals import (
    RefusedError,
    body_too_large,
    budget_refused,
    invalid_request,
    ledger_unavailable,
    model_not_allowed,
    model_not_priced,
    send_refusal,
    tenant_suspended,
    unauthorized,
    unmetered_route,
    unreadable_body,
)
from .routes import Routes, route_path
from .scraping import metrics_app
from .sockets import SocketDoor
from .tracker import CostTracker

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

    # Starlette's typed `add_middleware` takes no class with free keywords: without overrides this signature serves.
    @overload
    def __init__(
        self,
        app: ASGIApp,
        *,
        tracker: CostTracker | None = None,
        identify: Callable[[Scope], Any] | None = None,
        settings: Settings | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        app: ASGIApp,
        *,
        tracker: CostTracker | None = None,
        identify: Callable[[Scope], Any] | None = None,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> None: ...

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
        self._canonical = self.tracker.prices.canonical
        settings = settings or load_settings(**overrides)
        self.settings = settings
        self._identifier = _identifier(settings, self.tracker, identify)
        self._late_identifier: Identifier | None = None
        if identify is None and "state" in settings.identity.sources:
            self._late_identifier = Identifier(("state",), state_attribute=settings.identity.state_attribute)
        self._routes = Routes.from_settings(settings)
        self._max_body_bytes = settings.max_body_bytes
        self._expose = settings.expose_amounts
        self._budget_status = settings.budget_exceeded_status
        self._default_model, self._model_header = settings.default_model, settings.routes.model_header
        inject = settings.inject_usage
        self._inject = inject if isinstance(inject, bool) else {self._canonical(k): v for k, v in inject.items()}
        self._bypasses = Bypasses(self.tracker.metrics)
        if settings.metrics_port is not None:
            logger.warning(
                "metrics_port is for askii serve; here use metrics_path, or mount tracker.metrics_app()",
                extra=fields("metrics_port_unused"),
            )
        self._metrics_path = settings.metrics_path
        token = settings.metrics_token
        self._metrics = metrics_app(self.tracker, token=token.get_secret_value() if token else None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Frameworks type these three in their own ways; Litestar's are not Starlette's.
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self.app, self.tracker, scope, receive, send)
        elif kind == "websocket" and INSIDE not in scope:
            await self._websocket(scope, receive, send)
        elif kind != "http" or INSIDE in scope:
            await self.app(scope, receive, send)
        else:
            await self._http({"headers": (), **scope, INSIDE: True}, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        api = self._routes.socket(path)
        if api is not None:
            door = SocketDoor(self.tracker, self._who, self._admit, self.settings)
            await door.serve(self.app, api, {"headers": (), **scope, INSIDE: True}, receive, send)
        elif self._routes.denies("POST", path):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "this route is not metered"})
        else:
            self.tracker.metrics.unmetered(self._routes.path_class(path))
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        if self._metrics_path is not None and path == self._metrics_path:
            await self._metrics(scope, receive, send)
            return
        context = RequestContext(scope, lambda: self._identify(scope), self.tracker)
        token = current_request.set(context)
        try:
            apis = self._routes.apis(scope["method"], path)
            if apis:
                await self._metered(apis, context, scope, receive, send)
            else:
                send = watched(self.tracker, scope["method"], path, send)
                await self._unmetered(context, scope, receive, send)
        finally:
            context.over = True
            current_request.reset(token)

    async def _identify(self, scope: Scope) -> Identity | None:
        found = await self._identifier.identify(scope)
        return found if isinstance(found, Identity) else None

    async def _unmetered(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        """Where a block inside runs into a budget that is a clean refusal, also if a framework made a 500 of it."""
        path = route_path(scope)
        if self._routes.denies(scope["method"], path):
            await self._refuse(None, unmetered_route(new_call_id(self.tracker.clock())), send)
            return
        if self._routes.watches(scope["method"], path):
            path_class = self._routes.path_class(path)
            self.tracker.metrics.unmetered(path_class)
            send = self._bypasses.watch(path_class, context, send)
        began, unanswered = False, None

        async def watch_send(message: Message) -> None:
            nonlocal began, unanswered
            if message["type"] == "http.response.start" and not began:
                unanswered = context.denied if message["status"] == 500 else None
                began = unanswered is None
            if unanswered is None:
                await send(message)

        try:
            await self.app(scope, receive, watch_send)
        except Exception as error:
            denied = error if isinstance(error, Denial) else context.denied
            if began or denied is None:
                raise
            await self._refuse_denied(None, denied, context, new_call_id(self.tracker.clock()), send)
            if denied is not error:
                raise
        else:
            if unanswered is not None:
                await self._refuse_denied(None, unanswered, context, new_call_id(self.tracker.clock()), send)

    # Metered requests -----------------------------------------------------------------------------------------------

    async def _metered(
        self, apis: tuple[Api, ...], context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        call_id = new_call_id(self.tracker.clock())
        api = apis[0]
        try:
            identity = await self._who(scope, call_id)
            context.identity = identity
            intake = await self._take_in(apis, scope, receive, call_id)
            api = intake.api or api
            if intake.api is not None:
                request, spec = self._specify(intake, scope, call_id)
                if request.end_user and identity.end_user is None:
                    context.identity = identity = msgspec.structs.replace(identity, end_user=request.end_user)
                call = context.call = await self._admit(identity, spec, call_id)
        except ClientLeftError:
            return
        except RefusedError as refused:
            await self._refuse(api, refused, send)
            return
        if intake.api is None:
            await self._unmetered(context, scope, _replay(intake.body, receive), send)
        else:
            await self._run(intake, request, call, context, scope, receive, send)

    async def _who(self, scope: Scope, call_id: str) -> Identity:
        try:
            await self.tracker.ready()
        except StoreError as error:
            # A ledger that is away is the admission's business; a key it alone knows is refused just below.
            self.tracker.log.store_failed("open", error, call_id)
        try:
            found = await self._identifier.identify(scope)
        except StoreError as error:
            self.tracker.log.store_failed("identify", error, call_id)
            raise self._unavailable(error, call_id) from error
        if isinstance(found, IdentityFailure):
            raise unauthorized(found, call_id)
        return found

    async def _take_in(self, apis: tuple[Api, ...], scope: Scope, receive: Receive, call_id: str) -> Intake:
        try:
            return await take_in(apis, scope, receive, self._max_body_bytes)
        except BodyTooLargeError:
            raise body_too_large(self._max_body_bytes, call_id) from None
        except UnreadableBodyError as error:
            raise unreadable_body(str(error), call_id) from error

    def _specify(self, intake: Intake, scope: Scope, call_id: str) -> tuple[CallRequest, CallSpec]:
        assert intake.api is not None
        try:
            unnamed = preferred_model(scope, self._model_header) or self._default_model
            return specify(intake.api, intake, unnamed, self._is_priced)
        except InvalidRequestError as error:
            raise invalid_request(str(error), call_id) from error

    async def _admit(self, identity: Identity, spec: CallSpec, call_id: str) -> Call:
        if identity.models:
            besides = [items.model for items in spec.items] + [spec.deployment or spec.model]
            for model in (spec.model, *spec.other_models, *spec.alternatives, *besides):
                if not self._may_call(identity, model):
                    raise model_not_allowed(model, call_id)
        try:
            return await self.tracker.admit(identity, spec, call_id=call_id)
        except (BudgetExceededError, TenantSuspendedError) as error:
            raise self._denied(error, identity, call_id) from error
        except UnknownModelError as error:
            raise model_not_priced(str(error), call_id) from error
        except StoreError as error:
            raise self._unavailable(error, call_id) from error

    def _may_call(self, identity: Identity, model: str) -> bool:
        """A dated model belongs to its family unless it has a price of its own."""
        allowed = {self._canonical(name) for name in identity.models}
        return self._canonical(model) in allowed or self.tracker.names.of(model) in allowed

    async def _run(
        self,
        intake: Intake,
        request: CallRequest,
        call: Call,
        context: RequestContext,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        api = intake.api
        assert api is not None
        payer = None
        if self._late_identifier is not None and call.identity.source == "default":
            payer = self._late_identifier.identify
        metered = MeteredRequest(
            self.tracker, api, call, context, receive, send, expose_amounts=self._expose, payer=payer
        )
        try:
            metered.hide_usage = (
                api.injects_usage(request, call.model)
                and self._injects(call.model)
                and api.query_takes_usage(scope.get("query_string", b""))
            )
            metered.body = prepare(
                intake, request, call, scope, inject_usage=metered.hide_usage, plain_answer=metered.watched
            )
            await self.app(scope, metered.receive, metered.send)
            await metered.ended()
        except asyncio.CancelledError:
            metered.cancelled()
            raise
        except Exception as error:
            if metered.was_cut:  # whatever it makes of a client that has left
                kind = type(error).__name__  # its text is the application's own, and may repeat the prompt
                logger.debug(
                    "call %s: cut, and its application ended with %s",
                    call.id,
                    kind,
                    extra=fields("application_failed", call_id=call.id, error_type=kind),
                )
                return
            denied = error if isinstance(error, Denial) else context.denied
            if metered.began or denied is None:
                await metered.broke_off()
                raise
            await metered.close()
            await self._refuse_denied(api, denied, context, call.id, send)
            if denied is not error:
                raise
        else:
            if metered.unanswered is not None:
                await metered.close()
                await self._refuse_denied(api, metered.unanswered, context, call.id, send)
        finally:
            await metered.close()

    def _is_priced(self, model: str) -> bool:
        return self.tracker.prices.find(model) is not None

    def _injects(self, model: str) -> bool:
        if isinstance(self._inject, bool):
            return self._inject
        return self._inject.get(self._canonical(model), self._inject.get("*", True))

    # Refusals -------------------------------------------------------------------------------------------------------

    async def _refuse(self, api: Api | None, refused: RefusedError, send: Send) -> None:
        self.tracker.metrics.refused(refused.scope_kind, refused.reason)
        self.tracker.tracing.refused(refused.refusal.code, refused.reason, refused.scope_kind, refused.refusal.call_id)
        await send_refusal(api, refused.refusal, send)

    async def _refuse_denied(
        self, api: Api | None, error: Denial, context: RequestContext, call_id: str, send: Send
    ) -> None:
        await self._refuse(api, self._denied(error, context.identity, call_id), send)

    def _denied(self, error: Denial, identity: Identity | None, call_id: str) -> RefusedError:
        if isinstance(error, TenantSuspendedError):
            return tenant_suspended(call_id)
        return budget_refused(
            error, call_id, identity=identity, status=self._budget_status, expose_amounts=self._expose
        )

    @staticmethod
    def _unavailable(error: StoreError, call_id: str) -> RefusedError:
        # Once for each call, so for those who look closely; `EventLog.store_failed` tells of the outage.
        logger.debug("call %s refused: %s", call_id, error, extra=fields("ledger_unavailable", call_id=call_id))
        return ledger_unavailable(call_id)


def _identifier(settings: Settings, tracker: CostTracker, identify: Callable[[Scope], Any] | None) -> Identifier:
    keys = key_directory(settings, tracker.keys)
    if identify is None:
        return Identifier.from_settings(settings, keys, clock=tracker.clock)
    return Identifier((identify,), default_tenant=settings.default_tenant)


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
