"""`metrics_port`, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from askii_middleware import metrics_listener
from askii_middleware.errors import ConfigurationError, StoreError
from askii_middleware.metrics_listener import MAX_HEAD_BYTES, MetricsListener, with_listener
from askii_middleware.tracker import CostTracker

from .support.service import opened


@contextlib.asynccontextmanager
async def listening(tracker: CostTracker, token: str | None = None) -> AsyncIterator[MetricsListener]:
    listener = MetricsListener(tracker, "127.0.0.1", 0, token=token)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop()


async def said(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_it_serves_metrics_in_the_format_that_was_asked_for(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker, listening(tracker) as listener, httpx.AsyncClient() as client:
        await tracker.record_usage("acme", "big", input_tokens=10)
        url = f"http://127.0.0.1:{listener.port}/metrics"
        plain = await client.get(url)
        assert plain.status_code == 200
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'llm_tokens_total{direction="input",model="big",tenant_id="acme"} 10.0' in plain.text
        asked = await client.get(url, headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
        assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert asked.text.endswith("# EOF\n")
        head = await client.head(url)
        assert (head.status_code, head.text) == (200, "")


async def test_a_token_guards_it(tmp_path: Path) -> None:
    async with (
        opened("memory", tmp_path) as tracker,
        listening(tracker, "s3cret") as listener,
        httpx.AsyncClient() as client,
    ):
        url = f"http://127.0.0.1:{listener.port}/"
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            answer = await client.get(url, headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get(url, headers={"authorization": "Bearer s3cret"})).status_code == 200


async def test_what_is_no_request_for_metrics_is_refused_or_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_listener, "HEAD_S", 0.2)
    async with opened("memory", tmp_path) as tracker, listening(tracker) as listener:
        port = listener.port
        assert (await said(port, b"POST / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await said(port, b"GET /\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await said(port, b"\xff\xfe\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert await said(port, b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n") == b""
        assert await said(port, b"GET / HTTP/1.1\r\n") == b""  # and waits
        assert (await said(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_scrape_that_fails_says_so_and_the_next_one_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("memory", tmp_path) as tracker, listening(tracker) as listener:
        with monkeypatch.context() as patch:
            patch.setattr(tracker.metrics, "encoded", lambda _accept: 1 // 0)
            assert (await said(listener.port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert "ZeroDivisionError" in caplog.text
        assert (await said(listener.port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_several_listeners_share_a_port_where_they_are_told_to(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            listeners = [MetricsListener(tracker, "127.0.0.1", port, shared=True) for _ in range(2)]
            for listener in listeners:
                await listener.start()
        alone = MetricsListener(tracker, "127.0.0.1", port)
        with pytest.raises(ConfigurationError, match=f"metrics_port: cannot listen on 127.0.0.1 port {port}: "):
            await alone.start()
        await listeners[0].stop()
        assert (await said(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await listeners[1].stop()


class Server:
    """A server's side of a lifespan."""

    def __init__(self, listener: MetricsListener) -> None:
        self.to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.from_app: asyncio.Queue[Any] = asyncio.Queue()
        app = with_listener(self._app, listener)
        self.running = asyncio.ensure_future(app({"type": "lifespan"}, self.to_app.get, self.from_app.put))

    @staticmethod
    async def _app(_scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{kind}"
            await send({"type": f"lifespan.{kind}.complete"})

    async def tell(self, kind: str) -> Any:
        await self.to_app.put({"type": f"lifespan.{kind}"})
        return await self.from_app.get()


async def test_its_life_is_the_applications_and_a_port_that_is_taken_fails_the_start(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as tracker:
        listener = MetricsListener(tracker, "127.0.0.1", 0)
        server = Server(listener)
        assert await server.tell("startup") == {"type": "lifespan.startup.complete"}
        port = listener.port
        assert (await said(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        second = Server(MetricsListener(tracker, "127.0.0.1", port))
        failed = await second.tell("startup")
        assert failed["type"] == "lifespan.startup.failed"
        assert failed["message"].startswith(f"metrics_port: cannot listen on 127.0.0.1 port {port}: ")
        for one in (server, second):
            assert await one.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
            await one.running
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_with_the_ledger_away_the_counters_and_the_journal_are_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("sqlite", tmp_path) as tracker, listening(tracker) as listener:
        await tracker.record_usage("acme", "big", input_tokens=10)

        async def away(*_: object) -> None:
            raise StoreError("away")

        monkeypatch.setattr(tracker.store, "status_of", away)
        body = (await said(listener.port, b"GET / HTTP/1.1\r\n\r\n")).decode()
        for line in (
            "askii_store_up 0.0",
            "askii_journal_entries 0.0",
            'askii_store_errors_total{operation="scrape"} 1.0',
            'llm_tokens_total{direction="input",model="big",tenant_id="acme"} 10.0',
        ):
            assert f"\n{line}\n" in body
        assert "budget_remaining_usd" not in body
