"""Metered streams: the ways out, many on one budget, and the makers' own clients.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from google import genai
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from askii_middleware.errors import StoreError
from askii_middleware.gateway import Proxy, Upstream

from .support.asgi import DONE, SSE, Answer, Client, Scripted, ask, event, piece, start
from .support.ledgers import Ledger
from .support.metered import (
    CHAT_BODY,
    CHAT_FAMILY,
    FAMILIES,
    PLENTY,
    WORD,
    Endless,
    Family,
    book,
    chat_piece,
    cut_stream,
)
from .support.servers import serving

# Ways out -------------------------------------------------------------------------------------------------------------


async def test_an_application_that_raises_mid_stream_leaves_nothing_running() -> None:
    async with book() as run:
        script = [start(SSE), *(piece(chat_piece(WORD)) for _ in range(100)), RuntimeError("broke")]
        answer = await ask(run.around(Scripted(script)), CHAT_BODY)
        assert isinstance(answer.error, RuntimeError)
        assert (await run.record()).outcome == "upstream_error"
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_an_event_that_an_application_left_unfinished_still_goes_out() -> None:
    async with book() as run:
        half = chat_piece(WORD)[:40]
        answer = await ask(run.around(Scripted([start(SSE), piece(chat_piece(WORD)), piece(half)])), CHAT_BODY)
        assert answer.body == chat_piece(WORD) + half
        assert not answer.complete


async def test_a_client_that_leaves_a_metered_stream_pays_for_what_it_got() -> None:
    async with book() as run:
        client = Client([json.dumps(CHAT_BODY).encode()], leaves_after=50, raises=True)
        script = [start(SSE), *(piece(chat_piece(" another")) for _ in range(100))]
        await ask(run.around(Scripted(script)), client=client)
        record = await run.record()
        assert record.outcome == "client_disconnected"
        assert 48 <= record.usage.output_tokens <= 52


async def test_many_streams_on_one_budget_never_spend_more_than_it() -> None:
    async with book(100_000_000) as run:
        app = run.around(Endless(CHAT_FAMILY, word=" another"))
        answers = await asyncio.gather(*(ask(app, CHAT_BODY) for _ in range(12)))
        assert {answer.status for answer in answers} <= {200, 429, 402}
        records = await run.records()
        assert sum(record.cost_nano_usd for record in records) <= 100_000_000
        assert (await run.totals()).held_nano_usd == 0


DELTAS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.lists(DELTAS, min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1_000_000, 40_000_000),
    st.randoms(use_true_random=False),
)
def test_random_streams_on_one_budget_are_charged_no_more_than_its_limit(
    streams: list[list[str]], limit: int, rng: Any
) -> None:
    """The provider charges as many tokens as an adversary could: one for every byte."""

    async def one(run: Ledger, deltas: list[str]) -> Answer:
        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(start(SSE))
            for delta in deltas:
                await send(piece(chat_piece(delta * rng.randint(1, 8)).replace(b"gpt-4o", b"llama3")))
                for _ in range(rng.randint(0, 2)):
                    await asyncio.sleep(0)
            await send(piece(b"", more=False))

        return await ask(run.around(app), {**CHAT_BODY, "model": "llama3"})

    async def run_it() -> None:
        async with book(limit) as run:
            await asyncio.wait_for(asyncio.gather(*(one(run, deltas) for deltas in streams)), 30)
            assert sum(record.cost_nano_usd for record in await run.records()) <= limit
            assert (await run.totals()).held_nano_usd == 0

    asyncio.run(run_it())


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=6), st.integers(1_000_000, 40_000_000), st.integers(1, 12))
def test_the_providers_own_final_usage_never_exceeds_what_was_held(sizes: list[int], limit: int, width: int) -> None:
    async def one(run: Ledger, size: int) -> Answer:
        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(start(SSE))
            for _ in range(size):
                await send(piece(chat_piece("x" * width)))
                await asyncio.sleep(0)
            usage = {"prompt_tokens": 9, "completion_tokens": size * width, "total_tokens": 9 + size * width}
            await send(piece(event({"id": "c1", "choices": [], "usage": usage})))
            await send(piece(DONE, more=False))

        return await ask(run.around(app), {**CHAT_BODY, "model": "llama3"})

    async def run_it() -> None:
        async with book(limit) as run:
            await asyncio.wait_for(asyncio.gather(*(one(run, size) for size in sizes)), 30)
            records = await run.records()
            assert sum(record.cost_nano_usd for record in records) <= limit
            for record in records:
                if record.outcome == "completed":
                    assert not record.estimated

    asyncio.run(run_it())


async def test_a_stream_that_begins_asks_the_store_for_nothing_but_its_admission() -> None:
    async with book(900_000_000) as run:
        asked: list[Any] = []
        store: Any = run.tracker.store
        extend = store.extend

        async def spy(request: Any) -> Any:
            asked.append(request)
            return await extend(request)

        store.extend = spy
        script = [start(SSE), *(piece(chat_piece(WORD)) for _ in range(10)), piece(DONE, more=False)]
        await ask(run.around(Scripted(script)), CHAT_BODY)
        assert asked == []


async def test_a_block_that_takes_over_the_hold_takes_over_the_stream() -> None:
    async with book(900_000_000) as run:
        data = [chat_piece(WORD) for _ in range(400)]

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(start(SSE))
            await send(piece(data[0][:30]))
            async with run.tracker.track_tokens("acme", "gpt-4o", max_output_tokens=900) as usage:
                await send(piece(data[0][30:]))
                for each in data[1:]:
                    await send(piece(each))
                usage["input_tokens"], usage["output_tokens"] = 10, 800
            await send(piece(b"", more=False))

        answer = await ask(run.around(app), CHAT_BODY)
        assert answer.body == b"".join(data)
        (record,) = await run.records()
        assert (record.outcome, record.usage.output_tokens) == ("completed", 800)


async def test_a_stream_whose_hold_has_expired_is_cut_where_it_ends() -> None:
    async with book(900_000_000, max_call_s=600) as run:

        class Slow(Endless):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                run.clock.now_s += 601
                await super().__call__(scope, receive, send)

        answer, record = await cut_stream(CHAT_FAMILY, run, Slow(CHAT_FAMILY))
        assert record.cost_nano_usd <= 512 * 10_000 + 300 * 1_000
        assert answer.body.count(CHAT_FAMILY.end) == 1


async def test_while_the_store_is_away_a_stream_is_cut_or_goes_on_as_calls_are_denied_or_allowed() -> None:
    async def away(_request: Any) -> Any:
        raise StoreError("away")

    for policy, outcome in (("deny", "cut"), ("allow", "completed")):
        async with book(900_000_000, on_store_error=policy) as run:
            store: Any = run.tracker.store
            store.extend = away
            data = [chat_piece(WORD) for _ in range(1_000)]
            app = Scripted([start(SSE), *map(piece, data), piece(DONE, more=False)])
            answer = await ask(run.around(app, inject_usage=False), CHAT_BODY)
            assert answer.error is None
            assert (await run.record()).outcome == outcome


async def test_a_cut_is_nothing_to_a_framework_but_a_client_that_left() -> None:
    closed = asyncio.Event()

    async def words() -> AsyncIterator[bytes]:
        try:
            for _ in range(20_000):
                yield chat_piece(WORD)
        finally:
            closed.set()

    async def endpoint(_request: Request) -> StreamingResponse:
        return StreamingResponse(words(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["POST"])])
    async with book() as run:
        answer = await ask(run.around(app), CHAT_BODY)
        assert answer.error is None
        assert answer.complete
        assert (await run.record()).outcome == "cut"
        gc.collect()
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_scarce_budget_gives_a_stream_what_it_has_left() -> None:
    """The prompt is counted before less than a first slice is held for."""
    async with book(5_000_000) as run:
        answer, record = await cut_stream(CHAT_FAMILY, run, Endless(CHAT_FAMILY, word=" another"))
        assert answer.status == 200
        assert 3_000_000 <= record.cost_nano_usd <= 5_000_000


# Over a socket, with the makers' own clients ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(family: Family, **options: Any) -> Any:
    async with book(**options) as run, serving(run.around(Endless(family))) as url:
        yield url, run


async def test_openais_client_takes_a_cut_stream_for_one_that_reached_its_limit() -> None:
    async with served(CHAT_FAMILY) as (url, run):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(**CHAT_BODY)
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert chunks[-1].id == "c1"
        assert (await run.record()).outcome == "cut"


async def test_openais_client_takes_a_cut_response_for_an_incomplete_one() -> None:
    async with served(FAMILIES[3]) as (url, run):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            stream = await client.responses.create(**FAMILIES[3].body)
            events: list[Any] = [each async for each in stream]
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.incomplete_details.reason == "max_output_tokens"
        assert (await run.record()).outcome == "cut"


async def test_anthropics_client_takes_a_cut_stream_for_one_that_reached_its_limit() -> None:
    async with served(FAMILIES[4]) as (url, run):
        body = {name: value for name, value in FAMILIES[4].body.items() if name != "stream"}
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
            client.messages.stream(**body) as stream,
        ):
            message: Any = await stream.get_final_message()
        assert message.stop_reason == "max_tokens"
        assert message.content[0].text.startswith(WORD)
        record = await run.record()
        assert (record.outcome, message.usage.output_tokens) == ("cut", record.usage.output_tokens)


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # its own, of the library below it
async def test_googles_client_takes_a_cut_stream_for_one_that_reached_its_limit() -> None:
    async with served(FAMILIES[5]) as (url, run):
        client = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=url))
        config = types.GenerateContentConfig(max_output_tokens=PLENTY)
        stream = await client.aio.models.generate_content_stream(model="gemini-2.0-flash", contents="hi", config=config)
        chunks: list[Any] = [chunk async for chunk in stream]
        await client.aio.aclose()
        client.close()
        assert chunks[-1].candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        assert (await run.record()).outcome == "cut"


async def test_the_gateways_upstream_sees_that_a_cut_stream_is_wanted_no_more() -> None:
    gone = asyncio.Event()

    async def upstream(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send(start(SSE))

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        watching = asyncio.ensure_future(watch())
        while not gone.is_set():
            await send(piece(chat_piece(WORD)))
            await asyncio.sleep(0.0005)
        await watching

    async with serving(upstream) as address, book() as run:
        proxy = Proxy([Upstream(name="up", url=f"{address}/v1")])
        async with serving(run.around(proxy)) as url, httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(f"{url}/v1/chat/completions", json=CHAT_BODY)
            assert '"finish_reason":"length"' in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")
            await asyncio.wait_for(gone.wait(), 5)
        assert (await run.record()).outcome == "cut"
