"""What a refused client sees: typed errors of its own SDK, at once, and one request on the wire."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import anthropic
import openai
import pytest

from .calls import MESSAGES
from .clients import Sdks, http_client, sdks
from .conftest import Front
from .gateways import secret_of

PAYMENT_REQUIRED: type[anthropic.APIStatusError] = getattr(anthropic, "PaymentRequiredError", anthropic.APIStatusError)
"""Older SDKs have no name for it."""


async def spend(sdk: Sdks) -> None:
    """Call until the money is gone; raises what the SDK raises then."""
    for _ in range(10):
        await sdk.openai.chat.completions.create(model="o4-mini", messages=MESSAGES, max_completion_tokens=30)
    pytest.fail("ten calls did not exhaust the budget")


async def test_an_exhausted_tenant_gets_one_typed_402_from_the_openai_sdk_and_no_retry(front: Front) -> None:
    async with sdks(front.url, secret_of("poor")) as sdk:
        with pytest.raises(openai.APIStatusError):
            await spend(sdk)
        sdk.wire.requests.clear()
        reached = len(front.provider.seen)
        with pytest.raises(openai.APIStatusError) as refused:
            await sdk.openai.chat.completions.create(model="o4-mini", messages=MESSAGES, max_completion_tokens=30)
        error = refused.value
        assert len(sdk.wire.requests) == 1
        assert (error.status_code, error.code, error.type) == (402, "budget_exceeded", "insufficient_quota")
        assert isinstance(error.body, dict)
        assert (error.body["reason"], error.body["scope_kind"]) == ("spent", "tenant")
        assert error.body["resets_at"].endswith("T00:00:00Z")
        assert "Askii Coins" in error.message
        assert error.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in error.response.headers
        assert len(front.provider.seen) == reached
    await front.books.settle_down()
    assert error.response.headers["x-askii-call-id"] not in await front.books.records()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_exhausted_tenant_gets_one_typed_402_from_the_anthropic_sdk_and_no_retry(
    front: Front, stream: bool
) -> None:
    async with sdks(front.url, secret_of("poor")) as sdk:
        with pytest.raises(openai.APIStatusError):
            await spend(sdk)
        with pytest.raises(PAYMENT_REQUIRED) as refused:
            await sdk.anthropic.messages.create(
                model="claude-haiku-4-5", max_tokens=200, messages=MESSAGES, stream=stream
            )
        error = refused.value
        body: Any = error.body
        assert error.status_code == 402
        assert (body["type"], body["error"]["type"]) == ("error", "billing_error")
        assert "Askii Coins" in body["error"]["message"]
        assert error.response.headers["x-should-retry"] == "false"
        assert [request.url.path for request in sdk.wire.requests].count("/v1/messages") == 1


async def test_what_running_calls_hold_is_waited_for_and_the_sdks_own_retry_succeeds(front: Front) -> None:
    request = {"model": "slow", "messages": MESSAGES, "max_tokens": 50, "stream": True}
    headers = {"authorization": f"Bearer {secret_of('waiting')}"}
    async with sdks(front.url, secret_of("waiting")) as sdk, http_client() as other:
        async with other.stream("POST", f"{front.url}/v1/chat/completions", json=request, headers=headers) as held:
            assert held.status_code == 200
            waiting = asyncio.create_task(
                sdk.openai.chat.completions.create(model="o4-mini", messages=MESSAGES, max_completion_tokens=60)
            )
            async with asyncio.timeout(5):
                while not sdk.wire.answers:
                    await asyncio.sleep(0.01)
        answer = await waiting
    first, second = sdk.wire.answers
    assert (first.status_code, second.status_code) == (429, 200)
    assert first.headers["retry-after"] == "1"
    assert answer.usage is not None
    record = await front.books.record(second.headers["x-askii-call-id"])
    assert record.usage.output_tokens == answer.usage.completion_tokens
    left = await front.books.record(held.headers["x-askii-call-id"])
    assert (left.outcome, left.estimated) == ("client_disconnected", True)
    await front.books.settle_down()


async def test_an_unknown_key_is_an_authentication_error_and_no_retry(front: Front) -> None:
    async with sdks(front.url, "sk-askii-nobody") as sdk:
        with pytest.raises(openai.AuthenticationError) as refused:
            await sdk.openai.chat.completions.create(model="o4-mini", messages=MESSAGES)
        assert refused.value.code == "unauthorized"
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.anthropic.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=MESSAGES)
        assert len(sdk.wire.requests) == 2
    async with http_client() as client:
        answer = await client.post(
            f"{front.url}/v1/chat/completions",
            json={"model": "o4-mini", "messages": MESSAGES},
            headers={"x-tenant-id": "acme"},
        )
    assert answer.status_code == 401


async def test_a_model_without_a_price_is_a_400_that_names_the_remedy(front: Front) -> None:
    async with sdks(front.url, secret_of("acme")) as sdk:
        with pytest.raises(openai.BadRequestError, match=r"nobody-knows-me.*pric") as refused:
            await sdk.openai.chat.completions.create(model="nobody-knows-me", messages=MESSAGES)
        assert refused.value.code == "model_not_priced"
        assert len(sdk.wire.requests) == 1


async def test_a_gateway_counts_one_refusal_for_one_call(gateway: tuple[str, Any]) -> None:
    async def refusals(client: Any) -> float:
        text = (await client.get(f"{gateway[0]}/metrics")).text
        found = re.search(r'^askii_refusals_total\{reason="spent",scope_kind="tenant"\} (\S+)', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async with sdks(gateway[0], secret_of("poor")) as sdk, http_client() as client:
        with pytest.raises(openai.APIStatusError):
            await spend(sdk)
        before = await refusals(client)
        with pytest.raises(openai.APIStatusError):
            await sdk.openai.responses.create(model="o4-mini", input="Hello", max_output_tokens=100_000)
        assert await refusals(client) == before + 1
