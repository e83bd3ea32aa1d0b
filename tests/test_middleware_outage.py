"""`on_store_error = "allow"` lets callers with a key through while the ledger is away; `deny` does not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, CostTracker
from askii_middleware.admission import Admission, ReserveRequest
from askii_middleware.errors import StoreError
from askii_middleware.keys import hash_secret, new_secret
from askii_middleware.records import decode_record
from askii_middleware.routes import Routes
from askii_middleware.settings import Settings
from askii_middleware.stores.base import KeyRow
from askii_middleware.stores.memory import MemoryStore

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


async def answer(_request: Request) -> JSONResponse:
    return JSONResponse({"id": "c", "object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": USAGE})


class Unreachable(MemoryStore):
    """A ledger that can be cut off as a whole where admission and keys meet it."""

    away = False

    async def reserve(self, request: ReserveRequest) -> Admission:
        if self.away:
            raise StoreError("away")
        return await super().reserve(request)

    async def find_key(self, sha256: str) -> KeyRow | None:
        if self.away:
            raise StoreError("away")
        return await super().find_key(sha256)

    async def keys(self, **page: Any) -> list[KeyRow]:
        if self.away:
            raise StoreError("away")
        return await super().keys(**page)


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 503)])
async def test_a_declared_key_opens_while_the_ledger_is_away_only_where_that_is_allowed(
    policy: str, status: int
) -> None:
    secret = new_secret()
    settings = Settings(
        store="memory://",
        on_store_error=policy,
        keys=[KeyRow(id="k", sha256=hash_secret(secret), tenant="acme")],
    )
    store = Unreachable()
    tracker = CostTracker(store=store, on_store_error=policy)  # type: ignore[arg-type]
    inner = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    app = AskiiMiddleware(inner, tracker=tracker, settings=settings)
    headers = {"authorization": f"Bearer {secret}"}
    async with (
        tracker,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client,
    ):
        store.away = True
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == status
        # A stranger stays one: nothing is opened that nobody knows.
        stranger = {"authorization": f"Bearer {new_secret()}"}
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=stranger)
        assert refused.status_code in (401, 503)
        store.away = False
        records = [decode_record(body) for _, body in await store.records()]
        assert [record.cost_nano_usd for record in records] == ([10 * 2500 + 5 * 10_000] if status == 200 else [])


@pytest.mark.parametrize("path", ["/v1/chat/completions;x", "/v1;a=b/chat;y/completions;z"])
def test_parameters_of_a_path_do_not_hide_a_call(path: str) -> None:
    """Some servers further on drop them."""
    assert Routes().apis("POST", path)[0].name == "openai.chat"
