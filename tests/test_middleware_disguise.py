"""What another server would read as a metered call may not pass as something else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, CostTracker

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


def application(seen: list[bytes]) -> Starlette:
    async def answer(request: Request) -> JSONResponse:
        seen.append(await request.body())
        return JSONResponse({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("Model", "gpt-4o"),
        ("MESSAGES", []),
        ("MAX_TOKENS", 100_000),
        ("me\u017fsages", []),
        ("to\u212aens", 1),
    ],
)
async def test_members_in_another_case_are_refused_where_they_bound_a_call(member: str, value: object) -> None:
    seen: list[bytes] = []
    async with CostTracker(store="memory://") as tracker:
        app = AskiiMiddleware(application(seen), tracker=tracker, identify=lambda _scope: "acme")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answer = await client.post("/v1/chat/completions", json={**CHAT, member: value})
            passes = member == "to\u212aens"  # no member of any API, whatever its case
            assert answer.status_code == (200 if passes else 400)
            assert bool(seen) is passes


@pytest.mark.parametrize(("unmetered", "reached"), [("allow", True), ("deny", False)])
async def test_a_socket_passes_only_where_the_unmetered_may(unmetered: str, reached: bool) -> None:
    sent: list[dict[str, Any]] = []
    calls: list[str] = []

    async def inner(scope: Any, _receive: Any, _send: Any) -> None:
        calls.append(scope["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with CostTracker(store="memory://") as tracker:
        app = AskiiMiddleware(inner, tracker=tracker, unmetered=unmetered, default_tenant="acme")
        await app({"type": "websocket", "path": "/v1/events", "headers": []}, receive, send)
    assert bool(calls) is reached
    assert [message["type"] for message in sent] == ([] if reached else ["websocket.close"])
