"""WebSockets through the gateway, over loopback: both directions, both ends, and where they may not go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from askii_middleware.gateway import Proxy, Upstream
from askii_middleware.keys import hash_secret
from askii_middleware.pricing import ModelPrice
from askii_middleware.serving import gateway
from askii_middleware.settings import load_settings
from askii_middleware.tracker import CostTracker

from ..support.ledgers import Ledger
from .serving import eventually, serving

SECRET = "sk-askii-" + "k" * 43
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


class Upper:
    """A provider under `websockets`: says what it was asked in capitals, closes as told, and remembers how it went."""

    def __init__(self) -> None:
        self.sockets: list[ServerConnection] = []
        self.closed = asyncio.Event()

    async def __call__(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        try:
            async for frame in socket:
                if frame == "close":
                    await socket.close(4321, "as you wish")
                elif frame == "abort":
                    socket.transport.abort()
                elif isinstance(frame, str) and '"response.create"' in frame:
                    name = json.loads(frame).get("model")
                    done = {"id": "r1", "model": name, "status": "completed", "usage": USAGE}
                    await socket.send(json.dumps({"type": "response.created", "response": {"id": "r1"}}))
                    await socket.send(json.dumps({"type": "response.completed", "response": done}))
                else:
                    await socket.send(frame.upper())
        finally:
            await socket.wait_closed()
            self.closed.set()

    @property
    def headers(self) -> Any:
        request = self.sockets[-1].request
        assert request is not None
        return request.headers

    @property
    def path(self) -> str:
        request = self.sockets[-1].request
        assert request is not None
        return request.path


@asynccontextmanager
async def upstream(handler: Any = None, **options: Any) -> AsyncIterator[tuple[str, Upper]]:
    handler = handler or Upper()
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        host, port = next(iter(server.sockets)).getsockname()
        yield f"http://{host}:{port}/v1", handler


@asynccontextmanager
async def proxied(*upstreams: Upstream, **options: Any) -> AsyncIterator[str]:
    async with serving(Proxy(upstreams, **options)) as url:
        yield "ws" + url.removeprefix("http")


@asynccontextmanager
async def through(**options: Any) -> AsyncIterator[tuple[ClientConnection, Upper]]:
    """A client's socket through a gateway with one upstream."""
    path = options.pop("path", "/v1/realtime?model=m")
    async with (
        upstream() as (url, upper),
        proxied(Upstream(name="up", url=url)) as gate,
        connect(gate + path, proxy=None, **options) as socket,
    ):
        yield socket, upper


def names(*words: str) -> list[Subprotocol]:
    return [Subprotocol(word) for word in words]


async def test_frames_pass_in_both_directions_as_they_are() -> None:
    async with through() as (socket, upper):
        for frame, answer in (("a" * 70_000, "A" * 70_000), (b"\x00b\xff", b"\x00B\xff"), ("", ""), (b"", b"")):
            await socket.send(frame)
            assert await socket.recv() == answer
        assert upper.path == "/v1/realtime?model=m"


async def test_many_frames_keep_their_order() -> None:
    async with through() as (socket, _):
        sender = asyncio.create_task(send_all(socket, 2000))
        assert [await socket.recv() for _ in range(2000)] == [f"FRAME {number}" for number in range(2000)]
        await sender


async def send_all(socket: ClientConnection, count: int) -> None:
    for number in range(count):
        await socket.send(f"frame {number}")


async def test_an_upstream_s_close_reaches_the_client_with_its_code_and_reason() -> None:
    async with through() as (socket, _):
        await socket.send("close")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4321, "as you wish")


async def test_a_client_s_close_reaches_the_upstream_with_its_code_and_reason() -> None:
    async with through() as (socket, upper):
        await socket.send("x")
        await socket.recv()
        await socket.close(4004, "enough")
        await asyncio.wait_for(upper.closed.wait(), 5)
        assert (upper.sockets[0].close_code, upper.sockets[0].close_reason) == (4004, "enough")


async def test_a_client_that_vanishes_ends_its_upstream() -> None:
    async with through() as (socket, upper):
        await socket.send("x")
        await socket.recv()
        socket.transport.abort()
        await asyncio.wait_for(upper.closed.wait(), 5)


async def test_an_upstream_that_vanishes_closes_with_an_error() -> None:
    async with through() as (socket, _):
        await socket.send("abort")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1011


async def test_subprotocols_are_agreed_on_between_both_ends() -> None:
    async with upstream(subprotocols=names("b", "c")) as (url, upper), proxied(Upstream(name="up", url=url)) as gate:
        async with connect(f"{gate}/v1/realtime", proxy=None, subprotocols=names("a", "b")) as socket:
            assert socket.subprotocol == "b"
        assert upper.headers["sec-websocket-protocol"] == "a,b"


