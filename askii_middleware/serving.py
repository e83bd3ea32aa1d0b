"""`askii serve` as an application: the middleware in front of the streaming proxy."""

from __future__ import annotations

import ipaddress
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from .calls import new_call_id
from .default_tracker import get_cost_tracker
from .errors import ConfigurationError, StoreError
from .identify import Identifier, IdentityFailure, key_directory
from .log_fields import fields
from .metrics_listener import MetricsListener, with_listener
from .middleware import AskiiMiddleware
from .providers.free import is_free
from .refusals import RefusedError, ledger_unavailable, mints_refused, send_refusal, unauthorized
from .routes import Routes, mints_credentials, route_path, undisguised
from .settings import Settings, describe, limits_nothing, load_settings
from .sockets import deny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from .lago_signatures import FetchKey
    from .settings_webhooks import LagoWebhookSettings
    from .tracker import CostTracker

logger = logging.getLogger(__name__)

METRICS_PATH = "/metrics"
HOST_VARIABLE = "_ASKII_SERVE_HOST"
"""Tells workers where `askii serve` listens."""
OWN_PATHS = ("/healthz", "/readyz")
CLIENT_ROOTS = ("/v1", "/v1beta", "/v2", "/api", "/openai", "/anthropic")
"""What clients of the upstreams' APIs have at the beginning of their paths."""


def create_app() -> ASGIApp:
    """The gateway of this process's settings; what each worker of `askii serve` runs."""
    return served(load_settings(), os.environ.get(HOST_VARIABLE, "127.0.0.1"), shared=True)


def served(settings: Settings, host: str, *, shared: bool = False) -> ASGIApp:
    """The gateway, and with `metrics_port` a listener for metrics on the same address. `shared`: other workers have the
    same. Raises like `gateway`.
    """
    app = gateway(settings)
    if settings.metrics_port is None:
        return app
    token = settings.metrics_token
    listener = MetricsListener(
        get_cost_tracker(settings),
        host,
        settings.metrics_port,
        token=token.get_secret_value() if token else None,
        shared=shared,
    )
    return with_listener(app, listener)


def gateway(settings: Settings, tracker: CostTracker | None = None) -> ASGIApp:
    """Middleware and proxy as the settings describe them. Raises ConfigurationError, MissingExtraError."""
    from .gateway import Proxy, Upstream, gateway_app  # noqa: PLC0415 - the extra `gateway` is needed only here

    if not settings.upstreams:
        raise ConfigurationError("no upstream: give --upstream URL, or [upstreams.NAME] with a url in askii.toml")
    if settings.api.admin_token is not None:
        _check_api_path(settings)
    tracker = tracker if tracker is not None else get_cost_tracker(settings)
    tables = settings.upstreams
    proxy = Proxy(
        [
            Upstream(
                name=name,
                url=table.url,
                api_key=table.api_key.get_secret_value() if table.api_key else None,
                models=() if table.models == ("*",) else table.models,
                provider=table.provider or name,
            )
            for name, table in tables.items()
        ],
        max_connections=min(table.max_connections for table in tables.values()),
        connect_timeout_s=min(table.connect_timeout_s for table in tables.values()),
        first_byte_timeout_s=max(table.read_timeout_s for table in tables.values()),
        idle_timeout_s=max(table.read_timeout_s for table in tables.values()),
    )

    async def ready() -> bool:
        try:
            await tracker.ping()
        except StoreError as error:
            tracker.log.store_failed("ready", error)
            return False
        return True

    inner: ASGIApp = proxy
    if any(table.api_key for table in tables.values()):
        inner = _known_callers_only(proxy, settings, tracker)
    routes = settings.routes.model_copy(update={"exempt": (*settings.routes.exempt, *OWN_PATHS)})
    app = AskiiMiddleware(
        gateway_app(inner, ready),
        tracker=tracker,
        settings=settings.model_copy(update={"routes": routes, "metrics_port": None}),
    )
    outer = app if settings.lago_webhooks is None else _with_webhooks(app, settings, settings.lago_webhooks, tracker)
    return outer if settings.api.admin_token is None else _with_api(outer, settings, tracker)


def _check_api_path(settings: Settings) -> None:
    """Raise ConfigurationError where the billing API would hide something else, or be hidden."""
    prefix = settings.api.path
    hooks = None if settings.lago_webhooks is None else settings.lago_webhooks.path
    for taken in (*OWN_PATHS, METRICS_PATH, settings.metrics_path, hooks, *CLIENT_ROOTS):
        if taken is not None and (f"{taken}/".startswith(f"{prefix}/") or f"{prefix}/".startswith(f"{taken}/")):
            raise ConfigurationError(f"api.path: {prefix} would hide {taken}, or be hidden by it; choose another path")
    if route_path({"path": prefix}) != prefix:
        raise ConfigurationError(f"api.path: {prefix} reaches the gateway as {route_path({'path': prefix})}")


def _with_api(app: ASGIApp, settings: Settings, tracker: CostTracker) -> ASGIApp:
    """`app`, with the billing API and the dashboard below their path: before the middleware, since they know their
    callers by themselves.
    """
    table = settings.api
    prefix, token = table.path, table.admin_token
    inner = tracker.api(
        None if token is None else token.get_secret_value(),
        dashboard=table.dashboard,
        session_s=table.session_s,
        cookie_secure=table.cookie_secure,
    )

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] != "lifespan" else ""
        if path != prefix and not path.startswith(f"{prefix}/"):
            await app(scope, receive, send)
            return
        root = scope.get("root_path", "")
        await inner({**scope, "root_path": root + prefix, "path": root + path}, receive, send)

    return routed


