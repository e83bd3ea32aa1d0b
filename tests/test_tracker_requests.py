"""Blocks inside requests that the middleware meters: one call, one charge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from askii_middleware import AskiiMiddleware, Budget, BudgetExceededError, CostTracker

from .support.service import (
    Clock,
    amounts,
    assert_balanced,
    both_stores,
    cancelled_at,
    faulty,
    make_tracker,
    opened,
    records_of,
    soon,
)

Handler = Callable[[Request], Awaitable[Any]]

CHAT = {"model": "big", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
HELD = 1000 * (len(json.dumps(CHAT, separators=(",", ":"))) + 256) + 2000 * 50
"""What the middleware holds for `CHAT`: its bytes and a template's tokens, and the answer's limit."""


def answer(prompt: int = 10, completion: int = 5, model: str = "big", call_id: str = "chatcmpl-1") -> dict[str, Any]:
    return {
        "id": call_id,
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


async def provider_down() -> NoReturn:
    raise ConnectionError


@asynccontextmanager
async def client_of(tracker: CostTracker, handler: Handler) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that runs `handler` under a metered and an unmetered path."""
    routes = [Route(path, handler, methods=["POST"]) for path in ("/v1/chat/completions", "/own")]
    app = AskiiMiddleware(Starlette(routes=routes), tracker=tracker, identify=lambda _scope: "acme")
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def post(tracker: CostTracker, handler: Handler, path: str = "/v1/chat/completions") -> httpx.Response:
    async with client_of(tracker, handler) as client:
        return await client.post(path, json=CHAT)


