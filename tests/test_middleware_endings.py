"""Every row of the contract's table of endings (§4), through the wrapped application: what is charged, under which
outcome, that no hold is left and that there is exactly one record.

Prices: 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware.operations import DEFERRED_S
from askii_middleware.providers import find_apis

from .support.asgi import (
    CHAT,
    DONE,
    JSON,
    SSE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    event,
    piece,
    plain,
    start,
    stream,
)
from .support.ledgers import Ledger, ledger

STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
INPUT_BOUND = 256
"""Tokens a bound adds for a chat template."""


@pytest.fixture(params=["memory", "sqlite"])
async def book(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'ledger.db'}"
    async with ledger(url) as open_ledger:
        yield open_ledger


def bound(body: dict[str, Any]) -> int:
    """The input bound of a request: its bytes and what templates add."""
    return len(json.dumps(body)) + INPUT_BOUND


async def estimate(path: str, body: dict[str, Any]) -> int:
    """The likely tokens of a request's prompt."""
    raw = json.dumps(body).encode()
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return find_apis(path)[0].parse(fields, len(raw)).input_estimate


# Usage reported -------------------------------------------------------------------------------------------------------

RESPONSES = {"model": "big", "input": "hi", "max_output_tokens": 20}
RESPONSE = {
    "id": "r1",
    "object": "response",
    "status": "completed",
    "model": "big",
    "output": [],
    "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "big",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 10, "output_tokens": 5},
}
MESSAGES_STREAM = (
    event(
        {
            "type": "message_start",
            "message": {
                **MESSAGE,
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 10, "output_tokens": 1},
            },
        },
        "message_start",
    ),
    event(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        "content_block_delta",
    ),
    event(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}, "message_delta"
    ),
    event({"type": "message_stop"}, "message_stop"),
)
RESPONSES_STREAM = (
    event(
        {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "usage": None}},
        "response.created",
    ),
    event({"type": "response.output_text.delta", "delta": "hello"}, "response.output_text.delta"),
    event({"type": "response.completed", "response": RESPONSE}, "response.completed"),
)
COMPLETION = {
    **chat_answer(),
    "object": "text_completion",
    "choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}],
}
EMBEDDING = {"object": "list", "model": "big", "data": [], "usage": {"prompt_tokens": 10, "total_tokens": 10}}
PLAIN_CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "openai.chat": ("/v1/chat/completions", CHAT, chat_answer(), 60_000),
    "openai.completions": ("/v1/completions", {"model": "big", "prompt": "hi", "max_tokens": 20}, COMPLETION, 60_000),
    "openai.responses": ("/v1/responses", RESPONSES, RESPONSE, 60_000),
    "openai.embeddings": ("/v1/embeddings", {"model": "big", "input": "hi"}, EMBEDDING, 10_000),
    "anthropic.messages": ("/v1/messages", {**CHAT}, MESSAGE, 60_000),
}
STREAM_CALLS: dict[str, tuple[str, dict[str, Any], tuple[bytes, ...]]] = {
    "openai.chat": (
        "/v1/chat/completions",
        STREAM,
        (chat_chunk("hello"), chat_chunk(reason="stop"), chat_usage(), DONE),
    ),
    "openai.completions": (
        "/v1/completions",
        {"model": "big", "prompt": "hi", "max_tokens": 20, "stream": True},
        (chat_chunk(reason="stop"), chat_usage(), DONE),
    ),
    "openai.responses": ("/v1/responses", {**RESPONSES, "stream": True}, RESPONSES_STREAM),
    "anthropic.messages": ("/v1/messages", {**CHAT, "stream": True}, MESSAGES_STREAM),
}


@pytest.mark.parametrize("api", PLAIN_CALLS)
async def test_a_plain_answer_with_usage_is_charged_exactly(book: Ledger, api: str) -> None:
    path, body, answer, cost = PLAIN_CALLS[api]
    got = await ask(book.around(Scripted(plain(answer))), body, path=path)
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.estimated, record.status) == (cost, "completed", False, 200)
    assert (record.api, record.stream, record.requested_model, record.served_model) == (api, False, "big", "big")
    assert record.usage.input_tokens == 10
    assert got.headers["x-askii-cost-coins"] == str(cost // 1000)
    assert record.call_id == got.headers["x-askii-call-id"]
    assert await book.spent() == cost


@pytest.mark.parametrize("api", STREAM_CALLS)
async def test_a_stream_with_usage_is_charged_exactly(book: Ledger, api: str) -> None:
    path, body, events = STREAM_CALLS[api]
    got = await ask(book.around(Scripted(stream(*events))), body, path=path)
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.estimated) == (60_000, "completed", False)
    assert (record.api, record.stream) == (api, True)
    assert record.call_id == got.headers["x-askii-call-id"]
    assert "x-askii-cost-coins" not in got.headers


