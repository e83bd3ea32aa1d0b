"""`[routes] model_header`: the model of a request that names none, such as `X-Preferred-Model`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, CostTracker
from askii_middleware.errors import ConfigurationError
from askii_middleware.settings import load_settings

from ..support.service import make_tracker, records_of

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
USED = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


async def chat(request: Request) -> JSONResponse:
    body = await request.json()
    model = body.get("model") or request.headers.get("X-Preferred-Model") or "small"
    return JSONResponse({"object": "chat.completion", "id": "c1", "model": model, "choices": [], "usage": USED})


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, CostTracker]]:
    async with make_tracker("memory://") as tracker:
        app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
        metered = AskiiMiddleware(
            app, tracker=tracker, settings=load_settings(store="memory://", default_tenant="acme", **settings)
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(metered), base_url="http://app.test") as client:
            yield client, tracker


PREFERRED: dict[str, Any] = {"routes": {"model_header": "X-Preferred-Model"}}


async def test_a_request_without_a_model_is_held_for_and_charged_at_the_headers() -> None:
    async with served(**PREFERRED) as (client, tracker):
        answer = await client.post("/v1/chat/completions", json=BODY, headers={"x-preferred-model": "big"})
        assert (answer.status_code, answer.headers["x-askii-model"]) == (200, "big")
        (record,) = await records_of(tracker)
        assert (record.requested_model, record.cost_nano_usd) == ("big", 5 * 1000 + 5 * 2000)


async def test_the_bodys_model_comes_before_the_headers_and_that_before_the_default() -> None:
    async with served(**PREFERRED, default_model="small") as (client, tracker):
        header = {"X-Preferred-Model": "big"}
        await client.post("/v1/chat/completions", json={**BODY, "model": "free"}, headers=header)
        await client.post("/v1/chat/completions", json=BODY, headers=header)
        await client.post("/v1/chat/completions", json=BODY)
        await client.post("/v1/chat/completions", json=BODY, headers={"X-Preferred-Model": " "})
        assert [record.requested_model for record in await records_of(tracker)] == ["free", "big", "small", "small"]


async def test_the_header_says_nothing_unless_asked_for() -> None:
    async with served() as (client, tracker):
        answer = await client.post("/v1/chat/completions", json=BODY, headers={"X-Preferred-Model": "big"})
        assert (answer.status_code, await records_of(tracker)) == (400, [])


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Preferred-Model", "big"), ("X-Preferred-Model", "small")],
        [("X-Preferred-Model", "x" * 300)],
        [("X-Preferred-Model", "no-such-model-anywhere")],
    ],
)
async def test_two_models_and_what_is_none_are_refused_before_anything_is_held(headers: list[tuple[str, str]]) -> None:
    async with served(**PREFERRED) as (client, tracker):
        assert (await client.post("/v1/chat/completions", json=BODY, headers=headers)).status_code == 400
        assert (await tracker.store.totals()).calls == 0


@pytest.mark.parametrize("wrong", ["", "X Model", "X-Model:", "x" * 65])
def test_what_is_no_header_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="model_header"):
        load_settings(routes={"model_header": wrong})