@pytest.mark.parametrize("own_key", ["upstream-key", None])
async def test_keys_go_where_those_of_requests_go(own_key: str | None) -> None:
    words = names("realtime", "openai-insecure-api-key.theirs", f"openai-insecure-api-key.{SECRET}")
    path = f"/v1/realtime?key={SECRET}&model=m%2F1"
    headers = {"x-api-key": SECRET, "authorization": "Bearer theirs", "x-other": "1"}
    async with (
        upstream(subprotocols=names("realtime")) as (url, upper),
        proxied(Upstream(name="up", url=url, api_key=own_key)) as gate,
        connect(gate + path, proxy=None, subprotocols=words, additional_headers=headers),
    ):
        pass
    if own_key is None:
        assert upper.headers["authorization"] == "Bearer theirs"
        assert upper.headers["sec-websocket-protocol"] == "realtime,openai-insecure-api-key.theirs"
    else:
        assert upper.headers["authorization"] == "Bearer upstream-key"
        assert upper.headers["sec-websocket-protocol"] == "realtime"
    assert upper.path == "/v1/realtime?model=m%2F1"
    assert upper.headers["x-other"] == "1"
    assert SECRET not in str(upper.headers)


async def test_an_upstream_s_refusal_is_passed_on() -> None:
    def refuse(connection: ServerConnection, _request: Any) -> Any:
        return connection.respond(429, "slow down")

    async with upstream(process_request=refuse) as (url, _), proxied(Upstream(name="up", url=url)) as gate:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"{gate}/v1/realtime", proxy=None)
    assert caught.value.response.status_code == 429
    assert json.loads(caught.value.response.body or b"")["error"]["code"] == "upstream_refused"


async def test_an_upstream_that_is_not_there_is_said_so() -> None:
    async with proxied(Upstream(name="up", url="http://127.0.0.1:1")) as gate:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"{gate}/v1/realtime", proxy=None)
    assert caught.value.response.status_code == 502


async def test_sockets_count_as_calls() -> None:
    async with upstream() as (url, _):
        proxy = Proxy([Upstream(name="up", url=url)], max_connections=1)
        async with serving(proxy) as served:
            gate = "ws" + served.removeprefix("http")
            async with connect(f"{gate}/v1/realtime", proxy=None):
                assert proxy.busy == 1
                with pytest.raises(InvalidStatus) as caught:
                    await connect(f"{gate}/v1/realtime", proxy=None)
                assert caught.value.response.status_code == 503
            await eventually(lambda: proxy.busy == 0)


async def test_a_socket_in_which_nothing_passes_is_closed() -> None:
    async with (
        upstream() as (url, upper),
        proxied(Upstream(name="up", url=url), idle_timeout_s=0.3) as gate,
        connect(f"{gate}/v1/realtime", proxy=None) as socket,
    ):
        for _ in range(3):
            await asyncio.sleep(0.15)
            await socket.send("x")
            await socket.recv()
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1001
        await asyncio.wait_for(upper.closed.wait(), 5)


@pytest.mark.parametrize(
    ("path", "frame"),
    [
        ("/v1/realtime?model=b", None),
        ("/v1/responses", {"type": "response.create", "model": "b"}),
        ("/v1/x.BidiGenerateContent", {"setup": {"model": "b"}}),
    ],
)
async def test_the_model_decides_where_a_socket_goes(path: str, frame: Any) -> None:
    async with upstream() as (url_a, upper_a), upstream() as (url_b, upper_b):
        first = Upstream(name="a", url=url_a, models=("a",))
        async with proxied(first, Upstream(name="b", url=url_b, models=("b",))) as gate:
            async with connect(gate + path, proxy=None) as socket:
                await socket.send("x" if frame is None else json.dumps(frame))
                await socket.recv()
            if frame is not None:
                async with connect(gate + path, proxy=None) as socket:
                    await socket.send('{"model": "c"}')
                    with pytest.raises(ConnectionClosed):
                        await socket.recv()
                    assert socket.close_code == 1011
    assert (len(upper_a.sockets), len(upper_b.sockets)) == (0, 1)


@asynccontextmanager
async def metered(url: str, **options: Any) -> AsyncIterator[tuple[str, Ledger]]:
    """The whole of `askii serve`, in this process."""
    settings = load_settings(
        store="memory://",
        upstreams={"openai": {"url": url, "api_key": "upstream-key"}},
        keys=[{"id": "k", "sha256": hash_secret(SECRET), "tenant": "acme"}],
        **options,
    )
    prices = {"m": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=10, max_output_tokens=100, context_window=1000)}
    async with CostTracker(store="memory://", prices=prices) as tracker:
        book = Ledger(tracker, None)  # type: ignore[arg-type]
        async with serving(gateway(settings, tracker)) as served:
            yield served, book


async def test_the_official_client_is_metered_through_the_whole_gateway() -> None:
    async with upstream() as (url, upper), metered(url) as (served, book):
        async with (
            openai.AsyncOpenAI(api_key=SECRET, base_url=f"{served}/v1") as client,
            client.responses.connect() as connection,
        ):
            await connection.response.create(model="m", input="hi")
            events = []
            async for event in connection:
                events.append(event.type)
                if event.type == "response.completed":
                    break
        assert events == ["response.created", "response.completed"]
        record = await book.record()
    assert (record.tenant, record.cost_nano_usd, record.status) == ("acme", 37_000, 101)
    assert upper.headers["authorization"] == "Bearer upstream-key"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime?model=m", "/v1/anything"])
async def test_strangers_get_no_socket_with_the_upstream_s_key(path: str) -> None:
    async with upstream() as (url, upper), metered(url) as (served, _):
        with pytest.raises(InvalidStatus) as caught:
            await connect("ws" + served.removeprefix("http") + path, proxy=None)
    assert caught.value.response.status_code in (401, 403)
    assert upper.sockets == []