@both_stores
async def test_the_requests_own_answer_is_charged_where_no_block_settles(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            return JSONResponse(answer())

        response = await post(tracker, handler)
        (record,) = await records_of(tracker)
        assert (record.api, record.cost_nano_usd) == ("openai.chat", 20_000)
        assert response.headers["x-askii-call-id"] == record.call_id
        await assert_balanced(tracker)


@both_stores
async def test_the_first_block_of_the_same_model_keeps_the_requests_hold_and_settles_it(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model="BIG") as usage:
                assert await amounts(tracker) == (0, HELD)
                usage.record(answer(100, 50))
            return JSONResponse(answer(999, 999))

        response = await post(tracker, handler)
        (record,) = await records_of(tracker)
        assert record.call_id == response.headers["x-askii-call-id"]
        assert record.cost_nano_usd == 200_000
        assert "x-askii-cost-coins" not in response.headers
        assert await amounts(tracker) == (200_000, 0)


@both_stores
async def test_the_first_block_of_another_model_replaces_the_hold_in_one_store_call(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens("acme", "small", expected_input_tokens=100, max_output_tokens=100) as usage:
                assert await amounts(tracker) == (0, 30_000)
                usage["input_tokens"] = 100
            return JSONResponse(answer(999, 999))

        response = await post(tracker, handler)
        (record,) = await records_of(tracker)
        assert record.call_id == response.headers["x-askii-call-id"] + ".1"
        assert (record.served_model, record.cost_nano_usd) == ("small", 10_000)
        assert await amounts(tracker) == (10_000, 0)
        await assert_balanced(tracker)


@both_stores
async def test_a_block_for_another_tenant_takes_the_hold_off_the_requests_tenant(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens("other", "big", expected_input_tokens=10) as usage:
                assert await amounts(tracker) == (0, 0)
                usage["input_tokens"] = 10
            return JSONResponse(answer(999, 999))

        await post(tracker, handler)
        assert await amounts(tracker) == (0, 0)
        assert await amounts(tracker, "tenant=other") == (10_000, 0)
        await assert_balanced(tracker)


@both_stores
async def test_later_and_nested_and_concurrent_blocks_hold_for_themselves(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def one(tokens: int) -> None:
            async with tracker.track_tokens(model="big", expected_input_tokens=1000, max_output_tokens=0) as usage:
                await asyncio.sleep(0.005)
                usage["input_tokens"] = tokens

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model="big", expected_input_tokens=1000, max_output_tokens=0) as usage:
                await one(2)
                usage["input_tokens"] = 1
            await asyncio.gather(one(3), one(4))
            return JSONResponse(answer(999, 999))

        response = await post(tracker, handler)
        call_id = response.headers["x-askii-call-id"]
        found = {record.call_id: record.cost_nano_usd for record in await records_of(tracker)}
        assert found == {call_id: 1000, f"{call_id}.1": 2000, f"{call_id}.2": 3000, f"{call_id}.3": 4000}
        await assert_balanced(tracker)


@both_stores
async def test_two_blocks_that_start_at_once_do_not_share_the_requests_hold(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def one(model: str) -> None:
            async with tracker.track_tokens(model=model, expected_input_tokens=10, max_output_tokens=0) as usage:
                usage["input_tokens"] = 10

        async def handler(_request: Request) -> JSONResponse:
            await asyncio.gather(one("small"), one("big"), one("small"))
            return JSONResponse(answer(999, 999))

        await post(tracker, handler)
        assert await amounts(tracker) == (1000 + 10_000 + 1000, 0)
        assert len({record.call_id for record in await records_of(tracker)}) == 3
        await assert_balanced(tracker)


@both_stores
async def test_a_background_block_holds_for_itself(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def later() -> None:
            async with tracker.track_tokens(model="big", expected_input_tokens=10) as usage:
                usage["input_tokens"] = 7

        async def handler(_request: Request) -> JSONResponse:
            return JSONResponse(answer(), background=BackgroundTask(later))

        response = await post(tracker, handler)
        call_id = response.headers["x-askii-call-id"]
        found = {record.call_id: record.cost_nano_usd for record in await records_of(tracker)}
        assert found == {call_id: 20_000, f"{call_id}.1": 7000}
        await assert_balanced(tracker)


@both_stores
async def test_a_side_call_leaves_the_request_its_hold_and_its_charge(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(
                model="small", expected_input_tokens=10, max_output_tokens=0, covers_request=False
            ) as usage:
                assert await amounts(tracker) == (0, HELD + 1000)
                usage["input_tokens"] = 10
            return JSONResponse(answer())

        response = await post(tracker, handler)
        call_id = response.headers["x-askii-call-id"]
        found = {record.call_id: record.cost_nano_usd for record in await records_of(tracker)}
        assert found == {call_id: 20_000, f"{call_id}.1": 1000}
        await assert_balanced(tracker)


@pytest.mark.parametrize("model", ["big", "small"])
@both_stores
async def test_after_a_block_that_failed_the_requests_own_answer_counts_again(
    kind: str, model: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            try:
                async with tracker.track_tokens(model=model, expected_input_tokens=10):
                    await provider_down()
            except ConnectionError:
                return JSONResponse(answer(30, 1))

        response = await post(tracker, handler)
        (record,) = await records_of(tracker)
        assert (record.call_id, record.cost_nano_usd) == (response.headers["x-askii-call-id"], 32_000)
        assert await amounts(tracker) == (32_000, 0)
        await assert_balanced(tracker)


@pytest.mark.parametrize("model", ["big", "small"])
@both_stores
async def test_after_a_block_that_failed_another_block_covers_the_request(
    kind: str, model: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            try:
                async with tracker.track_tokens(model=model, expected_input_tokens=10):
                    await provider_down()
            except ConnectionError:
                async with tracker.track_tokens(model="big", expected_input_tokens=10) as usage:
                    usage.record(answer(5, 0))
            return JSONResponse(answer(999, 999))

        await post(tracker, handler)
        (record,) = await records_of(tracker)
        assert record.cost_nano_usd == 5000
        assert await amounts(tracker) == (5000, 0)


@both_stores
async def test_a_block_that_ends_without_counts_leaves_the_charge_to_the_requests_answer(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path, block_grace_s=0.02) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model="big", expected_input_tokens=10):
                pass
            return JSONResponse(answer())

        await post(tracker, handler)
        await soon(lambda: len(tracker.deferrals) == 0)
        assert await amounts(tracker) == (20_000, 0)
        assert len(await records_of(tracker)) == 1


@both_stores
async def test_a_block_that_outlives_its_request_settles_the_requests_hold(kind: str, tmp_path: Path) -> None:
    for counts, expected in ((True, 3000), (False, 2_997_000)):  # without counts: what the answer says
        folder = tmp_path / str(counts)
        folder.mkdir()
        async with opened(kind, folder, block_grace_s=0.01) as tracker:
            entered, answered = asyncio.Event(), asyncio.Event()
            tasks = []

            async def background(
                tracker: CostTracker, entered: asyncio.Event, answered: asyncio.Event, *, counts: bool
            ) -> None:
                async with tracker.track_tokens(model="big") as usage:
                    entered.set()
                    await soon(answered.is_set)
                    if counts:
                        usage["input_tokens"] = 3

            async def handler(_request: Request) -> JSONResponse:
                tasks.append(asyncio.create_task(background(tracker, entered, answered, counts=counts)))  # noqa: B023
                await soon(entered.is_set)  # noqa: B023
                return JSONResponse(answer(999, 999))

            await post(tracker, handler)
            answered.set()
            await asyncio.gather(*tasks)
            await soon(lambda: records_of(tracker))
            assert await amounts(tracker) == (expected, 0)
            await assert_balanced(tracker)


@both_stores
async def test_a_block_that_outlives_its_request_and_fails_leaves_the_charge_to_the_answer(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:
        entered, answered = asyncio.Event(), asyncio.Event()
        tasks = []

        async def background() -> None:
            async with tracker.track_tokens(model="big"):
                entered.set()
                await soon(answered.is_set)
                raise ConnectionError

        async def handler(_request: Request) -> JSONResponse:
            tasks.append(asyncio.create_task(background()))
            await soon(entered.is_set)
            return JSONResponse(answer(999, 999))

        await post(tracker, handler)
        answered.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await amounts(tracker) == (2_997_000, 0)
        await assert_balanced(tracker)


@both_stores
async def test_a_block_that_finds_no_room_refuses_the_request_and_gives_its_hold_back(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model="small", expected_input_tokens=10**8):
                raise AssertionError

        response = await post(tracker, handler)
        assert (response.status_code, response.json()["error"]["code"]) == (402, "budget_exceeded")
        assert await amounts(tracker) == (0, 0)
        assert await records_of(tracker) == []


@both_stores
async def test_an_application_may_answer_a_refused_block_itself(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            try:
                await tracker.track_tokens(model="small", expected_input_tokens=10**8).__aenter__()
            except BudgetExceededError:
                return JSONResponse(answer(1, 1))
            raise AssertionError

        response = await post(tracker, handler)
        assert response.status_code == 200
        assert await amounts(tracker) == (3000, 0)


@both_stores
async def test_the_tenant_of_an_unmetered_request_is_known_to_its_blocks(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model="big", expected_input_tokens=10) as usage:
                usage["input_tokens"] = 10
            return JSONResponse({"ok": True})

        await post(tracker, handler, "/own")
        (record,) = await records_of(tracker)
        assert (record.tenant, record.cost_nano_usd) == ("acme", 10_000)


async def test_a_fallback_that_the_request_was_given_replaces_the_hold_when_the_block_asks_for_the_first_model(
    tmp_path: Path,
) -> None:
    budgets = [Budget(scope="tenant=acme", limit_usd="0.0002")]
    async with opened("memory", tmp_path, budgets=budgets, fallbacks={"big": ["small"]}) as tracker:

        async def handler(request: Request) -> JSONResponse:
            assert request.state.askii_model == "small"
            async with tracker.track_tokens(model="big", expected_input_tokens=100, max_output_tokens=10) as usage:
                assert usage.model == "big"
                usage["input_tokens"] = 100
            return JSONResponse(answer())

        await post(tracker, handler)
        assert await amounts(tracker) == (100_000, 0)
        await assert_balanced(tracker)


@both_stores
async def test_a_store_that_fails_while_a_hold_is_replaced_leaves_none_behind(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock)
    async with make_tracker(store, clock=clock, on_store_error="allow") as tracker:

        async def handler(_request: Request) -> JSONResponse:
            store.faults["reserve"] = ["after"]
            async with tracker.track_tokens(model="small", expected_input_tokens=100, max_output_tokens=0) as usage:
                usage["input_tokens"] = 50
            return JSONResponse(answer(999, 999))

        await post(tracker, handler)
        assert await amounts(tracker) == (5000, 0)
        await assert_balanced(tracker)


@pytest.mark.parametrize("model", ["big", "small"])
@both_stores
async def test_a_cancellation_at_any_await_of_a_request_with_a_block_leaves_no_hold_and_one_charge_at_most(
    kind: str, model: str, tmp_path: Path
) -> None:
    clock = Clock()
    store = faulty(kind, tmp_path, clock, turns=1)
    async with make_tracker(store, clock=clock, budgets=[Budget(scope="tenant=*", limit_usd=100)]) as tracker:

        async def handler(_request: Request) -> JSONResponse:
            async with tracker.track_tokens(model=model, expected_input_tokens=100, max_output_tokens=0) as usage:
                await asyncio.sleep(0)
                usage.record(answer(50, 0, model))
                await asyncio.sleep(0)
            return JSONResponse(answer(999, 999))

        charges = 0
        async with client_of(tracker, handler) as client:
            for step in range(200):
                still = await cancelled_at(step, client.post("/v1/chat/completions", json=CHAT))
                await tracker.flush(1.0)
                assert (await amounts(tracker))[1] == 0, step
                found = await records_of(tracker)
                assert len(found) - charges in (0, 1), step
                charges = len(found)
                if not still:
                    break
            else:
                pytest.fail("the request never ended by itself")
        assert found[-1].cost_nano_usd == (50_000 if model == "big" else 5000)
        await assert_balanced(tracker)
