"""The official SDKs through metered WebSockets: they get what they get without, and are told when the money ends."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from websockets.exceptions import ConnectionClosed

from askii_middleware import Budget

from .support.servers import serving
from .support.sockets import (
    COST,
    Provider,
    booked,
    mini_hold,
)


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0)


async def test_openai_s_realtime_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with openai_client(url) as client, client.realtime.connect(model="mini") as connection:
            for _ in range(2):
                await connection.response.create()
                async for event in connection:
                    got.append(event)
                    if event.type == "response.done":
                        break
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert len(await book.records()) == 2


async def test_openai_s_realtime_client_is_told_of_the_end_of_the_money() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=f"{(mini_hold() + 1) / 1e9:.9f}")]
    async with booked(budgets=budgets) as book, serving(book.around(Provider())) as url, openai_client(url) as client:
        events: list[Any] = []
        async with client.realtime.connect(model="mini") as connection:
            await connection.response.create()
            with contextlib.suppress(ConnectionClosed):
                async for event in connection:
                    events.append(event)
                    if event.type == "response.done":
                        await connection.response.create()
        errors = [event for event in events if event.type == "error"]
        assert [error.error.code for error in errors] == ["budget_exceeded"]


async def test_openai_s_responses_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with openai_client(url) as client, client.responses.connect() as connection:
            await connection.response.create(model="mini", input="hi")
            async for event in connection:
                got.append(event)
                if event.type == "response.completed":
                    break
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert await book.spent() == COST // 10


def live_client(url: str) -> Any:
    """With a key the SDK insists on TLS; as the client of a gateway it goes where it is told."""
    address = f"ws{url.removeprefix('http')}/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent"
    client = genai.Client(vertexai=True, http_options={"base_url": address})
    client._api_client._websocket_ssl_ctx = {}
    return client.aio.live


async def test_google_s_live_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with live_client(url).connect(model="mini", config={"response_modalities": ["TEXT"]}) as session:
            for _ in range(2):
                await session.send_client_content(turns={"parts": [{"text": "hi"}]}, turn_complete=True)
                got += [message async for message in session.receive()]
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert len(await book.records()) == 2
        assert await book.spent() == 2 * COST // 10


async def test_google_s_live_client_is_told_of_the_end_of_the_money() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.0000001")]
    async with booked(budgets=budgets) as book, serving(book.around(Provider())) as url:
        with pytest.raises((ConnectionClosed, genai_errors.APIError), match="budget_exceeded"):
            async with live_client(url).connect(model="mini"):
                pass
