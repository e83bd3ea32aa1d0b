"""The official SDKs cannot tell the gateway from the provider behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from askii_middleware.demo.provider import provider_app
from askii_middleware.gateway import Proxy, Upstream

from .serving import serving

MESSAGES: Any = [{"role": "user", "content": "Say something."}]


async def _collect(stream: Any) -> list[Any]:
    return [event.model_dump() async for event in stream]


async def _chat(client: openai.AsyncOpenAI) -> Any:
    return (await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)).model_dump()


async def _chat_stream(client: openai.AsyncOpenAI) -> Any:
    stream = await client.chat.completions.create(
        model="o4-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    return await _collect(stream)


async def _completion(client: openai.AsyncOpenAI) -> Any:
    return (await client.completions.create(model="gpt-4o", prompt="Say", max_tokens=5)).model_dump()


async def _response(client: openai.AsyncOpenAI) -> Any:
    return (await client.responses.create(model="gpt-4o", input="Say something.")).model_dump()


async def _response_stream(client: openai.AsyncOpenAI) -> Any:
    return await _collect(await client.responses.create(model="gpt-4o", input="Say something.", stream=True))


async def _embeddings(client: openai.AsyncOpenAI) -> Any:
    return (await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])).model_dump()


async def _models(client: openai.AsyncOpenAI) -> Any:
    return [model.model_dump() async for model in client.models.list()]


async def _message(client: anthropic.AsyncAnthropic) -> Any:
    return (await client.messages.create(model="claude-simulated", max_tokens=64, messages=MESSAGES)).model_dump()


async def _message_stream(client: anthropic.AsyncAnthropic) -> Any:
    stream = await client.messages.create(model="claude-simulated", max_tokens=64, messages=MESSAGES, stream=True)
    return await _collect(stream)


OPENAI_CALLS = [_chat, _chat_stream, _completion, _response, _response_stream, _embeddings, _models]
ANTHROPIC_CALLS = [_message, _message_stream]


@asynccontextmanager
async def both(provider: str) -> AsyncIterator[tuple[str, str]]:
    """A provider that knows only its own key, and the gateway before it."""
    async with serving(provider_app(api_key="sk-up")) as up:
        proxy = Proxy([Upstream(name="up", url=f"{up}/v1", api_key="sk-up", provider=provider)])
        async with serving(proxy) as url:
            yield up, url


def _openai(base: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)


def _anthropic(base: str, key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=base, api_key=key, max_retries=0)


@pytest.mark.parametrize("call", OPENAI_CALLS)
async def test_the_openai_sdk_gets_the_same_through_the_gateway(
    call: Callable[[openai.AsyncOpenAI], Awaitable[Any]],
) -> None:
    async with both("openai") as (up, url), _openai(up, "sk-up") as direct, _openai(url, "sk-askii-1") as through:
        expected = await call(direct)
        assert expected
        assert await call(through) == expected


@pytest.mark.parametrize("call", ANTHROPIC_CALLS)
async def test_the_anthropic_sdk_gets_the_same_through_the_gateway(
    call: Callable[[anthropic.AsyncAnthropic], Awaitable[Any]],
) -> None:
    async with (
        both("anthropic") as (up, url),
        _anthropic(up, "sk-up") as direct,
        _anthropic(url, "sk-askii-1") as through,
    ):
        expected = await call(direct)
        assert expected
        assert await call(through) == expected


async def test_errors_of_the_provider_arrive_typed() -> None:
    async with both("openai") as (_, url), _openai(url, "sk-askii-1") as client:
        with pytest.raises(openai.InternalServerError, match="simulated"):
            await client.chat.completions.create(model="error-500", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=-1)


async def test_errors_of_the_gateway_arrive_typed() -> None:
    proxy = Proxy([Upstream(name="up", url="http://127.0.0.1:9/v1", models=("gpt-*",))])
    async with serving(proxy) as url, _openai(url, "sk-askii-1") as client, _anthropic(url, "sk-askii-1") as other:
        with pytest.raises(openai.InternalServerError) as unreachable:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert (unreachable.value.status_code, unreachable.value.code) == (502, "upstream_unreachable")
        assert unreachable.value.type == "upstream_error"
        with pytest.raises(openai.NotFoundError, match="'llama'") as unknown:
            await client.chat.completions.create(model="llama", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError, match="'llama'"):
            await other.messages.create(model="llama", max_tokens=9, messages=MESSAGES)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_is_an_error_in_the_sdk(stream: bool) -> None:
    async def ask(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="die-mid-stream", messages=MESSAGES, stream=stream)
        await _collect(answer)

    async with both("openai") as (_, url), _openai(url, "sk-askii-1") as client:
        # The SDK wraps the transport's error for plain answers and lets it through for streams.
        with pytest.raises(Exception, match=r"Connection error|peer closed connection"):
            await ask(client)
