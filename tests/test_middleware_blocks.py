"""Blocks inside of requests: one call, one charge; and a block's denial that nobody handles becomes the refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from askii_middleware import Budget
from askii_middleware.errors import BudgetExceededError
from askii_middleware.pricing import ModelPrice

from .support.asgi import CHAT, JSON, SSE, Scripted, ask, chat_answer, chat_chunk, piece, plain, start
from .support.ledgers import Ledger, ledger

DENIAL = BudgetExceededError(
    "the daily budget of tenant=acme is spent",
    current_cost=1,
    max_budget=1,
    scope="tenant=acme",
    reason="spent",
    resets_at_s=1_767_312_000,
)


@pytest.fixture
async def book() -> AsyncIterator[Ledger]:
    budgets = [Budget(scope="tenant=*", limit_usd=10), Budget(scope="tenant=poor", limit_usd="0.000001")]
    async with ledger(budgets=budgets) as open_ledger:
        yield open_ledger


def block(book: Ledger, tenant: str | None = "acme", model: str = "big", *, counts: tuple[int, int] = (7, 3)) -> Any:
    """A step that calls a model in code."""

    async def step(*_: Any) -> None:
        async with book.tracker.track_tokens(tenant, model, expected_input_tokens=9, max_output_tokens=9) as usage:
            usage.record(chat_answer(*counts))

    return step


async def test_a_block_settles_the_request_and_its_answer_costs_nothing_more(book: Ledger) -> None:
    got = await ask(book.around(Scripted([block(book), *plain(chat_answer())])))
    record = await book.record()
    assert record.cost_nano_usd == 37_000
    assert record.call_id == got.own_headers["x-askii-call-id"]
    assert "x-askii-cost-coins" not in got.own_headers


async def test_further_blocks_hold_and_settle_for_themselves(book: Ledger) -> None:
    got = await ask(book.around(Scripted([block(book), block(book), block(book), *plain(chat_answer())])))
    call_id = got.own_headers["x-askii-call-id"]
    assert [record.call_id for record in await book.records()] == [call_id, f"{call_id}.1", f"{call_id}.2"]
    assert (await book.totals()).held_nano_usd == 0


async def test_a_block_that_fails_gives_the_request_back_its_call(book: Ledger) -> None:
    async def fails(*_: Any) -> None:
        try:
            async with book.tracker.track_tokens("acme", "big"):
                raise LookupError  # noqa: TRY301
        except LookupError:
            pass

    await ask(book.around(Scripted([fails, *plain(chat_answer())])))
    assert (await book.record()).cost_nano_usd == 60_000


@pytest.mark.parametrize("model", ["big", "mini"])
@pytest.mark.parametrize("ending", ["fails", "says nothing"])
async def test_a_block_that_outlives_its_request_and_has_no_counts_leaves_the_charge_to_the_answer(
    book: Ledger, model: str, ending: str
) -> None:
    go_on = asyncio.Event()
    running: list[asyncio.Task[None]] = []

    async def outlives() -> None:
        async with book.tracker.track_tokens("acme", model, expected_input_tokens=9, max_output_tokens=9):
            await go_on.wait()
            if ending == "fails":
                raise LookupError

    async def begin(*_: Any) -> None:
        running.append(asyncio.create_task(outlives()))
        await asyncio.sleep(0)

    await ask(book.around(Scripted([begin, *plain(chat_answer())])))
    assert await book.records() == []
    go_on.set()
    await asyncio.gather(*running, return_exceptions=True)
    await book.tracker.deferrals.finish_all(5.0)
    record = await book.record()
    if ending == "fails" or model == "big":
        assert (record.cost_nano_usd, record.estimated) == (60_000, False)
    else:
        assert record.outcome == "deferred_estimate"
    assert (await book.totals()).held_nano_usd == 0


# Denied ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/my/own/agent"])
async def test_a_denial_that_nobody_handles_is_the_refusal(book: Ledger, path: str) -> None:
    got = await ask(book.around(Scripted([block(book, "poor"), *plain(chat_answer())])), path=path)
    assert (got.status, got.error) == (402, None)
    assert got.json["error"]["code"] == "budget_exceeded"
    assert ("type" in got.json) == (path == "/v1/messages")
    assert "0.000001" not in got.json["error"]["message"]  # poor's budget, and acme's request
    assert await book.nothing_happened()
    assert book.metric("askii_refusals_total", scope_kind="tenant", reason="spent") == 1


async def test_the_callers_own_denial_tells_amounts(book: Ledger) -> None:
    app = Scripted([block(book, None), *plain(chat_answer())])
    got = await ask(book.around(app, identify=lambda _scope: "poor"), path="/my/own/agent")
    assert "0.000001 USD" in got.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/my/own/agent"])
@pytest.mark.parametrize("reraises", [True, False])
@pytest.mark.parametrize("debug", [True, False])
async def test_a_denial_that_a_framework_answers_with_500_is_the_refusal(
    book: Ledger, path: str, *, reraises: bool, debug: bool
) -> None:
    async def endpoint(_request: Any) -> Any:
        await block(book, "poor")()

    starlette = Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])], debug=debug)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await starlette(scope, receive, send)
        except BudgetExceededError:
            if reraises:  # Starlette does, other frameworks do not
                raise

    got = await ask(book.around(app), path=path)
    assert (got.status, got.error, len(got.messages)) == (402, None, 2)
    assert got.json["error"]["code"] == "budget_exceeded"
    assert await book.nothing_happened()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/my/own/agent"])
async def test_a_denial_inside_another_error_is_the_refusal_and_the_error_the_servers_to_log(
    book: Ledger, path: str
) -> None:
    async def wraps(*_: Any) -> None:
        try:
            await block(book, "poor")()
        except BudgetExceededError as error:
            raise ExceptionGroup("tasks", [error]) from error

    got = await ask(book.around(Scripted([wraps])), path=path)
    assert got.status == 402
    assert isinstance(got.error, ExceptionGroup)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/my/own/agent"])
async def test_a_denial_that_the_application_handles_is_its_own_answer(book: Ledger, path: str) -> None:
    async def endpoint(_request: Any) -> Any:
        try:
            await block(book, "poor")()
        except BudgetExceededError:
            return PlainTextResponse("later", status_code=503)

    starlette = Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])
    got = await ask(book.around(starlette), path=path)
    assert (got.status, got.body) == (503, b"later")
    assert await book.nothing_happened()


async def test_an_error_after_a_denial_that_was_overcome_is_an_error(book: Ledger) -> None:
    async def overcomes(*_: Any) -> None:
        try:
            await block(book, "poor")()
        except BudgetExceededError:
            await block(book, "acme")()

    got = await ask(book.around(Scripted([overcomes, *plain({"error": {}}, status=500)])))
    assert got.status == 500
    assert (await book.record()).cost_nano_usd == 37_000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/my/own/agent"])
@pytest.mark.parametrize(("began", "sent"), [(start(SSE), chat_chunk("a")), (start(JSON), b'{"id":')])
async def test_a_denial_after_the_answer_began_is_the_servers_to_handle(
    book: Ledger, path: str, began: Any, sent: bytes
) -> None:
    app = Scripted([began, piece(sent), DENIAL])
    got = await ask(book.around(app), {**CHAT, "stream": True}, path=path)
    assert got.error is DENIAL
    assert got.status == 200
    assert got.body == sent
    if path.startswith("/v1"):
        assert (await book.record()).outcome == "upstream_error"


async def test_a_denial_without_a_block_is_the_refusal_too(book: Ledger) -> None:
    got = await ask(book.around(Scripted([DENIAL])))
    assert (got.status, got.error) == (402, None)
    assert got.json["error"]["resets_at"] == "2026-01-02T00:00:00Z"
    assert await book.nothing_happened()


async def test_an_application_that_passes_the_answer_of_a_model_on_is_charged_once(book: Ledger) -> None:
    async def endpoint(request: Any) -> Any:
        asked = json.loads(await request.body())
        async with book.tracker.track_tokens(None, asked["model"]) as usage:
            answer = chat_answer(100, 50)
            usage.record(answer)
        return JSONResponse(answer)

    starlette = Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["POST"])])
    await ask(book.around(starlette))
    assert (await book.record()).cost_nano_usd == 600_000


# A stream begins with a hold for a part of what it may cost.
STREAMED = {**CHAT, "model": "gpt-4o", "max_tokens": 4_000, "stream": True}


def streamed_block(book: Ledger, output_tokens: int, seen: list[int], **options: Any) -> Scripted:
    async def step(_scope: Any, _receive: Any, send: Any) -> None:
        async with book.tracker.track_tokens("acme", "gpt-4o", **options) as usage:
            seen.append((await book.totals()).held_nano_usd)
            await send(start(SSE))
            await send(piece(chat_chunk("hi")))
            usage["input_tokens"], usage["output_tokens"] = 7, output_tokens
        await send(piece(b"", more=False))

    return Scripted([step])


@contextlib.asynccontextmanager
async def little_room(limit_usd: str) -> AsyncIterator[Ledger]:
    price = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10)
    async with ledger(prices={"gpt-4o": price}, budgets=[Budget(scope="tenant=*", limit_usd=limit_usd)]) as book:
        yield book


async def test_a_block_in_a_metered_stream_holds_for_all_that_it_may_cost() -> None:
    seen: list[int] = []
    async with little_room("1") as book:
        await ask(book.around(streamed_block(book, 4_000, seen)), STREAMED)
        assert (await book.record()).usage.output_tokens == 4_000
    assert seen[0] >= 4_000 * 10_000


async def test_a_block_in_a_metered_stream_is_refused_what_its_budget_cannot_pay() -> None:
    seen: list[int] = []
    async with little_room("0.02") as book:
        answer = await ask(book.around(streamed_block(book, 4_000, seen, expected_input_tokens=9)), STREAMED)
        assert answer.status in (402, 429)
        assert not seen
        await book.idle()
        totals = await book.totals()
        assert (totals.cost_nano_usd, totals.held_nano_usd) == (0, 0)


async def test_a_block_in_a_metered_stream_whose_own_bound_fits_holds_that() -> None:
    seen: list[int] = []
    async with little_room("0.02") as book:
        app = streamed_block(book, 900, seen, expected_input_tokens=9, max_output_tokens=1_000)
        answer = await ask(book.around(app), STREAMED)
        assert answer.status == 200
        assert 1_000 * 10_000 <= seen[0] <= 20_000_000
        assert (await book.record()).usage.output_tokens == 900


async def test_a_metered_stream_goes_on_after_a_block_in_it_was_refused() -> None:
    async with little_room("0.03") as book:

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(start(SSE))
            await send(piece(chat_chunk("first")))
            with pytest.raises(BudgetExceededError):
                async with book.tracker.track_tokens("acme", "gpt-4o", expected_input_tokens=9):
                    pass
            for _ in range(2_000):
                await send(piece(chat_chunk(" another")))
            await send(piece(b"", more=False))

        answer = await ask(book.around(app), STREAMED)
        assert answer.error is None
        record = await book.record()
        assert record.outcome == "completed"
        assert 2_000 <= record.usage.output_tokens <= 2_010