async def test_usage_of_a_dearer_served_model_is_charged_at_its_price(book: Ledger) -> None:
    await ask(book.around(Scripted(plain(chat_answer()))), {**CHAT, "model": "mini"})
    record = await book.record()
    assert (record.requested_model, record.served_model) == ("mini", "big")


# Finished without usage -----------------------------------------------------------------------------------------------


async def test_a_plain_answer_without_usage_costs_the_prompt_as_estimated_and_what_was_sent_out(book: Ledger) -> None:
    answer = {**chat_answer(), "usage": None}
    await ask(book.around(Scripted(plain(answer))))
    record = await book.record()
    assert (record.outcome, record.estimated) == ("completed", True)
    assert record.usage.input_tokens == await estimate("/v1/chat/completions", CHAT)
    assert record.usage.output_tokens == 3  # nine bytes of text


async def test_a_stream_without_usage_costs_the_prompt_as_estimated_and_what_was_sent_out(book: Ledger) -> None:
    chunks = [chat_chunk(f"word{number} ") for number in range(7)]
    await ask(book.around(Scripted(stream(*chunks, chat_chunk(reason="stop"), DONE))), STREAM)
    record = await book.record()
    assert (record.outcome, record.estimated) == ("completed", True)
    assert record.usage.output_tokens == 11  # 42 bytes of text
    assert record.usage.input_tokens == await estimate("/v1/chat/completions", STREAM)


@pytest.mark.parametrize("answer", [b"{}", b"", b"\xff\xfe garbage", b'{"choices": ['])
async def test_an_answer_that_says_nothing_costs_its_hold(book: Ledger, answer: bytes) -> None:
    await ask(book.around(Scripted(plain(answer))))
    record = await book.record()
    assert record.estimated
    assert record.cost_nano_usd == bound(CHAT) * 1000 + 20 * 10_000


async def test_an_empty_stream_costs_its_hold(book: Ledger) -> None:
    await ask(book.around(Scripted(stream())), STREAM)
    record = await book.record()
    assert record.estimated
    assert record.cost_nano_usd == bound(STREAM) * 1000 + 20 * 10_000


async def test_a_free_model_costs_nothing_and_is_recorded(book: Ledger) -> None:
    await ask(book.around(Scripted(plain({**chat_answer(), "model": "free"}))), {**CHAT, "model": "free"})
    record = await book.record()
    assert (record.cost_nano_usd, record.estimated, record.unpriced) == (0, False, False)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 400, 404, 429, 500, 503])
async def test_a_redirect_or_an_error_without_usage_costs_nothing(book: Ledger, status: int) -> None:
    got = await ask(book.around(Scripted(plain({"error": {"message": "no"}}, status=status))))
    assert got.status == status
    assert got.json == {"error": {"message": "no"}}
    assert "x-askii-cost-coins" not in got.headers
    assert len(book.released) == 1
    assert await book.nothing_happened()


async def test_usage_in_an_error_is_charged(book: Ledger) -> None:
    got = await ask(book.around(Scripted(plain({**chat_answer(), "error": {"message": "no"}}, status=500))))
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.status) == (60_000, "upstream_error", 500)
    assert got.headers["x-askii-cost-coins"] == "60"


async def test_an_application_that_raises_before_it_answers_costs_nothing(book: Ledger) -> None:
    got = await ask(book.around(Scripted([RuntimeError("no")])))
    assert isinstance(got.error, RuntimeError)
    assert got.messages == []
    assert await book.nothing_happened()


async def test_an_application_that_returns_without_an_answer_costs_nothing(book: Ledger) -> None:
    await ask(book.around(Scripted([])))
    assert await book.nothing_happened()


