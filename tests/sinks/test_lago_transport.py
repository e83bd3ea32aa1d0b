"""Beyond the points: URLs, connections, and answers that are none."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import httpx
import pytest

from askii_middleware.demo.lago import Fault
from askii_middleware.errors import SinkError
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Delivery
from askii_middleware.sinks.http import asked_wait_s
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.lago_answers import read_answer

from .support import API_KEY, record, running_lago, serving


@pytest.mark.parametrize(
    "url",
    ["", "lago.example.com", "ftp://lago.example.com", "https://h/api?x=1", "https://h/api#x", "http://[", "//h/p"],
)
def test_a_url_that_cannot_work_is_refused_at_construction(url: str) -> None:
    with pytest.raises(SinkError, match="Lago URL"):
        LagoSink(url, API_KEY)


def test_plain_http_beyond_this_machine_is_refused_unless_allowed() -> None:
    with pytest.raises(SinkError, match="must be https, or set allow_http"):
        LagoSink("http://lago.example.com/api/v1", API_KEY)
    LagoSink("http://lago.example.com/api/v1", API_KEY, allow_http=True)
    LagoSink("http://localhost:3000/api/v1", API_KEY)


async def test_the_connection_is_kept_open_between_batches() -> None:
    peers = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        peers.add(scope["client"])
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with serving(app) as url:
        sink = LagoSink(url, API_KEY)
        for n in range(5):
            assert (await sink.send([record(n)])).verdicts == (DELIVERED,)
        await sink.close()
    assert len(peers) == 1


async def test_a_client_that_was_given_is_used_and_stays_open() -> None:
    async with running_lago() as lago, httpx.AsyncClient(follow_redirects=True) as client:
        sink = LagoSink(lago.url + "/api/v1", API_KEY, client=client)
        await sink.send([record(1)])
        await sink.close()
        assert not client.is_closed
        lago.faults.script.append(Fault(301, {"location": "/api/v1/events/batch"}))
        delivery = await sink.send([record(2)])  # a redirected POST would arrive as a GET
        assert "HTTP 301" in delivery.alarm
        assert list(lago.ledger.events) == [("acme", "call-00001")]


async def test_a_clients_hook_may_read_the_answer_first() -> None:
    async def read(response: httpx.Response) -> None:
        await response.aread()

    async with running_lago() as lago, httpx.AsyncClient(event_hooks={"response": [read]}) as client:
        sink = LagoSink(lago.url + "/api/v1", API_KEY, client=client)
        for _ in range(2):
            assert (await sink.send([record(1)])).verdicts == (DELIVERED,)
        assert len(lago.recorder.bodies) == 2


async def test_a_sink_that_was_closed_sends_again() -> None:
    async with running_lago() as lago:
        for n in range(3):
            assert (await lago.sink.send([record(n)])).verdicts == (DELIVERED,)
            await lago.sink.close()


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 500, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                await asyncio.sleep(0)
        except OSError:
            pass

    async with serving(endless) as url:
        sink = LagoSink(url, API_KEY, timeout_s=3.0)
        delivery = await sink.send([record()])
        assert (delivery.pause_s, delivery.suspect) == (BACK_OFF, True)
        assert len(delivery.verdicts[0].reason) < 400
        await sink.close()


async def test_an_answer_that_drips_for_ever_times_out() -> None:
    async def drip(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(0.01)

    async with serving(drip) as url:
        sink = LagoSink(url, API_KEY, timeout_s=0.2)
        started_s = asyncio.get_running_loop().time()
        delivery = await sink.send([record()])
        assert asyncio.get_running_loop().time() - started_s < 1.0
        assert (delivery.pause_s, delivery.suspect) == (BACK_OFF, True)
        await sink.close()


async def test_what_is_left_when_the_time_is_up_keeps_its_place() -> None:
    async with running_lago(timeout_s=0.5) as lago:
        lago.faults.max_events, lago.faults.delay_s = 25, 0.06
        delivery = await lago.sink.send([record(n) for n in range(100)] + [record(0, subscription="")])
        results = [verdict.result for verdict in delivery.verdicts]
        delivered = results.count("delivered")
        assert delivered in (25, 50, 75)
        assert results == ["delivered"] * delivered + ["kept"] * (100 - delivered) + ["rejected"]
        assert delivery.pause_s is None


async def test_a_receiver_that_slowly_refuses_every_size_is_backed_off_from_and_remembered() -> None:
    async with running_lago(timeout_s=0.15) as lago:
        lago.faults.max_events, lago.faults.delay_s = 12, 0.04
        delivery = await lago.sink.send([record(n) for n in range(100)])
        assert delivery.pause_s == BACK_OFF
        assert [len(batch) for batch in lago.recorder.events] == [100, 50]
        lago.faults.delay_s = 0.0
        assert (await lago.sink.send([record(n) for n in range(12)])).verdicts == (DELIVERED,) * 12
        assert len(lago.recorder.events[2]) == 12


def answering(status: int, headers: dict[str, str], body: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    return app


async def answered(status: int, headers: dict[str, str], body: bytes, *, records: int = 1) -> Delivery:
    async with serving(answering(status, headers, body)) as url:
        sink = LagoSink(url, API_KEY)
        try:
            return await sink.send([record(n) for n in range(records)])
        finally:
            await sink.close()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A gigabyte of spaces, packed to one megabyte."""
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(packer.compress(b" " * (1 << 24)) for _ in range(64)) + packer.flush()


