"""Full pools, dead and silent upstreams, and big bodies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from askii_middleware.demo.provider import provider_app
from askii_middleware.errors import ConfigurationError
from askii_middleware.gateway import BrokenAnswerError, Proxy, Upstream

from .serving import CHUNKED, GET, Stuck, answering, connect, eventually, http_client, proxied, raw_upstream, serving

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

MEGABYTE = 1 << 20


async def test_a_full_pool_refuses_at_once_and_recovers() -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up, proxied(up, max_connections=2) as (url, proxy), http_client() as client:
        waiting = [await connect(url) for _ in range(2)]
        for _, writer in waiting:
            writer.write(GET)
        await eventually(lambda: proxy.busy == 2)
        async with asyncio.timeout(1):
            refused = await client.post(f"{url}/v1/chat/completions", json={})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "upstream_error"
        assert refused.json()["error"]["code"] == "gateway_busy"
        for _, writer in waiting:
            writer.close()
        await eventually(lambda: proxy.busy == 0)
        waiting = [await connect(url)]
        waiting[0][1].write(GET)
        await eventually(lambda: proxy.busy == 1)
        waiting[0][1].close()


async def test_an_upstream_that_is_not_there_is_a_502_that_frees_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async with raw_upstream(Stuck()) as up:
        pass
    async with proxied(f"{up}/v1", max_connections=1) as (url, proxy), http_client() as client:
        for _ in range(2):
            answer = await client.post(f"{url}/v1/chat/completions", json={"model": "m"})
            assert answer.status_code == 502
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("upstream_error", None, "upstream_unreachable")
            assert "'up'" in error["message"]
            assert "127.0.0.1" not in error["message"]
        assert proxy.busy == 0
    assert "ClientConnectorError" in caplog.text


async def test_an_upstream_that_hangs_up_without_an_answer_is_a_502_and_the_post_is_not_repeated() -> None:
    requests = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1

    async with raw_upstream(handler) as up, proxied(up) as (url, _), http_client() as client:
        answer = await client.post(f"{url}/v1/x", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert requests == 1


async def test_what_an_upstream_does_wrong_is_logged_without_the_clients_query(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        raw_upstream(answering(b"HTTP/1.1 what?\r\n\r\n")) as up,
        proxied(up) as (url, _),
        http_client() as client,
    ):
        assert (await client.get(f"{url}/v1/x?key=secret")).status_code == 502
    assert "ClientResponseError" in caplog.text
    assert "secret" not in caplog.text


async def test_an_upstream_that_does_not_begin_in_time_is_a_504_and_is_let_go() -> None:
    upstream = Stuck()
    async with (
        raw_upstream(upstream) as up,
        proxied(up, first_byte_timeout_s=0.1) as (url, proxy),
        http_client() as client,
    ):
        answer = await client.get(f"{url}/v1/x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        await asyncio.wait_for(upstream.left.wait(), 1)
        assert proxy.busy == 0


async def test_a_connection_that_does_not_come_up_in_time_is_a_504() -> None:
    class Nowhere(aiohttp.abc.AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> list[Any]:
            await asyncio.Event().wait()
            return []

        async def close(self) -> None:
            pass

    def client_factory() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Nowhere()), timeout=aiohttp.ClientTimeout(connect=0.05)
        )

    async with proxied("http://nowhere.test", client_factory=client_factory) as (url, _), http_client() as client:
        answer = await client.get(f"{url}/v1/x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


@pytest.mark.parametrize(
    ("first", "received"),
    [
        (CHUNKED + b"5\r\nhello\r\n", b"5\r\nhello\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", b"hello"),
    ],
)
async def test_an_upstream_that_falls_silent_ends_the_answer_uncleanly(first: bytes, received: bytes) -> None:
    upstream = Stuck(first)
    async with raw_upstream(upstream) as up, proxied(up, idle_timeout_s=0.1) as (url, proxy):
        reader, writer = await connect(url)
        writer.write(GET)
        answer = await asyncio.wait_for(reader.read(), 2)
        writer.close()
        await asyncio.wait_for(upstream.left.wait(), 1)
        assert proxy.busy == 0
    assert answer.partition(b"\r\n\r\n")[2] == received


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
@pytest.mark.parametrize(
    ("head", "part", "seen"),
    [
        (CHUNKED, b"5\r\nhello\r\n", b"5\r\nhello\r\n"),
        (CHUNKED, b"5\r\nhello\r\n9\r\nbroken", b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", b"hello", b"hello"),
    ],
)
async def test_an_upstream_that_dies_mid_answer_gives_the_client_what_came_and_no_clean_end(
    head: bytes, part: bytes, seen: bytes, pause_s: float
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + part)
        await asyncio.sleep(pause_s)

    async with raw_upstream(handler) as up, proxied(up) as (url, proxy):
        reader, writer = await connect(url)
        writer.write(GET)
        answer = await asyncio.wait_for(reader.read(), 2)
        writer.close()
        assert proxy.busy == 0
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert seen in answer
    assert not answer.endswith(b"0\r\n\r\n")


async def test_what_arrived_while_the_client_was_slow_is_not_lost_when_the_upstream_dies() -> None:
    died = asyncio.Event()
    sent: list[Message] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await writer.drain()
        died.set()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.start":
            await died.wait()
            await asyncio.sleep(0.02)  # the reset reaches the gateway while it is busy here

    async with raw_upstream(handler) as up:
        proxy = Proxy([Upstream(name="up", url=up)])
        scope = {"type": "http", "method": "POST", "path": "/v1/x", "raw_path": b"/v1/x", "headers": []}
        with pytest.raises(BrokenAnswerError, match="'up' broke off"):
            await proxy(scope, receive, send)
        await proxy.aclose()
    assert sent[1:] == [{"type": "http.response.body", "body": b"hello", "more_body": True}]


async def test_the_application_raises_when_an_answer_breaks_off_so_that_a_middleware_sees_it() -> None:
    sent: list[Message] = []
    raised: list[BaseException] = []

    async with serving(provider_app()) as up:
        proxy = Proxy([Upstream(name="up", url=up)])

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            async def note(message: Message) -> None:
                sent.append(message)
                await send(message)

            try:
                await proxy(scope, receive, note if scope["type"] == "http" else send)
            except BrokenAnswerError as error:
                raised.append(error)
                raise

        async with serving(watched) as url, http_client() as client:
            body = {"model": "die-mid-stream", "messages": [], "stream": True}
            with pytest.raises(Exception, match="peer closed connection"):
                await client.post(f"{url}/v1/chat/completions", json=body)
    assert [type(error) for error in raised] == [BrokenAnswerError]
    assert all(message.get("more_body", True) for message in sent)
    assert b"Simulated" in b"".join(message.get("body", b"") for message in sent)


async def test_twenty_megabytes_each_way_pass_unchanged_in_flat_memory() -> None:
    """Upstream and client both begin to read late: whatever the gateway would pile up, it piles up here."""
    piece = hashlib.sha256(b"piece").digest() * (65536 // 32)
    pieces = 20 * MEGABYTE // len(piece)
    digest = hashlib.sha256(piece * pieces).hexdigest()
    received = hashlib.sha256()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(0.2)
        more = True
        while more:
            message = await receive()
            received.update(message["body"])
            more = message["more_body"]
        length = (b"content-length", b"%d" % (pieces * len(piece)))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    async with serving(app) as up, proxied(up) as (url, _), aiohttp.ClientSession(read_bufsize=65536) as client:
        tracemalloc.start()
        try:
            async with client.post(f"{url}/v1/x", data=body()) as answer:
                await asyncio.sleep(0.2)
                sent_back = hashlib.sha256()
                async for part in answer.content.iter_any():
                    sent_back.update(part)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert received.hexdigest() == digest
    assert sent_back.hexdigest() == digest
    assert peak < 6 * MEGABYTE


async def test_a_body_read_by_the_middleware_in_front_may_be_large_too() -> None:
    body = b"x" * (3 * MEGABYTE)
    got: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        got.extend([size, int(dict(scope["headers"])[b"content-length"])])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(app) as up:
        proxy = Proxy([Upstream(name="up", url=up)])

        async def replay(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await proxy(scope, receive, send)
            while (await receive())["more_body"]:
                pass
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def again() -> Message:
                return next(messages, None) or await receive()

            return await proxy(scope, again, send)

        async with serving(replay) as url, http_client() as client:
            answer = await client.post(f"{url}/v1/x", content=body)
    assert answer.text == "ok"
    assert got == [len(body), len(body)]


async def test_an_upstream_that_answers_before_it_read_the_whole_body_is_heard() -> None:
    refusal = json.dumps({"error": "too large"}).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await receive()
        headers = [(b"content-length", b"%d" % len(refusal))]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": refusal})

    async with serving(app) as up, proxied(up) as (url, proxy):
        reader, writer = await connect(url)
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n{")
        answer = await asyncio.wait_for(reader.readuntil(refusal), 2)
        writer.close()
        await eventually(lambda: proxy.busy == 0)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("options", [{"max_connections": 0}, {"idle_timeout_s": 0}, {"connect_timeout_s": -1}])
def test_limits_that_would_let_nothing_through_fail_at_start(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Proxy([Upstream(name="up", url="https://host")], **options)  # type: ignore[arg-type]
