"""Points 12 to 20: what becomes of events by Lago's answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.demo.lago import Fault
from askii_middleware.sinks.base import BACK_OFF
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.lago_answers import read_answer
from askii_middleware.stores.base import Store
from askii_middleware.stores.sqlite import SQLiteStore

from .support import API_KEY, FakeClock, drain, put, record, running_lago, serving, worker_for


async def test_point_12_a_batch_of_duplicates_is_acknowledged_whole(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        await lago.sink.send([record(n) for n in range(10)])
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(10)))
        assert await drain(worker, clock) == []
        assert await store.pending() == {"lago": 0}
        assert await store.dead_letters("lago") == []
        assert len(lago.recorder.bodies) == 2
        assert lago.ledger.coins("acme") == 10 * 1_500_000


async def test_point_13_of_a_mixed_422_duplicates_are_delivered_bad_ones_die_and_the_rest_goes_once_as_a_batch(
    store: Store, clock: FakeClock
) -> None:
    async with running_lago() as lago:
        await lago.sink.send([record(1), record(4)])
        lago.recorder.bodies.clear()
        details = {
            "1": {"transaction_id": ["value_already_exist"]},
            "3": {"timestamp": ["invalid_format"]},
            "4": {"transaction_id": ["value_already_exist"]},
        }
        lago.faults.script.append(Fault(422, body=_422(details)))
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(6)))
        assert await drain(worker, clock) == []
        assert lago.recorder.ids == [[f"call-{n:05d}" for n in range(6)], ["call-00000", "call-00002", "call-00005"]]
        (letter,) = await store.dead_letters("lago")
        assert (letter.call_id, letter.reason) == ("call-00003", 'HTTP 422: {"timestamp":["invalid_format"]}')
        assert sorted(key[1] for key in lago.ledger.events) == [f"call-{n:05d}" for n in (0, 1, 2, 4, 5)]


async def test_point_14_string_valued_details_kill_their_event_only(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.script.append(Fault(422, body=_422({"2": "expression_evaluation_failed: nil"})))
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(4)))
        await drain(worker, clock)
        (letter,) = await store.dead_letters("lago")
        assert (letter.call_id, letter.reason) == ("call-00002", "HTTP 422: expression_evaluation_failed: nil")
        assert len(lago.ledger.events) == 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":422,"error_details":{"organization":["value_is_mandatory"]}}',
        b'{"status":422,"error_details":{"99":["x"],"-1":["x"],"\xc2\xb2":["x"]}}',
        b'{"status":422,"error_details":"no"}',
        b'{"status":422}',
        b"[]",
        b"<html>",
        b"",
    ],
)
async def test_point_14_details_that_name_no_event_are_narrowed_down_to_it(
    store: Store, clock: FakeClock, body: bytes
) -> None:
    async with running_lago() as lago:
        lago.faults.poison["call-00005"] = Fault(422, body=body)
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(9)))
        await drain(worker, clock)
        (letter,) = await store.dead_letters("lago")
        assert letter.call_id == "call-00005"
        assert len(lago.ledger.events) == 8


async def test_point_15_too_many_events_halves_the_batch(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.max_events = 30
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(100)))
        assert await drain(worker, clock) == []
        assert [len(batch) for batch in lago.recorder.events][:4] == [100, 50, 25, 50]
        assert len(lago.ledger.events) == 100
        assert await store.dead_letters("lago") == []


async def test_point_15_a_proxys_413_in_html_halves_and_a_lone_event_that_is_too_large_dies(
    store: Store, clock: FakeClock
) -> None:
    async with running_lago() as lago:
        lago.faults.max_body_bytes = 2000
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n, model="m" * 3000 if n == 17 else "gpt-4o") for n in range(40)))
        assert await drain(worker, clock) == []
        (letter,) = await store.dead_letters("lago")
        assert letter.call_id == "call-00017"
        assert letter.reason.startswith("HTTP 413: <html>")
        assert len(lago.ledger.events) == 39
        assert all(len(body) <= 2000 for body in lago.recorder.bodies[-3:])


async def test_point_15_a_400_is_narrowed_down_to_the_event_that_causes_it(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.poison["call-00003"] = Fault(400)
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(20)))
        assert await drain(worker, clock) == []
        (letter,) = await store.dead_letters("lago")
        assert letter.call_id == "call-00003"
        assert letter.reason.startswith("HTTP 400: ")
        assert len(lago.ledger.events) == 19


async def test_point_16_a_persistent_500_is_bisected_so_that_poison_holds_no_neighbour(
    store: Store, clock: FakeClock
) -> None:
    async with running_lago() as lago:
        lago.faults.poison["call-00042"] = Fault(500)
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(100)))
        pauses = await drain(worker, clock)
        assert len(pauses) == 2
        assert len(lago.ledger.events) == 99
        assert list(lago.ledger.events) == [("acme", f"call-{n:05d}") for n in range(100) if n != 42]
        assert await store.pending() == {"lago": 1}
        lago.faults.poison.clear()
        clock.advance(300)
        await drain(worker, clock)
        assert len(lago.ledger.events) == 100


@pytest.mark.parametrize("status", [401, 403, 404, 301, 405, 410])
async def test_point_17_a_configuration_error_holds_everything_and_alarms_until_it_is_fixed(
    store: Store, clock: FakeClock, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_lago() as lago:
        lago.faults.always = Fault(status)
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], clock=clock, owner="w1")
        (worker,) = loop.workers
        await put(store, *(record(n) for n in range(150)))
        for _ in range(10):
            assert await worker.round() == 60.0
            clock.advance(60.0)
        assert len(lago.recorder.bodies) == 10
        assert await store.pending() == {"lago": 150}
        assert f"HTTP {status}" in loop.alarms["lago"]
        assert f"HTTP {status}" in caplog.text
        lago.faults.always = None
        await drain(worker, clock)
        assert list(lago.ledger.events) == [("acme", f"call-{n:05d}") for n in range(150)]
        assert loop.alarms == {}


async def test_point_17_a_wrong_key_is_refused_by_the_stand_in_and_held() -> None:
    async with running_lago() as lago:
        sink = LagoSink(lago.url + "/api/v1", "another-key")
        delivery = await sink.send([record()])
        assert (delivery.pause_s, delivery.alarm) == (60.0, "HTTP 401: check the API key")
        assert lago.ledger.events == {}
        await sink.close()


@pytest.mark.parametrize("status", [400, 422])
def test_point_17_a_refusal_in_a_web_page_is_held_with_an_alarm_and_splits_nothing(status: int) -> None:
    page = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
    answer = read_answer(status, {"content-type": "Text/HTML; charset=utf-8"}, page, events=100, now_s=0.0)
    assert (answer.pause_s, answer.split, answer.verdicts) == (60.0, "", {})
    assert f"HTTP {status} with a web page, not from Lago" in answer.alarm
    assert answer.alarm.endswith(": 400 The plain HTTP request was sent to HTTPS port")


async def test_point_17_a_web_page_with_200_is_not_taken_for_lago() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<html>Log in</html>"})

    async with serving(page) as url:
        sink = LagoSink(url, API_KEY)
        delivery = await sink.send([record()])
        assert delivery.verdicts[0].result == "again"
        assert "not from Lago" in delivery.alarm
        await sink.close()


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"x-ratelimit-reset": "7"}, 7.0),
        ({"x-ratelimit-reset": "7", "retry-after": "99"}, 7.0),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:42 GMT"}, 42.0),
        ({"x-ratelimit-reset": "1767225630"}, 30.0),
        ({"x-ratelimit-reset": "86400"}, 300.0),
        ({"retry-after": "Fri, 01 Jan 2027 00:00:00 GMT"}, 300.0),
    ],
)
async def test_point_18_a_429_waits_as_asked_and_sends_nothing_meanwhile(
    store: Store, clock: FakeClock, headers: dict[str, str], expected_s: float
) -> None:
    async with running_lago(clock=clock) as lago:
        lago.faults.script.append(Fault(429, headers))
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(250)))
        assert await worker.round() == expected_s
        clock.advance(expected_s - 0.5)
        assert await worker.round() == 0.5
        assert len(lago.recorder.bodies) == 1
        clock.advance(0.5)
        await drain(worker, clock)
        assert [len(batch) for batch in lago.recorder.events] == [100, 100, 100, 50]
        assert len(lago.ledger.events) == 250


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-ratelimit-reset": "soon"}, {"retry-after": "nan"}, {"retry-after": "-5"}, {"x-ratelimit-reset": "inf"}],
)
async def test_point_18_a_429_that_does_not_say_how_long_backs_off(headers: dict[str, str]) -> None:
    async with running_lago() as lago:
        lago.faults.script.append(Fault(429, headers))
        delivery = await lago.sink.send([record()])
        assert (delivery.pause_s, delivery.suspect) == (BACK_OFF, False)


async def test_point_19_an_answer_lost_after_the_commit_leaves_one_event_each(store: Store, clock: FakeClock) -> None:
    async with running_lago(timeout_s=0.1) as lago:
        lago.faults.script.append(Fault(commit=True, hang_s=10))
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n) for n in range(30)))
        assert len(await drain(worker, clock)) == 1
        assert len(lago.recorder.bodies) == 2
        assert lago.recorder.bodies[0] == lago.recorder.bodies[1]
        assert len(lago.ledger.events) == 30
        assert lago.ledger.coins("acme") == 30 * 1_500_000
        assert await store.pending() == {"lago": 0}
        assert await store.dead_letters("lago") == []


async def test_point_20_back_off_has_jitter_and_a_cap_and_survives_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.always = Fault(503)
        pauses = []
        for life in range(12):
            store = SQLiteStore(str(tmp_path / "ledger.db"), clock=clock)
            await store.open()
            worker = await worker_for(store, lago.sink, clock, random=random.Random(life))
            if life == 0:
                await put(store, record(1))
            pauses.append(await worker.round())
            await store.close()
            clock.advance(pauses[-1])
        bounds = [min(2.0**n, 300.0) for n in range(12)]
        expected = [random.Random(life).uniform(0, bound) for life, bound in enumerate(bounds)]
        assert pauses == pytest.approx(expected, abs=1e-3)
        clock.advance(-0.5 * pauses[-1])  # a restart in the middle of the pause does not cut it short
        store = SQLiteStore(str(tmp_path / "ledger.db"), clock=clock)
        await store.open()
        worker = await worker_for(store, lago.sink, clock)
        assert await worker.round() == pytest.approx(0.5 * pauses[-1], abs=1e-3)
        assert len(lago.recorder.bodies) == 12
        await store.close()


def _422(details: Any) -> bytes:
    body = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details}
    return json.dumps(body).encode()