async def test_an_application_that_raises_mid_stream_costs_the_prompts_bound_and_what_passed(book: Ledger) -> None:
    app = Scripted([start(SSE), piece(chat_chunk("hello")), piece(chat_chunk(" you")), RuntimeError("no")])
    got = await ask(book.around(app), STREAM)
    record = await book.record()
    assert isinstance(got.error, RuntimeError)
    assert got.body == chat_chunk("hello") + chat_chunk(" you")
    assert (record.outcome, record.estimated) == ("upstream_error", True)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (bound(STREAM), 3)


async def test_an_application_that_raises_within_a_plain_answer_costs_the_prompts_bound(book: Ledger) -> None:
    app = Scripted([start(JSON), piece(b'{"id": "c1"'), RuntimeError("no")])
    got = await ask(book.around(app))
    record = await book.record()
    assert isinstance(got.error, RuntimeError)
    assert got.body == b'{"id": "c1"'
    assert not got.complete
    assert (record.outcome, record.estimated) == ("upstream_error", True)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (bound(CHAT), 0)


async def test_an_application_that_times_out_mid_stream_costs_the_prompts_bound_and_what_passed(book: Ledger) -> None:
    app = Scripted([start(SSE), piece(chat_chunk("hello")), TimeoutError()])
    got = await ask(book.around(app), STREAM)
    record = await book.record()
    assert isinstance(got.error, TimeoutError)
    assert record.outcome == "upstream_error"


async def test_a_stream_that_ends_in_the_providers_error_costs_the_prompts_bound_and_what_passed(book: Ledger) -> None:
    broken = event({"error": {"message": "overloaded", "type": "server_error"}})
    await ask(book.around(Scripted(stream(chat_chunk("hello"), broken))), STREAM)
    record = await book.record()
    assert (record.outcome, record.estimated) == ("upstream_error", True)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (bound(STREAM), 2)


async def test_an_application_that_leaves_its_stream_unfinished_costs_the_prompts_bound_and_what_passed(
    book: Ledger,
) -> None:
    got = await ask(book.around(Scripted([start(SSE), piece(chat_chunk("hello"))])), STREAM)
    record = await book.record()
    assert not got.complete
    assert (record.outcome, record.estimated) == ("upstream_error", True)
    assert record.usage.input_tokens == bound(STREAM)


# Elsewhere, and never -------------------------------------------------------------------------------------------------


async def test_a_background_response_keeps_its_hold_and_is_charged_as_an_estimate_in_the_end(book: Ledger) -> None:
    body = {**RESPONSES, "background": True}
    queued = {"id": "r1", "object": "response", "status": "queued", "background": True, "model": "big", "usage": None}
    got = await ask(book.around(Scripted(plain(queued))), body, path="/v1/responses")
    assert "x-askii-cost-coins" not in got.headers
    assert await book.records() == []
    held = bound(body) * 1000 + 20 * 10_000
    assert (await book.totals()).held_nano_usd == held
    book.clock.now_s += DEFERRED_S
    await book.tracker.operations.tend()
    record = await book.record()
    assert (record.outcome, record.estimated, record.cost_nano_usd) == ("deferred_estimate", True, held)


async def test_a_worker_that_dies_leaves_a_lost_hold_and_no_record(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with ledger(url) as book:
        running = asyncio.Event()

        async def hangs(*_: Any) -> None:
            running.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(ask(book.around(Scripted([hangs]))))
        await running.wait()
        book.clock.now_s += 61  # past the last heartbeat's time to live
        await book.tracker.store.heartbeat("another worker", 60)
        totals = await book.totals()
        assert (totals.lost, totals.held_nano_usd, totals.records) == (1, 0, 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (record,) = await book.records()  # a late settle replaces the loss
        assert record.late
        assert (await book.totals()).lost == 0


async def test_a_call_settles_even_while_its_task_is_being_cancelled_again(book: Ledger) -> None:
    async def hangs(*_: Any) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(book.around(Scripted([start(SSE), piece(chat_chunk("hello")), hangs])), STREAM))
    while not book.held:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await book.record()).outcome == "client_disconnected"


async def test_the_clients_last_byte_does_not_wait_for_the_settlement(book: Ledger) -> None:
    book.slow = asyncio.Event()
    client = Client([json.dumps(CHAT).encode()])
    task = asyncio.create_task(ask(book.around(Scripted(plain(chat_answer()))), client=client))
    await client.gone.wait()
    assert client.messages[-1]["body"]
    assert await book.tracker.store.records() == []
    book.slow.set()
    await task
    assert (await book.record()).cost_nano_usd == 60_000
