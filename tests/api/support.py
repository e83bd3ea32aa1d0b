"""A billing API over a ledger with a clock to turn, and somebody to ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from starlette.types import ASGIApp

from askii_middleware import Budget, Identity
from askii_middleware.api.app import api_app
from askii_middleware.stores.base import KeyRow
from askii_middleware.tracker import CostTracker

from ..support.service import Clock, make_tracker, url_of

ADMIN = "an-admin-token-for-tests"
ADMIN_HEADERS = {"authorization": f"Bearer {ADMIN}"}
MILLION = 1_000_000


class Bench:
    """A tracker, its API, and clients of it."""

    def __init__(self, tracker: CostTracker, app: ASGIApp, clock: Clock) -> None:
        self.tracker = tracker
        self.app = app
        self.clock = clock
        self.secrets: dict[str, str] = {}

    async def key(self, key_id: str, tenant: str = "acme", **fields: Any) -> KeyRow:
        """A key, whose secret is kept in `secrets`."""
        made = await self.tracker.keys.create(tenant, key_id=key_id, **fields)
        self.secrets[key_id] = made.secret
        return made.row

    def bearer(self, key_id: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secrets[key_id]}"}

    async def ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """One request, as the admin unless told otherwise."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.request(method, path, headers=ADMIN_HEADERS if headers is None else headers, **options)

    async def raw(self, method: str, target: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """One request of the admin's whose path stays as it is: clients resolve dots and refuse long ones."""
        path, _, query = target.partition("?")
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {ADMIN}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": headers,
        }
        await self.app(scope, receive, send)
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(message["body"] for message in sent[1:] if "body" in message)

    async def get(self, path: str, **options: Any) -> Any:
        """A GET that works, as the admin unless told otherwise."""
        answer = await self.ask("GET", path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def use(
        self, tenant: str = "acme", *, model: str = "big", tokens: int = 1000, output: int = 0, **identity: Any
    ) -> None:
        """A call that is charged: 1,000 nano-USD for a token of `big` in, 2,000 for one out."""
        await self.tracker.record_usage(
            Identity(tenant=tenant, **identity), model, input_tokens=tokens, output_tokens=output
        )


@asynccontextmanager
async def bench(folder: Path, kind: str = "memory", **options: Any) -> AsyncIterator[Bench]:
    clock = Clock()
    api = {name: options.pop(name) for name in ("identify", "body_s", "dashboard") if name in options}
    options.setdefault("budgets", [Budget(scope="tenant=*", limit_usd=1)])
    async with make_tracker(url_of(kind, folder), clock=clock, **options) as tracker:
        yield Bench(tracker, api_app(tracker, ADMIN, **{"dashboard": False, **api}), clock)
