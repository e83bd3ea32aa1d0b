"""The small router around the proxy, its life, and what it says to websockets that cannot be."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from askii_middleware.errors import MissingExtraError
from askii_middleware.gateway import Proxy, Upstream, gateway_app

from .serving import Recorder, http_client, serving

if TYPE_CHECKING:
    from starlette.types import Message


async def always() -> bool:
    return True


async def test_health_is_answered_here_and_everything_else_upstream() -> None:
    upstream, ready = Recorder(body=b"from upstream"), [True]

    async def is_ready() -> bool:
        return ready[0]

    async with serving(upstream) as up:
        app = gateway_app(Proxy([Upstream(name="up", url=up)]), is_ready)
        async with serving(app) as url, http_client() as client:
            alive = await client.get(f"{url}/healthz")
            assert (alive.status_code, alive.text) == (200, "ok")
            assert (await client.get(f"{url}/readyz")).status_code == 200
            ready[0] = False
            assert (await client.get(f"{url}/readyz")).status_code == 503
            assert (await client.get(f"{url}/healthz")).status_code == 200
            assert upstream.scopes == []
            assert (await client.get(f"{url}/v1/healthz")).text == "from upstream"


async def test_a_readiness_check_that_fails_or_hangs_is_not_ready_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> bool:
        raise RuntimeError("the store is on fire")

    async def hanging() -> bool:
        return await asyncio.Event().wait()

    proxy = Proxy([Upstream(name="up", url="http://127.0.0.1:1")])
    for ready, words in ((broken, "on fire"), (hanging, "TimeoutError")):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            async with serving(gateway_app(proxy, ready, ready_timeout_s=0.02)) as url, http_client() as client:
                assert (await client.get(f"{url}/readyz")).status_code == 503
        assert words in caplog.text


@pytest.mark.parametrize(
    ("extensions", "answers"),
    [
        ({}, [("websocket.close", 1011)]),
        (
            {"websocket.http.response": {}},
            [("websocket.http.response.start", 502), ("websocket.http.response.body", None)],
        ),
    ],
)
async def test_websockets_are_turned_away_politely(
    extensions: dict[str, Any], answers: list[tuple[str, int | None]]
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    proxy = Proxy([Upstream(name="up", url="http://127.0.0.1:1")])
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "extensions": extensions}
    await gateway_app(proxy, always)(scope, receive, send)
    await proxy.aclose()
    assert [(message["type"], message.get("code", message.get("status"))) for message in sent] == answers


async def test_the_end_of_the_server_closes_the_upstream_connections() -> None:
    upstream = Recorder()
    async with serving(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up)])
        async with serving(proxy, lifespan="on") as url, http_client() as client:
            await client.get(f"{url}/v1/x")
            session = proxy._client
            assert session is not None
            assert not session.closed
        assert session.closed
        await proxy.aclose()  # once more does no harm


async def test_a_request_after_the_end_opens_a_new_client() -> None:
    upstream = Recorder()
    async with serving(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up)])
        for _ in range(2):
            async with serving(proxy) as url, http_client() as client:
                assert (await client.get(f"{url}/v1/x")).text == "ok"


def test_without_aiohttp_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("askii_middleware.gateway", "askii_middleware.gateway_call"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[gateway\]"):
        importlib.import_module("askii_middleware.gateway")
