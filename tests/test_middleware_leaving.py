"""Clients that leave: mid-stream, before a plain answer, before their request is complete. What is charged, and that
no hold is left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from askii_middleware.providers import find_apis

from .support.asgi import (
    CHAT,
    DONE,
    SSE,
    Client,
    Scripted,
    ask,
    chat_answer,
    chat_chunk,
    chat_usage,
    piece,
    plain,
    start,
    stream,
)
from .support.ledgers import Ledger, ledger

STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(params=["memory", "sqlite"])
async def book(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'ledger.db'}"
    async with ledger(url) as open_ledger:
        yield open_ledger


async def estimate(path: str, body: dict[str, Any]) -> int:
    """The likely tokens of a request's prompt."""
    raw = json.dumps(body).encode()
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return find_apis(path)[0].parse(fields, len(raw)).input_estimate


@pytest.mark.parametrize("raises", [False, True])
async def test_a_client_that_leaves_mid_stream_pays_the_prompt_and_what_passed(book: Ledger, *, raises: bool) -> None:
    seen: list[str] = []

    async def until_told(_scope: Any, receive: Any, send: Any) -> None:
        """A framework: sends until somebody tells it that the client is gone."""
        listener = asyncio.ensure_future(receive())
        try:
            for _ in range(50):
                if listener.done():
                    break
                await send(piece(chat_chunk("word")))
                await asyncio.sleep(0)
        finally:
            seen.append((await listener)["type"])

    app = Scripted([start(SSE), until_told])
    client = Client([json.dumps(STREAM).encode()], leaves_after=4, raises=raises)
    await ask(book.around(app), client=client)
    record = await book.record()
    assert seen == ["http.disconnect"]
    assert (record.outcome, record.estimated) == ("client_disconnected", True)
    assert record.usage.input_tokens == await estimate("/v1/chat/completions", STREAM)
    assert 3 <= record.usage.output_tokens <= 6


async def test_a_client_that_leaves_mid_stream_pays_the_last_cumulative_usage(book: Ledger) -> None:
    chunk = chat_chunk("x", usage={"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39})
    app = Scripted([start(SSE), piece(chunk), OSError("the client is gone")])
    got = await ask(book.around(app), STREAM, client=Client([json.dumps(STREAM).encode()], leaves_after=1, raises=True))
    record = await book.record()
    assert isinstance(got.error, OSError)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (30, 9)
    assert (record.outcome, record.estimated) == ("client_disconnected", True)


async def test_a_server_that_swallows_what_is_sent_to_nobody_charges_the_whole_stream(book: Ledger) -> None:
    """uvicorn does nothing on `send` after a disconnect, and an application that never asks runs on to its end."""
    events = [chat_chunk("word"), chat_chunk(reason="stop"), chat_usage(), DONE]
    client = Client([json.dumps(STREAM).encode()], leaves_after=1)
    await ask(book.around(Scripted(stream(*events))), client=client)
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.estimated) == (60_000, "completed", False)


async def test_a_client_that_leaves_before_a_plain_answer_pays_its_usage_where_the_application_runs_on(
    book: Ledger,
) -> None:
    async def notices(_scope: Any, receive: Any, _send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"

    client = Client([json.dumps(CHAT).encode()], leaves_after=0)
    await ask(book.around(Scripted([notices, *plain(chat_answer())])), client=client)
    record = await book.record()
    assert (record.cost_nano_usd, record.outcome, record.estimated) == (60_000, "completed", False)


async def test_a_client_that_leaves_before_a_plain_answer_that_never_comes_pays_the_prompt(book: Ledger) -> None:
    async def notices(_scope: Any, receive: Any, _send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"

    client = Client([json.dumps(CHAT).encode()], leaves_after=0)
    await ask(book.around(Scripted([notices])), client=client)
    record = await book.record()
    assert (record.outcome, record.estimated, record.status) == ("client_disconnected", True, None)
    assert record.usage.input_tokens == await estimate("/v1/chat/completions", CHAT)
    assert record.usage.output_tokens == 0


async def test_a_task_that_the_server_cancels_pays_the_prompt(book: Ledger) -> None:
    """hypercorn cancels the application when its client leaves."""
    running = asyncio.Event()

    async def hangs(*_: Any) -> None:
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(book.around(Scripted([hangs]))))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = await book.record()
    assert (record.outcome, record.estimated) == ("client_disconnected", True)
    assert record.usage.input_tokens == await estimate("/v1/chat/completions", CHAT)


async def test_a_client_that_leaves_before_its_request_is_complete_costs_nothing(book: Ledger) -> None:
    app = Scripted(plain(chat_answer()))

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    client = Client()
    client.receive = receive  # type: ignore[method-assign]
    await ask(book.around(app), client=client)
    assert app.scopes == []
    assert book.held == []
    assert await book.nothing_happened()


async def test_a_task_cancelled_before_the_application_read_the_request_costs_nothing(book: Ledger) -> None:
    running = asyncio.Event()

    async def hangs(*_: Any) -> None:
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(book.around(Scripted([hangs], reads=False))))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(book.held) == 1
    assert await book.nothing_happened()