def _with_webhooks(app: ASGIApp, settings: Settings, table: LagoWebhookSettings, tracker: CostTracker) -> ASGIApp:
    """`app`, with Lago's webhooks taken at their path: before the middleware, whose callers need an identity."""
    from .lago_signatures import fetched_from  # noqa: PLC0415 - only where it is configured
    from .lago_webhooks import LagoWebhooks  # noqa: PLC0415 - as above

    _check_free(table.path, settings)
    public_key: str | FetchKey | None = table.public_key.get_secret_value() if table.public_key else None
    if table.url is not None and table.api_key is not None:
        public_key = fetched_from(table.url, table.api_key.get_secret_value())
    webhooks = LagoWebhooks(
        tracker,
        hmac_key=table.hmac_key.get_secret_value() if table.hmac_key else None,
        public_key=public_key,
        issuer=table.issuer,
        organization_id=table.organization_id,
        subscriptions=table.subscriptions or _billed_to(settings, tracker),
        customers=table.customers,
    )

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        mine = scope["type"] == "http" and route_path(scope) == table.path
        await (webhooks if mine else app)(scope, receive, send)

    return routed


def _check_free(path: str, settings: Settings) -> None:
    """Raise ConfigurationError where something else is served at the path of the webhooks, or nothing can be."""
    plain = undisguised(path)
    if path in (*OWN_PATHS, METRICS_PATH, settings.metrics_path):
        raise ConfigurationError(f"lago_webhooks.path: the gateway itself answers at {path}; choose another path")
    everything = Routes()
    if everything.apis("POST", path) or everything.socket(path) is not None or is_free(plain):
        raise ConfigurationError(f"lago_webhooks.path: {path} is a path of a metered API; choose another")
    if plain != path:
        raise ConfigurationError(f"lago_webhooks.path: {path} reaches the gateway as {plain}; write it so")


def _billed_to(settings: Settings, tracker: CostTracker) -> Callable[[str], Iterable[str]]:
    """Whom the settings bill to a subscription: `[billing.subscriptions]` read backwards, and who is its own."""
    tenants: dict[str, list[str]] = {}
    for tenant, subscription in settings.billing.subscriptions.items():
        tenants.setdefault(subscription, []).append(tenant)
    return lambda id_: (*tenants.get(id_, ()), *tracker.tenants_billed_to(id_))


def _known_callers_only(proxy: ASGIApp, settings: Settings, tracker: CostTracker) -> ASGIApp:
    """`proxy` for callers with an identity. The middleware asks for one where it meters; what passes it unmetered, such
    as files and images, would otherwise be sent with the upstream's key for anybody who can connect. Credentials with
    which a client could go to the upstream past the gateway are made for nobody.
    """
    routes = Routes.from_settings(settings)
    identifier = Identifier.from_settings(settings, key_directory(settings, tracker.keys), clock=tracker.clock)

    async def refused(scope: Scope) -> RefusedError | None:
        with suppress(StoreError):  # a ledger that is away matters only where a key has to be looked up
            await tracker.ready()
        try:
            found = await identifier.identify(scope)
        except StoreError as error:
            call_id = new_call_id()
            tracker.log.store_failed("identify", error, call_id)
            return ledger_unavailable(call_id)
        return unauthorized(found, new_call_id()) if isinstance(found, IdentityFailure) else None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and "askii_model" not in scope.get("state", ()):
            refusal = await refused(scope)
            if refusal is None and mints_credentials(route_path(scope)) and not routes.exempts(route_path(scope)):
                refusal = mints_refused(new_call_id())
            if refusal is not None:
                tracker.metrics.refused(refusal.scope_kind, refusal.reason)
                tracker.tracing.refused(
                    refusal.refusal.code, refusal.reason, refusal.scope_kind, refusal.refusal.call_id
                )
                if scope["type"] == "http":
                    await send_refusal(None, refusal.refusal, send)
                else:
                    await deny(None, refusal, scope, send)
                return
        await proxy(scope, receive, send)

    return app


def with_metrics(settings: Settings, host: str) -> Settings:
    """The settings with `/metrics` served, where that shows nothing to strangers: on loopback, or behind a token. Where
    there is a `metrics_port`, metrics have a path only if one was asked for.

    Raises ConfigurationError where a path was asked for beyond loopback without a token.
    """
    if settings.metrics_port is not None and settings.metrics_path is None:
        return settings
    if is_loopback(host) or settings.metrics_token is not None:
        return settings.model_copy(update={"metrics_path": settings.metrics_path or METRICS_PATH})
    if settings.metrics_path is not None:
        raise ConfigurationError(
            f"metrics_path: {host} is reachable from outside, so metrics_token is needed (or leave metrics_path out)"
        )
    logger.warning(
        "no metrics are served beyond loopback without metrics_token or metrics_port", extra=fields("metrics_unserved")
    )
    return settings


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def start_lines(settings: Settings) -> list[str]:
    """What a start says: the configuration in one line, and what should worry its reader."""
    lines = [describe(settings)]
    if limits_nothing(settings):
        lines.append("warning: no budget is declared that limits anything: only those of askii budget set do")
    if "key" in settings.identity.sources and not settings.keys and settings.default_tenant is None:
        lines.append("no key is declared, and there is no default_tenant: only keys of askii keys add open the gateway")
    return lines
