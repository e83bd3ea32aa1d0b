"""Clients that leave, before, during and after, and clients that hold a call open."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from askii_middleware.gateway import Proxy, Upstream

from .serving import CHUNKED, GET, Stuck, connect, eventually, proxied, raw_upstream, serving

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send


@pytest.mark.parametrize("first", [b"", CHUNKED, CHUNKED + b"5\r\nhello\r\n"])
async def test_a_client_that_leaves_ends_its_call_upstream_within_a_moment(first: bytes) -> None:
    upstream = Stuck(first)
    async with raw_upstream(upstream) as up, proxied(up) as (url, proxy):
        reader, writer = await connect(url)
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        await upstream.reached.wait()
        if first:
            await reader.readuntil(b"\r\n\r\n")
        assert proxy.busy == 1
        writer.close()
        await asyncio.wait_for(upstream.left.wait(), 0.5)
        await eventually(lambda: proxy.busy == 0, 0.5)


async def test_a_client_that_leaves_late_is_noticed_just_as_fast() -> None:
    upstream = Stuck(CHUNKED)
    async with raw_upstream(upstream) as up, proxied(up) as (url, proxy):
        _, writer = await connect(url)
        writer.write(GET)
        await upstream.reached.wait()
        await asyncio.sleep(0.15)
        writer.close()
        await asyncio.wait_for(upstream.left.wait(), 0.5)
        await eventually(lambda: proxy.busy == 0, 0.5)


async def test_a_client_that_took_long_to_send_is_watched_once_it_has_sent_all() -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up, proxied(up) as (url, proxy):
        _, writer = await connect(url)
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{")
        await upstream.reached.wait()
        await asyncio.sleep(0.1)
        writer.write(b"}")
        await eventually(lambda: upstream.received.endswith(b"{}"))
        writer.close()
        await asyncio.wait_for(upstream.left.wait(), 0.5)
        await eventually(lambda: proxy.busy == 0, 0.5)


@pytest.mark.parametrize("first", [b"", CHUNKED])
async def test_leaving_is_no_error_for_whoever_stands_in_front(first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    upstream, outcome = Stuck(first), asyncio.Event()
    async with raw_upstream(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up)])

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            await proxy(scope, receive, send)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)  # a settlement could run here
            if scope["type"] == "http":
                outcome.set()

        with caplog.at_level(logging.WARNING):
            async with serving(watched) as url:
                _, writer = await connect(url)
                writer.write(GET)
                await upstream.reached.wait()
                writer.close()
                await asyncio.wait_for(outcome.wait(), 1)
    assert caplog.records == []


@pytest.mark.parametrize("framing", [b"content-length: 9999", b"transfer-encoding: chunked"])
async def test_half_a_request_never_looks_like_a_whole_one_upstream(framing: bytes) -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up, proxied(up) as (url, proxy):
        _, writer = await connect(url)
        body = b"3\r\n{}}\r\n" if b"chunked" in framing else b"{}}"
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n" + body)
        await eventually(lambda: b"{}}" in upstream.received)
        writer.close()
        await asyncio.wait_for(upstream.left.wait(), 1)
        await eventually(lambda: proxy.busy == 0)
    assert framing in upstream.received.lower()
    assert not upstream.received.endswith(b"0\r\n\r\n")


async def test_a_client_that_leaves_before_its_body_is_whole_reaches_no_upstream_that_depends_on_it() -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up, models=("gpt-*",))])
        async with serving(proxy) as url:
            _, writer = await connect(url)
            writer.write(b'POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"model":"gpt-4o"')
            await eventually(lambda: proxy.busy == 1)
            writer.close()
            await eventually(lambda: proxy.busy == 0)
    assert not upstream.reached.is_set()


@pytest.mark.parametrize("models", [(), ("gpt-*",)])
async def test_a_client_that_never_finishes_its_request_does_not_keep_its_place_for_ever(
    models: tuple[str, ...],
) -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up, models=models)], first_byte_timeout_s=0.1)
        async with serving(proxy) as url:
            for sent in (b"", b"{"):
                reader, writer = await connect(url)
                writer.write(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n" + sent)
                answer = await asyncio.wait_for(reader.readuntil(b"}}"), 2)
                writer.close()
                assert answer.split()[1] in {b"408", b"504"}
                assert proxy.busy == 0


async def test_a_client_that_stops_reading_does_not_keep_its_place_for_ever() -> None:
    endless = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        try:
            while True:
                writer.write(endless)
                await writer.drain()
        except ConnectionError:
            pass

    async with raw_upstream(handler) as up, proxied(up, idle_timeout_s=0.2) as (url, proxy):
        reader, writer = await connect(url)
        writer.write(GET)
        await eventually(lambda: proxy.busy == 1)
        await eventually(lambda: proxy.busy == 0, 5)
        writer.transport.abort()
        del reader


async def test_a_cancelled_server_task_stays_cancelled() -> None:
    upstream = Stuck()
    async with raw_upstream(upstream) as up:
        proxy = Proxy([Upstream(name="up", url=up)])
        gone = asyncio.Event()

        async def receive() -> Message:
            if not upstream.reached.is_set():
                return {"type": "http.request", "body": b"{}"}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/x", "raw_path": b"/v1/x", "headers": []}
        task = asyncio.create_task(proxy(scope, receive, send))
        await upstream.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(upstream.left.wait(), 1)
        assert proxy.busy == 0
        await proxy.aclose()
