"""A ledger with something in it, and its dashboard below a mount path."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import httpx
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from askii_middleware import Budget, CostTracker
from askii_middleware.dashboard import Desk, routes
from askii_middleware.model_price import ModelPrice
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import DELIVERED, Delivery, Sink, Verdict

TOKEN = "correct-horse-battery-staple"
NOW_S = 1_767_268_800.0
"""2026-01-01T12:00:00Z."""
PRICES = {
    "big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10),
    "mini": ModelPrice(input_usd_per_mtok="0.1", output_usd_per_mtok=1, max_output_tokens=2000),
}
PAGES = (
    *("/", "/live", "/tenants", "/tenant?name=acme", "/budgets", "/budgets/edit", "/keys", "/keys/new", "/prices"),
    *("/prices/edit", "/dead-letters"),
)
FORMS = (
    *("/tenant/suspend", "/tenant/resume", "/budgets", "/budgets/remove", "/keys", "/keys/rotate", "/keys/revoke"),
    *("/prices", "/prices/remove", "/dead-letters/retry", "/sign-out"),
)
"""All of either kind, for what holds of every one."""
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


def seen_in(listed: str) -> str:
    """What a form says that there was when it was shown."""
    (seen,) = re.findall(r'name="seen" value="([0-9a-f]{16})"', listed)
    return str(seen)


class Clock:
    """Unix seconds that stand still until moved."""

    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Picky:
    """A sink that rejects the records of one tenant for good."""

    name = "billing"
    max_batch = 100

    def __init__(self, refused: str, reason: str = "422: external_subscription_id: not found") -> None:
        self.refused = refused
        self.reason = reason

    async def send(self, records: Sequence[UsageRecord]) -> Delivery:
        no = Verdict("rejected", self.reason)
        return Delivery(tuple(no if record.tenant == self.refused else DELIVERED for record in records))

    async def close(self) -> None:
        """Nothing is open."""


class Site:
    """A dashboard at `/askii` and a client that is not signed in."""

    def __init__(self, tracker: CostTracker, app: Starlette, client: httpx.AsyncClient, clock: Clock) -> None:
        self.tracker = tracker
        self.app = app
        self.client = client
        self.clock = clock

    @property
    def routes(self) -> list[BaseRoute]:
        """The pages' own routes, as an application serves them that takes the mount path off itself."""
        (mount,) = self.app.routes
        assert isinstance(mount, Mount)
        return list(mount.routes)

    async def sign_in(self) -> None:
        answer = await self.client.post("/askii/sign-in", data={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/askii/")

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(f"/askii{path}", **options)

    async def raw_get(self, path: str, *, root_path: str = "", app: Starlette | None = None) -> tuple[int, bytes]:
        """A path as it stands here, which no client has put in order: status and body."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": unquote(path),
        }
        scope |= {"raw_path": path.encode(), "query_string": b"", "headers": [], "root_path": root_path}
        await (app or self.app)(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def csrf(self) -> str:
        """What this session's forms say."""
        found = _CSRF.search((await self.get("/prices")).text)
        assert found is not None
        return found[1]

    async def post(self, path: str, **fields: str) -> httpx.Response:
        """A form as a page of this session would send it."""
        return await self.client.post(f"/askii{path}", data={"csrf": await self.csrf(), **fields})

    async def call(
        self, tenant: str = "acme", model: str = "big", tokens_in: int = 1000, tokens_out: int = 100
    ) -> None:
        """A call of a tenant, charged and delivered."""
        await self.tracker.record_usage(tenant, model, input_tokens=tokens_in, output_tokens=tokens_out)
        await self.tracker.flush()


def dashboard_app(tracker: CostTracker, *, mount: str = "/askii", **options: Any) -> Starlette:
    """Its pages below a mount path."""
    return Starlette(routes=[Mount(mount, routes=routes(Desk(tracker, admin_token=TOKEN, **options)))])


@asynccontextmanager
async def site(
    *,
    budgets: Sequence[Budget] = (Budget(scope="tenant=*", limit_usd=1),),
    sinks: Sequence[Sink] = (),
    base_url: str = "http://ledger.example",
    signed_in: bool = True,
    prices: Mapping[str, ModelPrice] = PRICES,
    **options: Any,
) -> AsyncIterator[Site]:
    """A dashboard over a ledger in memory at noon of 2026-01-01, UTC."""
    clock = Clock()
    tracker = CostTracker(store="memory://", clock=clock, prices=prices, budgets=budgets, sinks=sinks)
    async with tracker:
        app = dashboard_app(tracker, **options)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            made = Site(tracker, app, client, clock)
            if signed_in:
                await made.sign_in()
            yield made
