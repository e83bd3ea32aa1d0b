"""Every way a call can end in the gateway is accounted for once, and leaves nothing held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .books import Books, opened
from .calls import MESSAGES
from .clients import http_client
from .gateways import cost_nano_usd, secret_of, serve, store_url, write_config
from .upstreams import Watched

HEADERS = {"authorization": f"Bearer {secret_of('acme')}"}


def request(model: str, *, stream: bool) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 40, "stream": stream}


class Gate:
    """The gateway, its ledger, and what its upstream sees."""

    def __init__(self, url: str, books: Books, provider: Watched) -> None:
        self.chat = f"{url}/v1/chat/completions"
        self.books = books
        self.provider = provider

    async def upstream_was_left(self) -> bool:
        """Whether the upstream is told at once that nobody waits for its last answer."""
        return await asyncio.to_thread(self.provider.seen[-1].left.wait, 2)


@pytest.fixture
async def gate(gateway: tuple[str, Path], simulated: tuple[str, Watched]) -> AsyncIterator[Gate]:
    async with opened(store_url(gateway[1])) as books:
        yield Gate(gateway[0], books, simulated[1])
        await books.settle_down()
        await books.check()


async def test_a_client_that_leaves_mid_stream_ends_the_upstreams_work_and_pays_for_what_it_got(gate: Gate) -> None:
    async with http_client() as client:
        async with client.stream("POST", gate.chat, json=request("slow", stream=True), headers=HEADERS) as answer:
            got = b""
            async for piece in answer.aiter_raw():
                got += piece
                if got.count(b'"content":') >= 10:
                    break
            held = (await gate.books.store.totals()).held_nano_usd
        assert await gate.upstream_was_left()
    record = await gate.books.record(answer.headers["x-askii-call-id"])
    assert (record.outcome, record.estimated, record.status) == ("client_disconnected", True, 200)
    assert record.usage.output_tokens >= 9
    assert record.usage.input_tokens > 0
    usage = (record.usage.input_tokens, record.usage.output_tokens)
    assert 0 < record.cost_nano_usd == cost_nano_usd("slow", *usage) <= held


async def test_a_client_that_leaves_before_a_plain_answer_ends_the_upstreams_work_and_pays_an_estimate(
    gate: Gate,
) -> None:
    known = set(await gate.books.records())
    reached = len(gate.provider.seen)
    async with http_client() as client:
        call = asyncio.create_task(client.post(gate.chat, json=request("slow", stream=False), headers=HEADERS))
        async with asyncio.timeout(5):
            while len(gate.provider.seen) == reached or not gate.provider.seen[-1].body:
                await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await gate.upstream_was_left()
    await gate.books.settle_down()
    (record,) = [record for call_id, record in (await gate.books.records()).items() if call_id not in known]
    assert (record.outcome, record.estimated, record.status) == ("client_disconnected", True, None)
    assert record.usage.input_tokens > 0
    assert record.cost_nano_usd == cost_nano_usd("slow", record.usage.input_tokens, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_dies_within_its_answer_breaks_the_clients_too_and_is_charged(
    gate: Gate, stream: bool
) -> None:
    got = b""

    async def collect(answer: httpx.Response) -> None:
        nonlocal got
        async for piece in answer.aiter_raw():
            got += piece

    body = request("die-mid-stream", stream=stream)
    async with (
        http_client() as client,
        client.stream("POST", gate.chat, json=body, headers=HEADERS) as answer,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(answer)
    assert got
    assert b"[DONE]" not in got
    record = await gate.books.record(answer.headers["x-askii-call-id"])
    assert (record.outcome, record.estimated, record.status) == ("upstream_error", True, 200)
    assert record.cost_nano_usd == cost_nano_usd(
        "die-mid-stream", record.usage.input_tokens, record.usage.output_tokens
    )
    assert record.usage.input_tokens > 0
    if stream:
        assert record.usage.output_tokens > 0


@pytest.mark.parametrize(("model", "status"), [("gone", 502), ("error-500", 500)])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_answer_costs_nothing(gate: Gate, model: str, status: int, stream: bool) -> None:
    before = await gate.books.store.totals()
    async with http_client() as client:
        answer = await client.post(gate.chat, json=request(model, stream=stream), headers=HEADERS)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    await gate.books.settle_down()
    assert await gate.books.store.totals() == before
    assert answer.headers["x-askii-call-id"] not in await gate.books.records()


async def test_a_full_pool_is_a_503_whose_hold_is_released(simulated: tuple[str, Watched], tmp_path: Path) -> None:
    tables = f'[upstreams.only]\nurl = "{simulated[0]}/v1"\nmax_connections = 1\n'
    write_config(tmp_path, {}, budgets={"acme": "1"}, tables=tables)
    with serve(tmp_path) as (url, _):
        chat = f"{url}/v1/chat/completions"
        async with opened(store_url(tmp_path)) as books, http_client() as client:
            async with client.stream("POST", chat, json=request("slow", stream=True), headers=HEADERS):
                held = (await books.store.totals()).held_nano_usd
                answer = await client.post(chat, json=request("gpt-4o", stream=False), headers=HEADERS)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_busy")
                assert answer.headers["retry-after"] == "1"
                async with asyncio.timeout(5):
                    while (await books.store.totals()).held_nano_usd != held:
                        await asyncio.sleep(0.01)
                assert (await books.store.totals()).records == 0
            await books.settle_down()
            answer = await client.post(chat, json=request("gpt-4o", stream=False), headers=HEADERS)
            assert answer.status_code == 200
            await books.settle_down()
            assert len(await books.records()) == 2
            await books.check()
