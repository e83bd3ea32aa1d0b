"""How metered WebSockets end: without money, without a client, without an application."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from askii_middleware import Budget
from askii_middleware.pricing import ModelPrice

from .support.servers import serving
from .support.service import Clock, url_of
from .support.sockets import (
    COST,
    CREATE,
    HOLD,
    USAGE,
    Provider,
    ask,
    booked,
    mini_hold,
    socket_to,
    soon_nothing_held,
    tell,
    until_closed,
)

# Ends of the money ---------------------------------------------------------------------------------------------------


async def test_a_socket_is_cut_off_politely_when_the_budget_ends() -> None:
    provider = Provider()
    budgets = [Budget(scope="tenant=*", limit_usd=f"{(mini_hold() + COST // 10) / 1e9:.9f}")]
    async with booked(budgets=budgets) as book, serving(book.around(provider)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            for _ in range(2):
                await ask(socket, {"type": "response.create"})
            await socket.send(json.dumps({"type": "response.create"}))
            (event,) = await until_closed(socket)
        assert event["type"] == "error"
        assert event["error"]["code"] == "budget_exceeded"
        assert event["error"]["type"] == "insufficient_quota"
        assert socket.close_code == 1008
        assert (socket.close_reason or "").startswith("budget_exceeded: ")
        await asyncio.wait_for(provider.ended.wait(), 5)
        assert len(provider.frames) == 2
        assert await book.spent() == 2 * COST // 10
        assert (await book.totals()).held_nano_usd == 0
        book.check_once()


async def test_a_responses_socket_is_told_in_its_own_form() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.0000001")]
    async with (
        booked(budgets=budgets) as book,
        serving(book.around(Provider())) as url,
        socket_to(url, "/v1/responses") as socket,
    ):
        await socket.send(json.dumps({"type": "response.create", "model": "mini", "input": "hi"}))
        (event,) = await until_closed(socket)
    assert (event["type"], event["status"], event["error"]["code"]) == ("error", 402, "budget_exceeded")
    assert socket.close_code == 1008


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sockets_side_by_side_never_spend_more_than_there_is(kind: str, tmp_path: Path) -> None:
    limit = 5 * mini_hold()
    budgets = [Budget(scope="tenant=*", limit_usd=f"{limit / 1e9:.9f}")]
    answered = refused = 0

    async def client(url: str) -> None:
        nonlocal answered, refused
        try:
            async with socket_to(url, "/v1/realtime?model=mini") as socket:
                for _ in range(10):
                    await ask(socket, {"type": "response.create"})
                    answered += 1
        except (ConnectionClosed, InvalidStatus):
            refused += 1

    options = {"budgets": budgets, "store": url_of(kind, tmp_path)}
    async with booked(**options) as book, serving(book.around(Provider())) as url:
        await asyncio.gather(*(client(url) for _ in range(20)))
        assert await soon_nothing_held(book)
        spent = await book.spent()
        records = await book.records()
        book.check_once()
    assert refused
    assert answered == len(records)
    assert spent == len(records) * COST // 10 <= limit


async def test_a_frame_larger_than_any_request_may_be_closes_the_socket() -> None:
    async with booked() as book, serving(book.around(Provider(), max_body_bytes=100)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            await socket.send("x" * 101)
            await until_closed(socket)
        assert socket.close_code == 1009


async def test_an_application_that_begins_a_response_unasked_is_cut_off_without_money() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await tell(send, {"type": "session.created", "session": {"model": "big"}})
            for number in range(3):
                await tell(send, {"type": "response.created", "response": {"id": f"r{number}"}})

    budgets = [Budget(scope="tenant=*", limit_usd=f"{HOLD / 1e9:.9f}")]
    prices = {
        "big": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10, max_output_tokens=100, context_window=1000)
    }
    async with booked(budgets=budgets, prices=prices) as book, serving(book.around(app)) as url:
        async with socket_to(url, "/v1/realtime") as socket:
            got = await until_closed(socket)
        assert [event["type"] for event in got] == ["session.created", "response.created", "error"]
        assert got[-1]["error"]["code"] == "budget_held"
        record = await book.record()
        assert (record.outcome, record.estimated) == ("cut", True)


async def test_what_has_run_unasked_is_charged_also_without_money() -> None:
    done = {"type": "response.done", "response": {"id": "r1", "status": "completed", "usage": USAGE}}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await tell(send, {"type": "session.created", "session": {"model": "big"}})
            await tell(send, done)
            await receive()

    budgets = [Budget(scope="tenant=*", limit_usd="0.000001")]
    async with booked(budgets=budgets) as book, serving(book.around(app)) as url:
        async with socket_to(url, "/v1/realtime") as socket:
            assert [json.loads(await socket.recv()) for _ in range(2)][1] == done
        await soon_nothing_held(book)
        assert (await book.record()).cost_nano_usd == COST
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, "/v1/realtime"):
                pass
        assert caught.value.response.status_code == 402


async def test_a_hold_that_comes_after_the_end_is_given_back() -> None:
    admitting: list[asyncio.Task[Any]] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        admitting.append(asyncio.ensure_future(receive()))
        await asyncio.sleep(0)

    frames = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": json.dumps(CREATE)}]

    async def receive() -> Any:
        return frames.pop(0)

    async def send(_message: Any) -> None: ...

    scope = {"type": "websocket", "path": "/v1/responses", "query_string": b"", "headers": [], "subprotocols": []}
    async with booked() as book:
        slow = asyncio.Event()
        reserve = book.tracker.store.reserve

        async def reserve_slowly(request: Any) -> Any:
            await slow.wait()
            return await reserve(request)

        book.tracker.store.reserve = reserve_slowly  # type: ignore[method-assign]
        await book.around(app)(scope, receive, send)
        slow.set()
        assert (await admitting[0])["type"] == "websocket.disconnect"
        assert await soon_nothing_held(book)
        assert (len(book.held), len(book.released)) == (1, 1)


async def test_sockets_that_wait_do_not_outlive_their_holds() -> None:
    clock = Clock()
    budgets = [Budget(scope="tenant=*", limit_usd=f"{mini_hold() / 1e9:.9f}", period="total")]
    async with (
        booked(budgets=budgets, clock=clock) as book,
        serving(book.around(Provider())) as url,
        contextlib.AsyncExitStack() as opened,
    ):
        sockets = []
        for _ in range(3):
            sockets.append(await opened.enter_async_context(socket_to(url, "/v1/realtime?model=mini")))
            clock.advance(3601)
        await ask(sockets[0], {"type": "response.create"})
        for socket in sockets[1:]:
            await socket.send(json.dumps({"type": "response.create"}))
            events = await asyncio.wait_for(until_closed(socket), 5)
            assert events[0].get("error", {}).get("code") in ("budget_exceeded", "budget_held")
        assert await soon_nothing_held(book)
        record = await book.record()
        assert (record.late, record.cost_nano_usd) == (False, COST // 10)


# Ends of the socket --------------------------------------------------------------------------------------------------


async def test_a_client_that_vanishes_is_charged_for_what_passed() -> None:
    async with booked() as book, serving(book.around(Provider(hangs=True))) as url:
        async with socket_to(url, "/v1/responses") as socket:
            await socket.send(json.dumps({"type": "response.create", "model": "mini", "input": "hi" * 40}))
            for _ in range(2):
                await socket.recv()
            socket.transport.abort()
        assert await soon_nothing_held(book)
        record = await book.record()
    assert (record.outcome, record.estimated) == ("client_disconnected", True)
    assert record.usage.output_tokens == 3
    assert 20 <= record.usage.input_tokens <= 60


async def test_a_client_that_vanishes_before_anything_began_leaves_no_charge() -> None:
    async with booked() as book, serving(book.around(Provider())) as url:
        async with socket_to(url, "/v1/realtime?model=mini"):
            pass
        assert await soon_nothing_held(book)
        assert await book.nothing_happened()
        assert len(book.released) == 1


async def test_an_application_that_hangs_up_is_no_client_that_left() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await tell(send, {"type": "response.created", "response": {"id": "r1"}})
            await tell(send, {"type": "response.output_text.delta", "response_id": "r1", "delta": "hi"})
            await send({"type": "websocket.close", "code": 1011})
            await receive()

    async with booked() as book, serving(book.around(app)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            await until_closed(socket)
            assert socket.close_code == 1011
        assert await soon_nothing_held(book)
        record = await book.record()
    assert (record.outcome, record.estimated, record.usage.output_tokens) == ("upstream_error", True, 1)


async def test_an_application_that_only_sends_is_stopped_when_its_client_is_gone() -> None:
    stopped = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await tell(send, {"type": "response.created", "response": {"id": "r1"}})
            try:
                while True:
                    await tell(send, {"type": "response.output_text.delta", "response_id": "r1", "delta": "hi"})
                    await asyncio.sleep(0)
            finally:
                stopped.set()

    async with booked() as book, serving(book.around(app)) as url:
        async with socket_to(url, "/v1/realtime?model=mini") as socket:
            await socket.recv()
            socket.transport.abort()
        await asyncio.wait_for(stopped.wait(), 5)
        assert await soon_nothing_held(book)
        record = await book.record()
    assert (record.outcome, record.estimated) == ("client_disconnected", True)


async def test_an_application_that_raises_is_charged_for_what_passed() -> None:
    async with booked() as book, serving(book.around(Provider(breaks=True))) as url:
        async with socket_to(url, "/v1/responses") as socket:
            await socket.send(json.dumps({"type": "response.create", "model": "mini", "input": "hi"}))
            await until_closed(socket)
        assert await soon_nothing_held(book)
        record = await book.record()
    assert (record.outcome, record.estimated) == ("upstream_error", True)
    assert record.usage.output_tokens == 3


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_socket_leaves_no_hold_and_no_second_charge(turns: int) -> None:
    requests = [{"type": "websocket.connect"}]
    requests += [{"type": "websocket.receive", "text": json.dumps({"type": "response.create"})} for _ in range(2)]

    async def receive() -> Any:
        await asyncio.sleep(0)
        if requests:
            return requests.pop(0)
        return await asyncio.Event().wait()

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "websocket",
        "path": "/v1/realtime",
        "query_string": b"model=mini",
        "headers": [],
        "subprotocols": [],
    }
    async with booked() as book:
        task = asyncio.ensure_future(book.around(Provider())(scope, receive, send))
        for _ in range(3 * turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await book.idle()
        assert await soon_nothing_held(book)
        book.check_once()
