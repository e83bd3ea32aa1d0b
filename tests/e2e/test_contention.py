"""Several processes on one SQLite file spend a budget together, and never more than it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec
import pytest

from tests.support.servers import serving

from .books import Books, opened
from .clients import LOOPBACK
from .gateways import Gateway, launch, secret_of, store_url, write_config

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

USED, ALLOWED = 37, 100
ROOM = 10
CALL = {"model": "by-output", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": ALLOWED}
HEADERS = {"authorization": f"Bearer {secret_of('acme')}"}
"""A hold is 100 tokens at 10,000 nano-USD: the budget has room for ten at once."""
BUDGET = {"acme": "0.01"}


class Waiting:
    """A provider that answers nobody until it may answer all."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        while (await receive()).get("more_body"):
            pass
        self.calls += 1
        await self.may_answer.wait()
        message = {"role": "assistant", "content": "Hi"}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "by-output",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": USED, "total_tokens": 5 + USED},
        }
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": msgspec.json.encode(answer)})


@contextlib.asynccontextmanager
async def gateways(folder: Path, count: int, *options: str) -> AsyncIterator[list[tuple[str, Gateway]]]:
    """So many gateway processes with one configuration, started at once."""
    started = [launch(folder, *options) for _ in range(count)]
    try:
        urls = await asyncio.gather(*(asyncio.to_thread(gateway.wait_until_ready) for gateway in started))
        yield list(zip(urls, started, strict=True))
    finally:
        for gateway in started:
            gateway.kill()


async def compete(urls: list[str], count: int, provider: Waiting) -> tuple[list[httpx.Response], list[httpx.Response]]:
    """So many calls at once, held open until every one is answered or waits; those admitted and those refused."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(**LOOPBACK, limits=limits) as client:
        calls = [
            asyncio.create_task(client.post(f"{urls[i % len(urls)]}/v1/chat/completions", json=CALL, headers=HEADERS))
            for i in range(count)
        ]
        async with asyncio.timeout(30):
            while sum(call.done() for call in calls) + provider.calls < count:
                await asyncio.sleep(0.01)
        refused = [call.result() for call in calls if call.done()]
        assert len(refused) == count - provider.calls
        provider.may_answer.set()
        answers = await asyncio.gather(*calls)
    return [answer for answer in answers if answer not in refused], refused


async def account(books: Books, admitted: list[httpx.Response]) -> None:
    """Each admitted call is charged once and exactly, and nothing else is."""
    records = [await books.record(answer.headers["x-askii-call-id"]) for answer in admitted]
    await books.settle_down()
    assert [record.cost_nano_usd for record in records] == [USED * 10_000] * ROOM
    assert await books.check() == ROOM * USED * 10_000


async def test_of_200_calls_in_4_gateways_with_room_for_10_exactly_10_are_admitted(tmp_path: Path) -> None:
    provider = Waiting()
    async with serving(provider, lifespan="off") as up:
        write_config(tmp_path, {"up": (f"{up}/v1", ["*"])}, budgets=BUDGET)
        async with gateways(tmp_path, 4) as running, opened(store_url(tmp_path)) as books:
            admitted, refused = await compete([url for url, _ in running], 200, provider)
            assert len(admitted) == provider.calls == ROOM
            assert {answer.status_code for answer in admitted} == {200}
            assert len(refused) == 190
            assert {answer.status_code for answer in refused} == {429}
            assert {answer.json()["error"]["code"] for answer in refused} == {"budget_held"}
            await account(books, admitted)


def workers_of(gateway: Gateway) -> list[int]:
    """The process ids of its workers: its children besides Python's own resource tracker."""
    pid = gateway.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, line in lines.items() if b"spawn_main" in line]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found through /proc")
async def test_two_workers_share_a_budget_and_the_death_of_one_ends_nothing(tmp_path: Path) -> None:
    provider = Waiting()
    async with serving(provider, lifespan="off") as up:
        write_config(tmp_path, {"up": (f"{up}/v1", ["*"])}, budgets=BUDGET)
        async with gateways(tmp_path, 1, "--workers", "2") as running, opened(store_url(tmp_path)) as books:
            ((url, gateway),) = running
            workers = workers_of(gateway)
            assert len(workers) == 2
            admitted, refused = await compete([url], 60, provider)
            assert (len(admitted), len(refused)) == (ROOM, 50)
            await account(books, admitted)
            os.kill(workers[0], signal.SIGKILL)
            async with httpx.AsyncClient(**LOOPBACK) as client:
                again = await client.post(f"{url}/v1/chat/completions", json=CALL, headers=HEADERS)
            assert again.status_code == 200
            async with asyncio.timeout(15):
                while len(set(workers_of(gateway)) - {workers[0]}) < 2:
                    await asyncio.sleep(0.02)
            record = await books.record(again.headers["x-askii-call-id"])
            assert record.cost_nano_usd == USED * 10_000
            assert await asyncio.to_thread(gateway.stop) == 0
