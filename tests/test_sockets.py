"""Metered WebSockets over loopback: real servers, real clients, and the ledger afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from askii_middleware import Budget
from askii_middleware.keys import hash_secret
from askii_middleware.pricing import ModelPrice

from .providers.support import CORPUS, NO_CORPUS
from .providers.test_sockets import LIVE_PATH, recorded
from .support.ledgers import Ledger, ledger
from .support.servers import serving
from .support.service import url_of

PRICES = {
    # 1,000 nano-USD for each token of a prompt, 10,000 for each of an answer.
    name: ModelPrice(
        input_usd_per_mtok=1,
        output_usd_per_mtok=10,
        max_output_tokens=100,
        context_window=1000,
        audio_usd_per_hour=3600,
    )
    for name in ("big", "ear")
} | {"mini": ModelPrice(input_usd_per_mtok="0.1", output_usd_per_mtok=1, max_output_tokens=100, context_window=1000)}
HOLD = 1000 * 1000 + 100 * 10_000
"""Nano-USD: the window's tokens and the longest answer, of `big` on a realtime socket without seconds."""
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
COST = 7 * 1000 + 3 * 10_000
App = Callable[[Any, Any, Any], Awaitable[None]]


class Provider:
    """A provider behind the middleware, as an ASGI application: answers each request of a client, by its API.

    Attributes:
        usage: what each response reports.
        breaks: raise in the middle of a response.
        hangs: never end a response.
    """

    def __init__(self, *, breaks: bool = False, hangs: bool = False) -> None:
        self.breaks = breaks
        self.hangs = hangs
        self.scopes: list[Any] = []
        self.frames: list[Any] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        number = 0
        try:
            while (message := await receive())["type"] == "websocket.receive":
                self.frames.append(message.get("text") or message.get("bytes"))
                event = json.loads(self.frames[-1])
                if event.get("type") == "response.create":
                    number += 1
                    await self.respond(f"r{number}", scope["path"], event, receive, send)
                elif "setup" in event:
                    await tell(send, {"setupComplete": {}})
                elif "client_content" in event or "clientContent" in event:
                    await self.speak(send)
        finally:
            self.ended.set()

    async def respond(self, name: str, path: str, event: Any, receive: Any, send: Any) -> None:
        done = "response.completed" if path.endswith("/responses") else "response.done"
        lane = {"stream_id": event["stream_id"]} if "stream_id" in event else {}
        begun = {"type": "response.created", "response": {"id": name, "status": "in_progress"}, **lane}
        await tell(send, begun)
        await tell(send, {"type": "response.output_text.delta", "response_id": name, "delta": "hello you", **lane})
        self.begun.set()
        if self.breaks:
            raise RuntimeError("the provider broke")
        if self.hangs:
            assert (await receive())["type"] == "websocket.disconnect"
            raise ConnectionError("the client is gone")
        await tell(send, {"type": done, "response": {"id": name, "status": "completed", "usage": USAGE}, **lane})

    async def speak(self, send: Any) -> None:
        await tell(send, {"serverContent": {"modelTurn": {"parts": [{"text": "hello"}]}}})
        counts = {"promptTokenCount": 7, "responseTokenCount": 3, "totalTokenCount": 10}
        await tell(send, {"serverContent": {"turnComplete": True}, "usageMetadata": counts})


async def tell(send: Any, event: Any) -> None:
    await send({"type": "websocket.send", "text": json.dumps(event)})