@pytest.mark.parametrize("status", [200, 422, 500])
async def test_a_compressed_answer_that_unfolds_to_a_gigabyte_costs_a_few_megabytes(status: int, bomb: bytes) -> None:
    assert len(bomb) < 5 << 20
    tracemalloc.start()
    try:
        delivery = await answered(status, {"content-encoding": "gzip"}, bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert delivery.verdicts[0].result == {200: "delivered", 422: "rejected", 500: "again"}[status]
    assert len(delivery.verdicts[0].reason) < 400
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_an_answer_that_a_proxy_compressed_unasked_is_read(encoding: str, pack: Any) -> None:
    body = json.dumps({"error_details": {"0": {"transaction_id": ["value_already_exist"]}}}).encode()
    delivery = await answered(422, {"content-encoding": encoding}, pack(body))
    assert delivery.verdicts == (DELIVERED,)


@pytest.mark.parametrize(("encoding", "body"), [("zstd", b"x"), ("gzip", b"no gzip"), ("br", b""), ("gzip, gzip", b"")])
async def test_an_answer_in_an_unknown_encoding_counts_by_its_status(encoding: str, body: bytes) -> None:
    assert (await answered(200, {"content-encoding": encoding}, body)).verdicts == (DELIVERED,)
    assert (await answered(500, {"content-encoding": encoding}, body)).suspect


async def test_a_web_page_of_a_megabyte_leaves_a_short_reason() -> None:
    page = b"<html>" + b"x" * (1 << 20)
    delivery = await answered(413, {"content-type": "text/html"}, page)
    assert len(delivery.verdicts[0].reason) < 400
    assert (await answered(502, {"content-type": "text/html"}, page)).verdicts[0].reason.startswith("HTTP 502: <html>")


@pytest.mark.parametrize("key", ["9" * 5000, "\u0661" * 3, "0" * 400 + "1", "1e3", "-0", "+0", " 0", "1_0"])
async def test_details_under_keys_that_are_no_index_settle_nothing(key: str) -> None:
    body = json.dumps({"error_details": {key: ["x"], "1": {"transaction_id": ["value_already_exist"]}}}).encode()
    answer = read_answer(422, {}, body, events=3, now_s=0.0)
    assert answer.verdicts == {1: DELIVERED}


@pytest.mark.parametrize(
    "text", ["Thu, 01 Jan 99999999999 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 +99999999", "9" * 5000, "1e400", ""]
)
async def test_moments_that_no_calendar_has_are_not_waited_for_longer_than_the_cap(text: str) -> None:
    assert 0 <= asked_wait_s({"retry-after": text}, 0.0) <= 300


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_but_held_with_an_alarm(status: int) -> None:
    delivery = await answered(status, {"location": "http://127.0.0.1:9/events/batch"}, b"")
    assert (delivery.pause_s, f"HTTP {status}: check the URL" in delivery.alarm) == (60.0, True)
    assert delivery.verdicts[0].result == "again"
