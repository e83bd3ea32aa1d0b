"""A real nginx between us and the stand-in for Lago: its own pages for 413, 429 and 502."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from askii_middleware.sinks.lago import LagoSink
from askii_middleware.stores.base import Store
from askii_middleware.stores.memory import MemoryStore
from tests.sinks.support import FakeClock, drain, put, record, unused_port, worker_for
from tests.support.lago_server import KEY, LagoServer, bound

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    limit_req_zone $server_port zone=all:1m rate=30r/s;
    limit_req_status 429;
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 4k;
        location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; }}
        location /limited/ {{ limit_req zone=all; proxy_pass http://127.0.0.1:{upstream}/; proxy_http_version 1.1; }}
    }}
}}
"""


@asynccontextmanager
async def nginx(lago: LagoServer, folder: Path) -> AsyncIterator[str]:
    """The URL of a proxy before a stand-in, without a path."""
    port = unused_port()
    user = "user root root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, upstream=lago.port, user=user))
    assert NGINX is not None
    arguments = ("-p", str(folder), "-e", f"{folder}/error.log", "-c", str(config))
    process = await asyncio.create_subprocess_exec(NGINX, *arguments)
    try:
        async with asyncio.timeout(10):
            while not await _listens(port):
                assert process.returncode is None, (folder / "error.log").read_text()
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()


async def test_a_proxys_413_halves_the_batch_and_only_what_is_too_large_alone_is_put_aside(
    store: Store, clock: FakeClock, tmp_path: Path
) -> None:
    async with LagoServer(str(tmp_path / "lago.db")) as lago, nginx(lago, tmp_path) as url:
        sink = LagoSink(f"{url}/api/v1", KEY)
        worker = await worker_for(store, sink, clock)
        large = record(50, model="m" * 5000)
        await put(store, *(large if n == 50 else record(n, coins=n) for n in range(100)))
        assert await drain(worker, clock) == []  # nothing waits for it
        await sink.close()
        assert lago.books.count == 99
        assert lago.books.billed() == {"acme": sum(range(100)) - 50}
        (letter,) = await store.dead_letters("lago")
        assert letter.call_id == large.call_id
        assert "413" in letter.reason
        assert "nginx" in letter.reason


async def test_a_proxys_429_is_waited_for_and_nothing_is_lost(store: Store, clock: FakeClock, tmp_path: Path) -> None:
    async with LagoServer(str(tmp_path / "lago.db")) as lago, nginx(lago, tmp_path) as url:
        sink = LagoSink(f"{url}/limited/api/v1", KEY, max_batch=10)
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n, coins=n) for n in range(100)))
        pauses = 0
        for _ in range(500):
            wait_s = await worker.round()
            if worker._drained:
                break
            if wait_s:
                pauses += 1
                clock.advance(wait_s)
                await asyncio.sleep(0.04)
        await sink.close()
        assert pauses > 1, "nginx never limited us: the test shows nothing"
        assert [event.transaction_id for event in lago.books.events()] == [f"call-{n:05d}" for n in range(100)]
        assert await store.dead_letters("lago") == []


async def test_a_proxys_502_is_an_outage_and_ends_with_it(store: Store, clock: FakeClock, tmp_path: Path) -> None:
    path = str(tmp_path / "lago.db")
    first = LagoServer(path)
    async with nginx(first, tmp_path) as url:
        sink = LagoSink(f"{url}/api/v1", KEY, max_batch=10)
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n, coins=n) for n in range(30)))
        async with first:
            await worker.round()
            assert first.books.count == 10
        waited_s = await worker.round()  # nobody is behind the proxy
        assert waited_s > 0
        assert await store.pending() == {"lago": 20}
        async with LagoServer(path, listener=bound(first.port)) as second:
            clock.advance(waited_s)
            await drain(worker, clock)
            assert second.books.count == 30
            assert second.books.billed() == {"acme": sum(range(30))}
        await sink.close()
    assert await store.dead_letters("lago") == []
