"""The billing API as an application to mount anywhere, with the dashboard beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .access import Access, IdentifyTenant
from .desk import Desk
from .intake import BODY_S
from .openapi import document
from .resource import SAFE_HEADERS, Resource
from .table import OPERATIONS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..tracker import CostTracker

__all__ = ["CookieSecure", "IdentifyTenant", "api_app"]

SESSION_S: Final = 43_200.0
CookieSecure = Literal["auto", "always", "never"]


def api_app(
    tracker: CostTracker,
    admin_token: str | None = None,
    *,
    dashboard: bool = True,
    session_s: float = SESSION_S,
    cookie_secure: CookieSecure = "auto",
    identify: IdentifyTenant | None = None,
    body_s: float = BODY_S,
) -> ASGIApp:
    """The application. See `CostTracker.api`. Raises ConfigurationError, and MissingExtraError for a dashboard without
    its extra.
    """
    access = Access(admin_token, tracker.keys.directory, ready=tracker.ready, identify=identify, clock=tracker.clock)
    desk = Desk(tracker, access)
    routes: list[BaseRoute] = [
        Route(_pattern(path), Resource(desk, operations, body_s=body_s))
        for path, operations in groupby(OPERATIONS, key=lambda operation: operation.path)
    ]
    spec = msgspec.json.encode(document(OPERATIONS))

    async def openapi(_request: Request) -> Response:
        return Response(spec, media_type="application/json", headers=SAFE_HEADERS)

    nothing = Resource(desk)
    routes += [Route("/openapi.json", openapi), Route("/api/{rest:path}", nothing)]
    if dashboard and admin_token is not None:
        from ..dashboard import Desk as DashboardDesk  # noqa: PLC0415 - an extra
        from ..dashboard import routes as pages  # noqa: PLC0415 - as above

        routes += pages(
            DashboardDesk(tracker, admin_token=admin_token, session_s=session_s, cookie_secure=cookie_secure)
        )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        """Where it is served alone. Mounted, the tracker lives as the middleware's, or from the first request on."""
        await tracker.start(strict=False)
        try:
            yield
        finally:
            await tracker.stop()

    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = nothing

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        await app(_as_sent(scope) if scope["type"] == "http" else scope, receive, send)

    return routed


def _as_sent(scope: Scope) -> Scope:
    """The scope with the path as the client sent it. Litestar puts a slash behind the paths of mounts and leaves out
    where they are. A slash that was sent may be the last character of an id, and `acme/` is not `acme`.
    """
    raw = unquote((scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1"))
    path: str = scope["path"]
    if not raw or raw == path or scope.get("root_path"):
        return scope
    if path.endswith("/") and not raw.endswith("/"):
        path = path[:-1]
    if not raw.endswith(path):
        return scope
    raw = f"/{raw.lstrip('/')}"  # in a link, `//` would begin another site
    return {**scope, "path": raw, "root_path": raw.removesuffix(path)}


def _pattern(path: str) -> str:
    """Ids may have slashes: clients percent-encode them, and servers decode that before anybody can look."""
    return path.replace("}", ":path}")
