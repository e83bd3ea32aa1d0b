"""Where the pages are, and what stands before every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route

from ..errors import StoreError
from . import budget_pages, dead_pages, key_pages, overview, price_pages, tenant_pages
from .sessions import same
from .visits import HEADERS, PageError, Visit

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .desk import Desk

Page = Callable[[Visit], Awaitable[Response]]

FOR_GOOD = "public, max-age=31536000, immutable"
PAGE_S = 30.0
"""For what a page does in the ledger, as in the API."""


def routes(desk: Desk) -> list[BaseRoute]:
    """All pages of the dashboard, below whatever path they are mounted at."""

    def get(path: str, page: Page) -> Route:
        return Route(path, partial(_shown, desk, page), methods=["GET"])

    def post(path: str, page: Page) -> Route:
        return Route(path, partial(_done, desk, page), methods=["POST"])

    return [
        _Bare(),
        Route("/static/{version}/{name:path}", partial(_static, desk), methods=["GET"]),
        Route("/sign-in", partial(_sign_in, desk), methods=["GET", "POST"]),
        post("/sign-out", _sign_out),
        get("/", overview.page),
        get("/live", overview.live),
        get("/tenants", tenant_pages.listed),
        get("/tenant", tenant_pages.page),
        post("/tenant/suspend", tenant_pages.suspend),
        post("/tenant/resume", tenant_pages.resume),
        get("/budgets", budget_pages.listed),
        post("/budgets", budget_pages.save),
        get("/budgets/edit", budget_pages.edit),
        post("/budgets/remove", budget_pages.remove),
        get("/keys", key_pages.listed),
        post("/keys", key_pages.create),
        get("/keys/new", key_pages.new),
        post("/keys/rotate", key_pages.rotate),
        post("/keys/revoke", key_pages.revoke),
        get("/prices", price_pages.listed),
        post("/prices", price_pages.save),
        get("/prices/edit", price_pages.edit),
        post("/prices/remove", price_pages.remove),
        get("/dead-letters", dead_pages.listed),
        post("/dead-letters/retry", dead_pages.retry),
        _Elsewhere(desk),
    ]


class _Bare(BaseRoute):
    """The mount path without a slash at its end, which people type."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        bare = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return (Match.FULL if bare and scope["path"] == scope.get("root_path") else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await RedirectResponse(f"{scope['root_path']}/", headers=HEADERS)(scope, receive, send)


class _Elsewhere(BaseRoute):
    """What is no page, for people: whoever is not signed in gets what the application says to everybody."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        shown = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        signed_in = shown and Visit(self._desk, Request(scope)).session is not None
        return (Match.FULL if signed_in else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await _told(Visit(self._desk, request), _NOWHERE)(scope, receive, send)


async def _shown(desk: Desk, page: Page, request: Request) -> Response:
    """A page for whoever is signed in; others are asked to sign in."""
    visit = Visit(desk, request)
    if visit.session is None:
        return _asked_to_sign_in(visit)
    return await _guarded(visit, page)


async def _done(desk: Desk, page: Page, request: Request) -> Response:
    """What a form asks for, if it is one of ours, sent by whoever is signed in."""
    visit = Visit(desk, request)
    if not visit.is_of_this_site():
        return _told(visit, _FOREIGN)
    if visit.session is None:
        return _asked_to_sign_in(visit)
    try:
        await visit.read_form()
    except PageError as error:
        return _told(visit, error)
    if not same(visit.form.get("csrf", ""), visit.session.csrf):
        return _told(visit, _FOREIGN)
    return await _guarded(visit, page)


async def _guarded(visit: Visit, page: Page) -> Response:
    try:
        async with asyncio.timeout(PAGE_S):
            return await page(visit)
    except PageError as error:
        return _told(visit, error)
    except (StoreError, TimeoutError) as error:
        visit.tracker.log.store_failed("dashboard", error)
        return _told(visit, _AWAY)


_FOREIGN = PageError(
    403,
    "Not from this page",
    "This request did not come from a form of your session, so nothing was done. Go back, reload the page and retry.",
)
_NOWHERE = PageError(404, "No such page", "There is no page at this address. The links above lead to all there are.")
_AWAY = PageError(
    503,
    "The ledger cannot be reached",
    "Its store did not answer. Reload in a moment, and look whether what you changed is there; the log of this process "
    "says what failed.",
)


def _told(visit: Visit, error: PageError) -> Response:
    return visit.page("error.html", error.status, title=error.title, message=error.message)


def _asked_to_sign_in(visit: Visit) -> Response:
    answer = visit.to("/sign-in")
    if visit.request.headers.get("hx-request"):
        # The part of a page that updates itself would show the form inside: the whole page has to go there.
        answer = Response(status_code=401, headers={**HEADERS, "HX-Redirect": visit.url("/sign-in")})
    return answer


async def _sign_in(desk: Desk, request: Request) -> Response:
    visit = Visit(desk, request)
    if request.method != "POST":
        return visit.to("/") if visit.session else visit.page("sign_in.html", title="Sign in", wrong=False)
    if not visit.is_of_this_site():
        return _told(visit, _FOREIGN)
    try:
        await visit.read_form()
        token = visit.field("token", 1024)
    except PageError as error:
        return _told(visit, error)
    session = desk.sessions.begin(token)
    if session is None:
        desk.note_failed()
        return visit.page("sign_in.html", 403, title="Sign in", wrong=True)
    return visit.let_in(visit.to("/"), session)


async def _sign_out(visit: Visit) -> Response:
    return visit.let_out(visit.to("/sign-in"))


async def _static(desk: Desk, request: Request) -> Response:
    asset = desk.assets.find(request.path_params["name"])
    if asset is None:
        return Response("not found\n", 404, headers=HEADERS, media_type="text/plain")
    # A page of another version asks for its own; what it gets must not be kept under that name.
    known = request.path_params["version"] == desk.assets.version
    headers = {**HEADERS, "Cache-Control": FOR_GOOD if known else "no-store", "Content-Type": asset.content_type}
    return Response(asset.content, headers=headers)
