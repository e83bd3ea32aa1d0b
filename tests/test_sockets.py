"""What passes through metered WebSockets, what is changed on the way, and what it costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from askii_middleware import Budget
from askii_middleware.pricing import ModelPrice

from .providers.support import CORPUS, NO_CORPUS
from .support.servers import serving
from .support.sockets import (
    COST,
    HOLD,
    LIVE_PATH,
    PRICES,
    Provider,
    ask,
    booked,
    recorded,
    replaying,
    socket_to,
    soon_nothing_held,
    tell,
)


@pytest.mark.skipif(not recorded(), reason=NO_CORPUS)
@pytest.mark.parametrize("entry", recorded(), ids=lambda entry: entry["file"])
async def test_a_recorded_session_passes_untouched_and_is_charged_exactly(entry: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (CORPUS / entry["file"]).read_text().splitlines()]
    price = ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1, audio_usd_per_hour=1)

    async def converse(url: str) -> list[str | bytes]:
        got: list[str | bytes] = []
        async with socket_to(url, entry["request_path"]) as socket:
            for line in lines:
                if line["direction"] == "sent":
                    await socket.send(json.dumps(line["data"]))
                else:
                    got.append(await socket.recv())
        return got

    prices = {entry["request_model"]: price}
    async with booked(prices=prices, budgets=[Budget(scope="tenant=*", limit_usd=1000)]) as book:
        async with serving(replaying(lines)) as url:
            plain = await converse(url)
        async with serving(book.around(replaying(lines))) as url:
            assert await converse(url) == plain
        records = await book.records()
        assert (await book.totals()).held_nano_usd == 0
    assert {type(frame) for frame in plain} <= {str, bytes}
    assert len(records) == (entry["extra"].get("responses") or 1)
    assert sum(record.usage.input_tokens for record in records) == entry["expected"]["input_tokens"]
    assert sum(record.usage.output_tokens for record in records) == entry["expected"]["output_tokens"]
    assert sum(record.usage.audio_output_tokens for record in records) == (entry["expected"]["audio_out"] or 0)
    assert {record.outcome for record in records} == {"completed"}
    assert not any(record.estimated for record in records)


@pytest.mark.parametrize(
    ("path", "event", "last"),
    [
        ("/v1/realtime?model=mini", {"type": "response.create"}, "response.done"),
        ("/v1/responses", {"type": "response.create", "model": "mini", "input": "hi"}, "response.completed"),
    ],
)
async def test_each_response_is_a_call_of_its_own(path: str, event: Any, last: str) -> None:
    async with booked() as book, serving(book.around(Provider())) as url, socket_to(url, path) as socket:
        assert socket.response is not None
        name = socket.response.headers["x-askii-call-id"]
        for _ in range(3):
            await ask(socket, event, last)
        records = await book.records()
        ids = sorted(record.call_id for record in records)
        assert ids == [f"{name}.{number}" for number in (1, 2, 3)]
        assert {record.provider_request_id for record in records} == {"r1", "r2", "r3"}
        assert await book.spent() == 3 * COST // 10
        book.check_once()


async def test_frames_that_begin_nothing_cost_nothing() -> None:
    async with booked() as book, serving(book.around(Provider())) as url:
        async with socket_to(url, "/v1/responses") as socket:
            await socket.send(b'{"type": "something.else"}')
            await socket.send("[1, 2]")
            await socket.send('{"type": "response.cancel"}')
        assert await book.nothing_happened()
        assert book.held == []


async def test_a_client_s_frames_reach_the_application_as_they_are() -> None:
    provider = Provider()
    frames: list[str | bytes] = ['{"type":  "x", "n": 1.50}', b'{"bytes": true}', "{}"]
    async with booked() as book, serving(book.around(provider)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            for frame in frames:
                await socket.send(frame)
        await asyncio.wait_for(provider.ended.wait(), 5)
    assert provider.frames == frames


async def test_the_opening_tells_the_call_and_the_model() -> None:
    provider = Provider()
    async with booked() as book, serving(book.around(provider)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            assert socket.response is not None
            headers = socket.response.headers
            assert headers["x-askii-model"] == "mini"
            assert headers["x-askii-budget-limit-coins"] == "10000000"
        assert provider.scopes[0]["state"]["askii_model"] == "mini"
        assert await soon_nothing_held(book)


async def test_a_fallback_is_written_where_the_model_stands() -> None:
    options: dict[str, Any] = {
        "fallbacks": {"big": ["mini"]},
        "prices": {name: price for name, price in PRICES.items() if name == "mini"}
        | {"big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10, max_output_tokens=100, context_window=1000)},
        "budgets": [Budget(scope="tenant=*", limit_usd=f"{(HOLD - 1) / 1e9:.9f}")],
    }
    for path, event in (
        ("/v1/realtime?x=%20&model=big", {"type": "response.create"}),
        ("/v1/responses", {"type": "response.create", "model": "big", "previous_response_id": "r0", "input": "hi"}),
        (LIVE_PATH, {"setup": {"model": "models/big", "tools": []}}),
    ):
        provider = Provider()
        async with booked(**options) as book, serving(book.around(provider)) as url:
            async with socket_to(url, path) as socket:
                if "setup" in event:
                    await socket.send(json.dumps(event))
                    await socket.recv()
                    await ask(socket, {"clientContent": {"turnComplete": True}})
                else:
                    await ask(socket, event, "response.completed" if path == "/v1/responses" else "response.done")
                if path.startswith("/v1/realtime"):
                    assert socket.response is not None
                    assert socket.response.headers["x-askii-requested-model"] == "big"
                    assert provider.scopes[0]["query_string"] == b"x=%20&model=mini"
                else:
                    sent = json.loads(provider.frames[0])
                    assert (sent.get("model") or sent["setup"]["model"]) in ("mini", "models/mini")
            record = await book.record()
        assert (record.requested_model.removeprefix("models/"), record.served_model) == ("big", "mini")
        assert record.cost_nano_usd == COST // 10


async def test_what_is_heard_is_charged_once_by_the_model_that_transcribes_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            for _ in range(3):
                await receive()
            await tell(send, {"type": "input_audio_buffer.committed", "item_id": "i1"})
            event = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "i1"}
            await tell(send, {**event, "usage": {"type": "duration", "seconds": 2.4}})
            await receive()

    setting = {"turn_detection": None, "input_audio_transcription": {"model": "ear"}}
    async with booked(budgets=[Budget(scope="tenant=*", limit_usd=10_000)]) as book, serving(book.around(app)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            await socket.send(json.dumps({"type": "session.update", "session": setting}))
            for _ in range(2):
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
            for _ in range(2):
                await socket.recv()
        assert await soon_nothing_held(book)
        record = await book.record()
    assert (record.served_model, record.provider_request_id) == ("ear", "i1")
    assert [(charge.bucket, charge.quantity) for charge in record.charges] == [("second", 3)]
