"""Reading from Lago, against the stand-in and against answers that are none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.sinks.http import Connection
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.lago_api import LagoApi, LagoApiError, Metric, StoredEvent, Subscription
from tests.support.lago_server import KEY, LagoServer

from .support import record, serving, unused_port

MISSING = json.dumps({"status": 404, "error": "Not Found", "code": "subscription_not_found"}).encode()


@asynccontextmanager
async def lago(path: Path, **options: Any) -> AsyncIterator[tuple[LagoServer, LagoSink]]:
    async with LagoServer(str(path / "lago.db"), **options) as server:
        sink = LagoSink(server.url, KEY)
        yield server, sink
        await sink.close()


async def read(api: LagoApi, *asked: Any, **more: Any) -> list[StoredEvent]:
    return [event async for event in api.events(*asked, **more)]


async def test_a_metric_and_a_subscription_are_found_or_not(tmp_path: Path) -> None:
    odd = "a/b ?#%2F ü"
    async with lago(tmp_path, subscriptions=["acme", odd, "..", "a.b"]) as (_, sink):
        api = sink.api()
        assert await api.metric("askii_coins") == Metric("askii_coins", "sum_agg", "askii_coins")
        assert await api.metric("other") is None
        assert await api.subscription("acme") == Subscription("acme", "acme", "plan", "active")
        for known in (odd, "..", "a.b"):
            found = await api.subscription(known)
            assert found is not None
            assert found.external_id == known
        for unknown in ("globex", "", " ", "a\0", "acme/x", "."):
            assert await api.subscription(unknown) is None


async def test_events_come_from_all_pages_by_subscription_code_and_time(tmp_path: Path) -> None:
    async with lago(tmp_path) as (_, sink):
        api = sink.api()
        await sink.send(
            [record(n, coins=n, timestamp=f"2026-01-01T00:{n // 60:02d}:{n % 60:02d}.5Z") for n in range(250)]
        )
        await sink.send([record(900, subscription="globex")])
        events = await read(api, "acme", "askii_coins")
        assert len(events) == len({event.transaction_id for event in events}) == 250
        assert sum(int(event.properties["askii_coins"]) for event in events) == sum(range(250))
        assert [event.transaction_id for event in await read(api, "globex")] == ["call-00900"]
        assert len(await read(api)) == 251
        assert await read(api, "acme", "another") == []
        at_s = 1_767_225_600.5
        found = await read(api, "acme", from_s=at_s + 10, to_s=at_s + 19)
        assert sorted(event.transaction_id for event in found) == [f"call-{n:05d}" for n in range(10, 20)]


async def test_an_event_that_moves_to_the_next_page_is_told_once() -> None:
    pages = [([3, 2], 2), ([2, 1], 3), ([], None)]

    def answer(path: str, query: str) -> bytes:
        events, following = pages[int(query.rpartition("page=")[2]) - 1]
        shown = [{"transaction_id": f"t{n}", "external_subscription_id": "acme"} for n in events]
        return json.dumps({"events": shown, "meta": {"next_page": following}}).encode()

    async with answering(lambda path, query: (200, {}, answer(path, query))) as api:
        assert [event.transaction_id for event in await read(api)] == ["t3", "t2", "t1"]


Answering = Callable[[str, str], tuple[int, dict[str, str], bytes]]


def _always(body: bytes) -> Answering:
    return lambda _path, _query: (200, {}, body)


@asynccontextmanager
async def answering(
    answer: Answering, *, sleep: Callable[[float], Awaitable[None]] | None = None, **options: Any
) -> AsyncIterator[LagoApi]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, headers, body = answer(scope["path"], scope["query_string"].decode())
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    async def at_once(_seconds: float) -> None:
        pass

    async with serving(app) as url:
        connection = Connection(url, "k", what="the key")
        yield LagoApi(connection, sleep=sleep or at_once, clock=lambda: 0.0, **options)
        await connection.close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "GET /subscriptions: HTTP 401: check the API key"),
        (403, b"{}", "the API key may not"),
        (404, b"<html>", "HTTP 404: check the URL"),
        (404, b'{"code":"subscriptions"}', "HTTP 404: check the URL"),
        (404, b'{"code":"not_allowed"}', "HTTP 404: check the URL"),
        (301, b"", "HTTP 301: check the URL"),
        (422, b'{"error_details":{"0":["x"]}}', "HTTP 422"),
        (200, b"<html>", "not Lago's JSON"),
        (200, b"[]", "not Lago's JSON"),
        (200, b"{}", "no subscription in the answer"),
        (200, b'{"subscription":[]}', "no subscription in the answer"),
        (204, b"", "HTTP 204"),
        (500, b"boom", "HTTP 500: boom"),
    ],
)
async def test_answers_that_are_none_are_errors_that_say_where_to_look(status: int, body: bytes, says: str) -> None:
    async with answering(lambda _path, _query: (status, {}, body)) as api:
        with pytest.raises(LagoApiError) as caught:
            await api.subscription("acme")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"events":{}}', b'{"events":[1]}', b'{"events":[[]]}', b"\0", b'{"events":null,"meta":{}}']
)
async def test_a_listing_that_is_none_is_an_error(body: bytes) -> None:
    async with answering(_always(body)) as api:
        with pytest.raises(LagoApiError, match="GET /events: "):
            await read(api)


async def test_a_recurring_metric_is_told_from_others() -> None:
    for recurring, expected in ((True, True), (False, False), (None, False)):
        body = json.dumps({"billable_metric": {"code": "c", "recurring": recurring}}).encode()
        async with answering(_always(body)) as api:
            assert await api.metric("c") == Metric("c", "", "", expected)


async def test_a_page_without_a_next_ends_a_listing_and_an_endless_one_is_an_error() -> None:
    event = {"transaction_id": "t", "external_subscription_id": "a", "properties": None}
    for meta in ({}, None, {"next_page": 1}, {"next_page": "2"}, {"next_page": None}):
        body = json.dumps({"events": [event], "meta": meta}).encode()
        async with answering(_always(body)) as api:
            assert len(await read(api)) == 1

    def endless(_path: str, query: str) -> tuple[int, dict[str, str], bytes]:
        page = int(query.rpartition("page=")[2])
        return 200, {}, json.dumps({"events": [event], "meta": {"next_page": page + 1}}).encode()

    async with answering(endless, max_pages=5) as api:
        with pytest.raises(LagoApiError, match="more than 5 pages; ask for a shorter time"):
            await read(api)


async def test_it_waits_as_lago_asks_and_tries_a_failure_again() -> None:
    answers = [(429, {"x-ratelimit-reset": "7"}, b""), (503, {"retry-after": "9999"}, b""), (500, {}, b"")]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with answering(lambda _path, _query: answers.pop(0) if answers else (404, {}, MISSING), sleep=sleep) as api:
        assert await api.subscription("acme") is None
    assert slept == [7.0, 30.0, 2.0]


async def test_without_an_answer_it_gives_up_after_four_tries() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    connection = Connection(f"http://127.0.0.1:{unused_port()}", "k-secret", what="the key")
    with pytest.raises(LagoApiError, match="GET /billable_metrics: ConnectError") as caught:
        await LagoApi(connection, sleep=sleep).metric("askii_coins")
    await connection.close()
    assert slept == [0.5, 1.0, 2.0]
    assert "k-secret" not in str(caught.value)