def replaying(lines: list[dict[str, Any]]) -> App:
    """A provider that says what it once said, when the client has said what it once said."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        for line in lines:
            if line["direction"] == "received":
                kind = "bytes" if "serverContent" in line["data"] else "text"
                frame = json.dumps(line["data"], ensure_ascii=False)
                await send({"type": "websocket.send", kind: frame.encode() if kind == "bytes" else frame})
            else:
                assert json.loads((await receive())["text"]) == line["data"]
        assert (await receive())["type"] == "websocket.disconnect"

    return app


@contextlib.asynccontextmanager
async def booked(**options: Any) -> AsyncIterator[Ledger]:
    async with ledger(**{"prices": PRICES, "budgets": [Budget(scope="tenant=*", limit_usd=10)], **options}) as book:
        yield book


@contextlib.asynccontextmanager
async def socket_to(url: str, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect("ws" + url.removeprefix("http") + path, proxy=None, **options) as socket:
        yield socket


async def ask(socket: ClientConnection, event: Any, last: str = "response.done") -> list[Any]:
    """Send a request and take the events until its last one."""
    await socket.send(json.dumps(event))
    got: list[Any] = []
    while not got or (got[-1].get("type") != last and "usageMetadata" not in got[-1]):
        got.append(json.loads(await socket.recv()))
    return got


async def until_closed(socket: ClientConnection) -> list[Any]:
    got = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            got.append(json.loads(await socket.recv()))
    return got


# What passes ---------------------------------------------------------------------------------------------------------


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


async def soon_nothing_held(book: Ledger) -> bool:
    async with asyncio.timeout(5):
        while (await book.totals()).held_nano_usd:
            await asyncio.sleep(0.005)
    return True


# Refused before it opens ---------------------------------------------------------------------------------------------

BROKE = [Budget(scope="tenant=*", limit_usd=0)]


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
@pytest.mark.parametrize("path", ["/v1/realtime?model=big", "/v1/responses", LIVE_PATH])
async def test_nobody_without_money_gets_in(path: str, ws: str) -> None:
    pytest.importorskip(ws.partition("-")[0])
    provider = Provider()
    async with booked(budgets=BROKE) as book, serving(book.around(provider), ws=ws) as url:
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, path):
                pass
    answer = caught.value.response
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.body or b"")["error"]
    assert "budget" in json.dumps(error)
    assert provider.scopes == []
    assert book.metric("askii_refusals_total", scope_kind="tenant", reason="spent") == 1


async def test_what_runs_already_may_leave_too_little_for_another_socket() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=f"{1.5 * mini_hold() / 1e9:.9f}")]
    async with (
        booked(budgets=budgets) as book,
        serving(book.around(Provider())) as url,
        socket_to(url, "/v1/realtime?model=mini"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, "/v1/realtime?model=mini"):
                pass
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["retry-after"] == "1"


def mini_hold() -> int:
    return HOLD // 10


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/realtime?model=nobody", {}, 400),
        ("/v1/realtime?model=a&model=b", {}, 400),
        ("/v1/realtime?model=big", {"identify": lambda _scope: None}, 401),
    ],
)
async def test_a_socket_that_cannot_be_metered_is_refused(path: str, options: Any, status: int) -> None:
    async with booked() as book, serving(book.around(Provider(), **options)) as url:
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, path):
                pass
        assert caught.value.response.status_code == status
        assert await book.nothing_happened()


async def test_a_server_without_denial_responses_closes_instead() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "query_string": b"model=big", "headers": []}
    async with booked(budgets=BROKE) as book:
        await book.around(Provider())(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "budget_exceeded"}]


async def test_sockets_of_other_paths_pass_where_they_may() -> None:
    for unmetered, status in (("allow", None), ("deny", 403)):
        async with booked() as book, serving(book.around(Provider(), unmetered=unmetered)) as url:
            if status is None:
                async with socket_to(url, "/v1/events"):
                    pass
            else:
                with pytest.raises(InvalidStatus) as caught:
                    async with socket_to(url, "/v1/events"):
                        pass
                assert caught.value.response.status_code == status


SECRET = "sk-askii-" + "k" * 43


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/realtime?model=mini", {"additional_headers": {"authorization": f"Bearer {SECRET}"}}),
        ("/v1/realtime?model=mini", {"subprotocols": ["realtime", f"openai-insecure-api-key.{SECRET}"]}),
        (f"{LIVE_PATH}?key={SECRET}", {}),
    ],
)
async def test_a_key_of_ours_opens_wherever_clients_can_put_it(path: str, options: Any) -> None:
    keys = [{"id": "key_1", "sha256": hash_secret(SECRET), "tenant": "acme"}]
    async with booked() as book:
        app = book.around(Provider(), keys=keys, identity={"sources": ["key"]})
        async with serving(app) as url:
            async with socket_to(url, path, **options):
                pass
            wrong = path.replace("kkk", "xxx")
            others = json.loads(json.dumps(options).replace("kkk", "xxx"))
            with pytest.raises(InvalidStatus) as caught:
                async with socket_to(url, wrong, **others):
                    pass
            assert caught.value.response.status_code == 401


async def test_a_key_opens_no_other_models_than_its_own() -> None:
    keys = [{"id": "key_1", "sha256": hash_secret(SECRET), "tenant": "acme", "models": ["mini"]}]
    headers = {"authorization": f"Bearer {SECRET}"}
    async with booked() as book:
        app = book.around(Provider(), keys=keys, identity={"sources": ["key"]})
        async with serving(app) as url:
            with pytest.raises(InvalidStatus) as caught:
                async with socket_to(url, "/v1/realtime?model=big", additional_headers=headers):
                    pass
            assert caught.value.response.status_code == 403
            async with socket_to(url, "/v1/realtime?model=mini", additional_headers=headers) as socket:
                await socket.send(json.dumps({"type": "session.update", "session": {"model": "big"}}))
                (event,) = await until_closed(socket)
            assert event["error"]["code"] == "model_not_allowed"
            async with socket_to(url, "/v1/responses", additional_headers=headers) as socket:
                await socket.send(json.dumps({"type": "response.create", "model": "big", "input": "hi"}))
                (event,) = await until_closed(socket)
            assert (event["status"], event["error"]["code"]) == (403, "model_not_allowed")
        assert await book.nothing_happened()


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


CREATE = {"type": "response.create", "model": "mini", "input": "hi"}


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


# What the admission changes ------------------------------------------------------------------------------------------


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


# The official SDKs ---------------------------------------------------------------------------------------------------


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0)


async def test_openai_s_realtime_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with openai_client(url) as client, client.realtime.connect(model="mini") as connection:
            for _ in range(2):
                await connection.response.create()
                async for event in connection:
                    got.append(event)
                    if event.type == "response.done":
                        break
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert len(await book.records()) == 2


async def test_openai_s_realtime_client_is_told_of_the_end_of_the_money() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=f"{(mini_hold() + 1) / 1e9:.9f}")]
    async with booked(budgets=budgets) as book, serving(book.around(Provider())) as url, openai_client(url) as client:
        events: list[Any] = []
        async with client.realtime.connect(model="mini") as connection:
            await connection.response.create()
            with contextlib.suppress(ConnectionClosed):
                async for event in connection:
                    events.append(event)
                    if event.type == "response.done":
                        await connection.response.create()
        errors = [event for event in events if event.type == "error"]
        assert [error.error.code for error in errors] == ["budget_exceeded"]


async def test_openai_s_responses_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with openai_client(url) as client, client.responses.connect() as connection:
            await connection.response.create(model="mini", input="hi")
            async for event in connection:
                got.append(event)
                if event.type == "response.completed":
                    break
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert await book.spent() == COST // 10


def live_client(url: str) -> Any:
    """With a key the SDK insists on TLS; as the client of a gateway it goes where it is told."""
    address = f"ws{url.removeprefix('http')}/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent"
    client = genai.Client(vertexai=True, http_options={"base_url": address})
    client._api_client._websocket_ssl_ctx = {}
    return client.aio.live


async def test_google_s_live_client_gets_the_same_with_and_without() -> None:
    async def converse(url: str) -> list[Any]:
        got = []
        async with live_client(url).connect(model="mini", config={"response_modalities": ["TEXT"]}) as session:
            for _ in range(2):
                await session.send_client_content(turns={"parts": [{"text": "hi"}]}, turn_complete=True)
                got += [message async for message in session.receive()]
        return got

    async with booked() as book:
        async with serving(Provider()) as url:
            plain = await converse(url)
        async with serving(book.around(Provider())) as url:
            assert await converse(url) == plain
        assert len(await book.records()) == 2
        assert await book.spent() == 2 * COST // 10


async def test_google_s_live_client_is_told_of_the_end_of_the_money() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd="0.0000001")]
    async with booked(budgets=budgets) as book, serving(book.around(Provider())) as url:
        with pytest.raises((ConnectionClosed, genai_errors.APIError), match="budget_exceeded"):
            async with live_client(url).connect(model="mini"):
                pass
