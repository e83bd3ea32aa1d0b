"""The stand-in that billing is proved against keeps Lago's rules, whatever happens to it."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from askii_middleware.demo.lago import lago_app
from askii_middleware.sinks.lago import LagoSink
from tests.support.lago_books import Books
from tests.support.lago_server import KEY, Faults, LagoServer

from .support import record

ROOT = Path(__file__).parents[2]
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
async def lago(tmp_path: Path) -> AsyncIterator[LagoServer]:
    async with LagoServer(str(tmp_path / "lago.db"), subscriptions=["acme", "globex"]) as server:
        yield server


def event(number: int = 1, **changes: Any) -> dict[str, Any]:
    base = {
        "transaction_id": f"t{number}",
        "external_subscription_id": "acme",
        "code": "askii_coins",
        "timestamp": "1767225600.123",
        "properties": {"askii_coins": "5"},
    }
    return {**base, **changes}


REQUESTS: list[Any] = [
    {"events": [event(1)]},
    {"events": [event(1)]},
    {"events": [event(0), event(1), event(2), event(3, timestamp="2026-01-01T00:00:00Z")]},
    {"events": [event(1, external_subscription_id="globex")]},
    {"events": [event(4), event(4)]},
    {"events": [event(5), event(6, properties={"askii_coins": "5", "model": "a\0"})]},
    {"events": [event(n) for n in range(100, 201)]},
    {"events": [event(n) for n in range(100, 200)]},
    {"events": [event(7, transaction_id=None, code=""), "text", event(8, properties=[1])]},
    {"events": [event(9, external_subscription_id="unknown"), event(10, code="other")]},
    {"events": []},
    {"event": event(11)},
    [],
]


async def test_it_answers_as_the_demos_stand_in_which_was_written_apart_from_it(lago: LagoServer) -> None:
    demo = httpx.AsyncClient(transport=httpx.ASGITransport(lago_app(api_key=KEY)), base_url="http://lago/api/v1")
    async with demo, httpx.AsyncClient(base_url=lago.url) as here:
        for request in REQUESTS:
            one = await demo.post("/events/batch", json=request, headers=HEADERS)
            two = await here.post("/events/batch", json=request, headers=HEADERS)
            assert two.status_code == one.status_code, request
            if one.status_code in (200, 422):
                assert two.json() == one.json()
        for key in ("", "Bearer x"):
            answer = await here.post("/events/batch", json=REQUESTS[0], headers={"authorization": key})
            assert answer.status_code == 401
        listed = (await here.get("/events", params={"per_page": 100}, headers=HEADERS)).json()
        assert listed["meta"]["total_count"] == lago.books.count == 104


async def test_it_shows_metrics_and_subscriptions_as_the_reader_of_lagos_api_wants_them(lago: LagoServer) -> None:
    sink = LagoSink(lago.url, KEY)
    assert {finding.result for finding in await sink.check({"acme": "acme", "globex": "globex"})} == {"ok"}
    api = sink.api()
    assert await api.metric("other") is None
    assert await api.subscription("unknown") is None
    await sink.send([record(n, coins=n) for n in range(100)])
    found = [each.transaction_id async for each in api.events("acme")]
    assert sorted(found) == [f"call-{n:05d}" for n in range(100)]
    await sink.close()


@pytest.mark.parametrize(
    ("fault", "status", "taken"),
    [
        ("500", 500, 0),
        ("502 after", 502, 1),
        ("429", 429, 0),
        ("403", 403, 0),
        ("reset", None, 0),
        ("reset after", None, 1),
        ("half", None, 0),
        ("half after", None, 1),
        ("hang", None, 0),
        ("hang after", None, 1),
    ],
)
async def test_faults_take_the_events_first_or_never(
    lago: LagoServer, fault: str, status: int | None, taken: int
) -> None:
    lago.faults.script = [fault]
    async with httpx.AsyncClient(base_url=lago.url, timeout=0.2) as client:
        try:
            answer = await client.post("/events/batch", json={"events": [event()]}, headers=HEADERS)
        except httpx.TransportError:
            assert status is None
        else:
            assert answer.status_code == status
            assert "html" in answer.headers["content-type"] or status != 502
        assert lago.books.count == taken
        again = await client.post("/events/batch", json={"events": [event()]}, headers=HEADERS)
        assert again.status_code == (422 if taken else 200)


async def test_killed_as_a_process_it_goes_on_with_all_that_it_had_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "lago.db")
    faults = msgspec.json.encode(Faults(poison=["t99"])).decode()
    command = (sys.executable, "-m", "tests.support.lago_server", path, faults)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    for life in range(3):
        async with httpx.AsyncClient(base_url=url, headers=HEADERS) as client:
            assert (await client.post("/events/batch", json={"events": [event(99)]})).status_code == 500
            for n in range(life + 1):
                answer = await client.post("/events/batch", json={"events": [event(n)]})
                assert answer.status_code == (200 if n == life else 422)
        process.stdin.write(b"\n")
        assert await process.stdout.readline() == b"dead\n"
    process.stdin.close()
    await process.wait()
    books = Books(path, clock=time.time)
    assert [each.transaction_id for each in books.events()] == ["t0", "t1", "t2"]
    assert books.sent()["acme", "t0"] == [3]
    books.close()
