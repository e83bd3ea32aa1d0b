"""What a sender to Lago must satisfy, point by point, against the stand-in on a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections import deque
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import referencing
import referencing.jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.demo.lago import Fault
from askii_middleware.errors import SinkError
from askii_middleware.sinks.base import BACK_OFF, DELIVERED
from askii_middleware.sinks.lago import MAX_COINS, LagoSink, UnbillableError, encode_event, unix_seconds, whole_coins
from askii_middleware.stores.base import Store
from askii_middleware.stores.sqlite import SQLiteStore

from .support import (
    API_KEY,
    SPEC,
    FakeClock,
    drain,
    put,
    record,
    running_lago,
    serving,
    unused_port,
    worker_for,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIXED_POINT = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


@pytest.fixture(scope="module")
def spec() -> jsonschema.Draft202012Validator:
    if not SPEC.exists():
        pytest.skip("Lago's published spec is not beside the repository (../shared/lago)")
    document = json.loads(SPEC.read_text())
    resource = referencing.jsonschema.DRAFT202012.create_resource(document)
    registry: referencing.Registry[Any] = referencing.Registry().with_resource("spec:lago", resource)
    return jsonschema.Draft202012Validator({"$ref": "spec:lago#/components/schemas/EventBatchInput"}, registry=registry)


MOMENTS_S = st.integers(0, 253_402_300_799)
"""Whole seconds from 1970 to the end of the year 9999."""


async def test_point_01_the_body_validates_against_the_published_spec(
    spec: jsonschema.Draft202012Validator, store: Store, clock: FakeClock
) -> None:
    async with running_lago() as lago:
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n, coins=n * 7) for n in range(100)))
        await drain(worker, clock)
        (batch,) = [json.loads(body) for body in lago.recorder.bodies]
        spec.validate(batch)
        with pytest.raises(jsonschema.ValidationError):  # the validator has teeth
            spec.validate({"events": [batch["events"][0] | {"timestamp": 1767225600.123}]})
    assert batch["events"][1] == {
        "transaction_id": "call-00001",
        "external_subscription_id": "acme",
        "code": "askii_coins",
        "timestamp": "1767225600.123",
        "properties": {
            "askii_coins": "7",
            "call_id": "call-00001",
            "model": "gpt-4o",
            "input_tokens": "812",
            "output_tokens": "95",
        },
    }


async def test_point_02_never_no_events_and_never_more_than_a_hundred(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        worker = await worker_for(store, lago.sink, clock)
        await drain(worker, clock)
        assert (await lago.sink.send([])).verdicts == ()
        assert lago.recorder.bodies == []
        await put(store, *(record(n) for n in range(250)))
        await drain(worker, clock)
        assert [len(batch) for batch in lago.recorder.events] == [100, 100, 50]
    with pytest.raises(SinkError, match="1 to 100"):
        LagoSink("https://lago.example.com/api/v1", API_KEY, max_batch=101)


@pytest.mark.parametrize("base", ["/api/v1", "/api/v1/", "/behind/a/proxy/api/v1"])
async def test_point_03_the_url_keeps_its_path(base: str) -> None:
    async with running_lago() as lago:
        sink = LagoSink(lago.url + base, API_KEY)
        await sink.send([record()])
        assert lago.recorder.paths == [base.rstrip("/") + "/events/batch"]
        await sink.close()


@given(MOMENTS_S, st.integers(0, 999))
@settings(max_examples=300, deadline=None)
def test_point_04_the_timestamp_is_that_of_the_record_to_the_millisecond(seconds: int, ms: int) -> None:
    moment = EPOCH + timedelta(seconds=seconds)
    event = json.loads(encode_event(record(timestamp=f"{moment.isoformat()[:19]}.{ms:03d}Z")))
    assert event["timestamp"] == f"{seconds}.{ms:03d}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00.123Z", "1767225600.123"),
        ("2026-01-01T00:00:00Z", "1767225600.000"),
        ("2026-01-01T02:00:00.001+02:00", "1767225600.001"),
        ("2025-12-31T23:59:59.999999Z", "1767225599.999"),
        ("1970-01-01T00:00:00.000Z", "0.000"),
    ],
)
def test_point_04_timestamps_are_cut_to_milliseconds_without_a_float(text: str, expected: str) -> None:
    assert unix_seconds(text) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-01T00:00:00", "1969-12-31T23:59:59Z", "1767225600.123"])
def test_point_04_a_record_without_a_usable_timestamp_is_refused(text: str) -> None:
    with pytest.raises(UnbillableError):
        encode_event(record(timestamp=text))


async def test_point_05_every_retry_also_after_a_restart_sends_the_same_bytes(tmp_path: Path, clock: FakeClock) -> None:
    async with running_lago(timeout_s=0.2) as lago:
        lago.faults.script = deque([Fault(500), Fault(hang_s=5), Fault(429, {"x-ratelimit-reset": "2"}), Fault(502)])
        for life in range(5):
            store = SQLiteStore(str(tmp_path / "ledger.db"), clock=clock)
            await store.open()
            sink = LagoSink(lago.url + "/api/v1", API_KEY, timeout_s=0.2)
            worker = await worker_for(store, sink, clock)
            if life == 0:
                await put(store, *(record(n, coins=n) for n in range(30)))
            clock.advance(await worker.round())
            await sink.close()
            await store.close()
            clock.advance(30)
        assert len(lago.recorder.bodies) == 5
        assert len(set(lago.recorder.bodies)) == 1
        assert len(lago.ledger.events) == 30


def test_point_06_transaction_ids_come_from_the_call_id_alone() -> None:
    events = [json.loads(encode_event(record(n, subscription=s))) for n in range(50) for s in ("acme", "globex")]
    assert {event["transaction_id"] for event in events} == {f"call-{n:05d}" for n in range(50)}
    assert json.loads(encode_event(record(1, coins=1)))["transaction_id"] == "call-00001"


async def test_point_07_no_batch_holds_one_transaction_id_twice() -> None:
    async with running_lago() as lago:
        doubles = [record(n // 2, subscription="acme" if n % 4 else "globex") for n in range(20)]
        delivery = await lago.sink.send(doubles)
        assert delivery.verdicts == (DELIVERED,) * 20
        for batch in lago.recorder.ids:
            assert len(set(batch)) == len(batch)
        assert len(lago.ledger.events) == len({(r.subscription, r.call_id) for r in doubles})


@given(coins=st.integers(0, MAX_COINS), tokens=st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None)
def test_point_08_numbers_are_plain_fixed_point_strings_over_the_whole_range(coins: int, tokens: int) -> None:
    event = json.loads(encode_event(record(coins=coins, input_tokens=tokens, output_tokens=tokens // 3)))
    for name, number in (("askii_coins", coins), ("input_tokens", tokens), ("output_tokens", tokens // 3)):
        text = event["properties"][name]
        assert FIXED_POINT.fullmatch(text)
        assert int(text) == number
    assert all(isinstance(value, str) for value in event["properties"].values())


async def test_point_08_an_event_of_no_coins_is_still_sent() -> None:
    async with running_lago() as lago:
        assert (await lago.sink.send([record(coins=0)])).verdicts == (DELIVERED,)
        assert lago.recorder.events[0][0]["properties"]["askii_coins"] == "0"
        assert lago.ledger.unbilled == []


@given(st.one_of(st.floats(), st.integers(), st.decimals(allow_nan=True, allow_infinity=True)))
@settings(max_examples=500, deadline=None)
def test_point_09_only_whole_finite_amounts_of_at_most_twelve_digits_are_taken(cost: Any) -> None:
    exact = Decimal(cost)
    billable = exact.is_finite() and 0 <= exact <= MAX_COINS and exact == exact.to_integral_value()
    if billable:
        assert whole_coins(cost) == exact
    else:
        with pytest.raises(ValueError, match="whole coins"):
            whole_coins(cost)


@pytest.mark.parametrize(
    ("cost", "coins"), [(1_500_000.0, 1_500_000), (0, 0), (1e6, 1_000_000), (999_999_999_999, 999_999_999_999)]
)
async def test_point_09_a_usage_event_goes_through_the_outbox_as_an_integer(cost: float, coins: int) -> None:
    sink = LagoSink("https://lago.example.com/api/v1", API_KEY)
    taken: list[tuple[str, int, str]] = []

    async def record_external(subscription: str, amount: int, call_id: str) -> None:
        taken.append((subscription, amount, call_id))

    sink.bind(record_external)
    await sink.send_usage_event("acme", cost, "call-1")
    assert taken == [("acme", coins, "call-1")]
    assert type(taken[0][1]) is int


@pytest.mark.parametrize(
    "cost", [1.5, -1, -0.5, float("nan"), float("inf"), float("-inf"), 1e12, 10**12, True, 5e-324, 1e300]
)
async def test_point_09_unbillable_amounts_are_refused_when_they_are_recorded(cost: float) -> None:
    sink = LagoSink("https://lago.example.com/api/v1", API_KEY)
    with pytest.raises(ValueError, match="whole coins"):
        await sink.send_usage_event("acme", cost, "call-1")


@pytest.mark.parametrize(("subscription", "call_id"), [("", "c"), (" ", "c"), ("a\0", "c"), ("a", ""), ("a", "c\0")])
async def test_point_09_ids_that_cannot_be_billed_are_refused_when_they_are_recorded(
    subscription: str, call_id: str
) -> None:
    sink = LagoSink("https://lago.example.com/api/v1", API_KEY)
    with pytest.raises(ValueError, match="must not be empty"):
        await sink.send_usage_event(subscription, 5, call_id)


async def test_point_09_an_unbound_sink_says_how_to_bind_it() -> None:
    sink = LagoSink("https://lago.example.com/api/v1", API_KEY)
    with pytest.raises(SinkError, match=r"CostTracker\(sinks=\[sink\]\)"):
        await sink.send_usage_event("acme", 5, "call-1")


@pytest.mark.parametrize("coins", [-1, 10**12, 2**63 - 1])
async def test_point_09_records_of_unbillable_amounts_are_dead_letters_and_never_sent(
    store: Store, clock: FakeClock, coins: int
) -> None:
    async with running_lago() as lago:
        delivery = await lago.sink.send([record(1), record(2, coins=coins), record(3)])
        assert [verdict.result for verdict in delivery.verdicts] == ["delivered", "rejected", "delivered"]
        assert str(coins) in delivery.verdicts[1].reason
        assert lago.recorder.ids == [["call-00001", "call-00003"]]


@pytest.mark.parametrize("bad", [{"call_id": "a\0b"}, {"subscription": "ac\0me"}, {"model": "gpt\0"}])
async def test_point_10_nul_characters_are_never_sent(bad: dict[str, Any]) -> None:
    async with running_lago() as lago:
        delivery = await lago.sink.send([record(1), record(2, **bad)])
        assert [verdict.result for verdict in delivery.verdicts] == ["delivered", "rejected"]
        assert lago.recorder.ids == [["call-00001"]]


async def test_point_10_text_that_only_looks_like_an_escaped_nul_is_sent_as_it_is() -> None:
    async with running_lago() as lago:
        await lago.sink.send([record(1, model="odd\\u0000name")])
        assert lago.recorder.events[0][0]["properties"]["model"] == "odd\\u0000name"


@pytest.mark.parametrize("subscription", ["", "  "])
async def test_point_11_a_record_without_a_subscription_is_a_dead_letter_with_an_alarm(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture, subscription: str
) -> None:
    async with running_lago() as lago:
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], clock=clock, owner="w1")
        await put(store, record(1), record(2, subscription=subscription), record(3))
        await drain(loop.workers[0], clock)
        assert lago.recorder.ids == [["call-00001", "call-00003"]]
        (letter,) = await store.dead_letters("lago")
        assert (letter.call_id, letter.reason) == ("call-00002", "no subscription to bill")
        assert "without a subscription" in loop.alarms["lago"]
        assert [r.levelno for r in caplog.records] == [logging.ERROR]


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


async def test_point_17_a_web_page_with_200_is_not_taken_for_lago() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<html>Log in</html>"})

    async with serving(page) as url:
        sink = LagoSink(url, API_KEY)
        delivery = await sink.send([record()])
        assert delivery.verdicts[0].result == "again"
        assert "not Lago" in delivery.alarm
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


@pytest.mark.parametrize("kind", ["refused", "500", "503"])
async def test_point_22_after_an_outage_the_count_is_exact_and_each_tenants_order_kept(
    store: Store, clock: FakeClock, kind: str
) -> None:
    tenants = ("acme", "globex", "initech")
    async with running_lago() as lago:
        sink = LagoSink(f"http://127.0.0.1:{unused_port()}/api/v1", API_KEY) if kind == "refused" else lago.sink
        lago.faults.always = None if kind == "refused" else Fault(int(kind))
        worker = await worker_for(store, sink, clock)
        written, started_s = 0, clock()
        while clock() - started_s < (90 if kind == "500" else 600):
            await put(store, *(record(written + n, subscription=tenants[n % 3]) for n in range(15)))
            written += 15
            clock.advance(max(await worker.round(), 1.0))
        assert await store.pending() == {"lago": written}
        assert lago.ledger.events == {}
        lago.faults.always = None
        await sink.close()
        worker = await worker_for(store, lago.sink, clock)
        await drain(worker, clock)
        assert len(lago.ledger.events) == written
        assert list(lago.ledger.events) == sorted(lago.ledger.events, key=lambda key: key[1])


async def test_point_22_a_receiver_that_hangs_does_not_hold_up_the_event_loop(store: Store) -> None:
    async with running_lago(timeout_s=5.0) as lago:
        lago.faults.always = Fault(hang_s=60)
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], owner="w1", linger_s=0.0)
        loop.start()
        longest_s = await _longest_turn(0.2, loop.wake)
        await loop.stop(0.01)
    assert longest_s < 0.1


async def test_point_23_however_long_the_outbox_grows_nothing_is_dropped(store: Store, clock: FakeClock) -> None:
    async with running_lago() as lago:
        lago.faults.always = Fault(503)
        worker = await worker_for(store, lago.sink, clock)
        await put(store, *(record(n, coins=1) for n in range(5000)))
        for _ in range(20):
            clock.advance(await worker.round())
        assert await store.pending() == {"lago": 5000}
        lago.faults.always = None
        await drain(worker, clock)
        assert lago.ledger.coins("acme") == 5000
        assert await store.pending() == {"lago": 0}


async def test_point_24_the_flush_at_shutdown_is_bounded_and_leftovers_stay(tmp_path: Path) -> None:
    async with running_lago(timeout_s=5.0) as lago:
        store = SQLiteStore(str(tmp_path / "ledger.db"))
        await store.open()
        await store.register_sinks(["lago"])
        loop = DeliveryLoop(store, [lago.sink], owner="w1")
        loop.start()
        lago.faults.script.append(Fault(commit=True, hang_s=60))
        await put(store, *(record(n) for n in range(120)))
        loop.wake()
        before_s = asyncio.get_running_loop().time()
        assert await loop.stop(0.3) is False
        assert asyncio.get_running_loop().time() - before_s < 1.5
        await lago.sink.close()
        assert await store.pending() == {"lago": 120}
        await store.close()

        store = SQLiteStore(str(tmp_path / "ledger.db"))
        await store.open()
        loop = DeliveryLoop(store, [lago.sink], owner="w2")
        loop.start()
        assert await loop.stop(5.0) is True
        assert await store.pending() == {"lago": 0}
        assert len(lago.ledger.events) == 120
        await store.close()


async def test_point_25_two_workers_on_one_outbox_never_send_one_record_both(tmp_path: Path) -> None:
    async with running_lago() as lago:
        path = str(tmp_path / "ledger.db")
        stores = [SQLiteStore(path), SQLiteStore(path)]
        for store in stores:
            await store.open()
        await stores[0].register_sinks(["lago"])
        await put(stores[0], *(record(n) for n in range(500)))
        sinks = [LagoSink(lago.url + "/api/v1", API_KEY, max_batch=20) for _ in stores]
        options: dict[str, Any] = {"lease_s": 0.3, "send_timeout_s": 0.2, "idle_s": 0.01}
        loops = [
            DeliveryLoop(s, [k], owner=f"w{n}", **options) for n, (s, k) in enumerate(zip(stores, sinks, strict=True))
        ]
        for loop in loops:
            loop.start()
        while sum((await stores[0].pending()).values()):
            await asyncio.sleep(0.01)
        for loop, sink, store in zip(loops, sinks, stores, strict=True):
            await loop.stop(1.0)
            await sink.close()
            await store.close()
        sent = [event for batch in lago.recorder.ids for event in batch]
        assert len(sent) == len(set(sent)) == 500


async def test_point_26_the_api_key_is_never_in_logs_errors_or_repr(
    store: Store, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "lago-secret-0123456789"
    for bad in (f"{secret}\n", f"{secret} x", f"{secret}é", f"{secret}\x7f", ""):
        with pytest.raises(SinkError) as caught:
            LagoSink("https://lago.example.com/api/v1", bad)
        assert secret not in str(caught.value)
    with pytest.raises(SinkError) as caught:
        LagoSink(f"https://user:{secret}@lago.example.com/api/v1", "k")
    assert secret not in str(caught.value)
    async with running_lago() as lago:
        sink = LagoSink(lago.url + "/api/v1", secret)
        assert secret not in repr(sink) + str(sink) + f"{sink!r}"
        worker = await worker_for(store, sink, clock)
        await put(store, record(1))
        for fault in (None, Fault(500), Fault(422, body=b"{}"), Fault(301, {"location": "/elsewhere"})):
            lago.faults.always = fault
            clock.advance(await worker.round())
        await sink.close()
        gone = LagoSink(f"http://127.0.0.1:{unused_port()}/api/v1", secret)
        worker = await worker_for(store, gone, clock)
        await put(store, record(2))
        clock.advance(await worker.round())
        await gone.close()
        assert any(secret in headers.get("authorization", "") for headers in lago.recorder.headers)
    assert caplog.records
    assert secret not in caplog.text
    assert all(secret not in repr(letter) for letter in await store.dead_letters("lago"))


# Beyond the points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "lago.example.com", "ftp://lago.example.com", "https://h/api?x=1", "https://h/api#x", "http://[", "//h/p"],
)
def test_a_url_that_cannot_work_is_refused_at_construction(url: str) -> None:
    with pytest.raises(SinkError, match="Lago URL"):
        LagoSink(url, API_KEY)


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


def _422(details: Any) -> bytes:
    body = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details}
    return json.dumps(body).encode()


async def _longest_turn(seconds: float, each: Any) -> float:
    loop = asyncio.get_running_loop()
    until, last, longest = loop.time() + seconds, loop.time(), 0.0
    while loop.time() < until:
        each()
        await asyncio.sleep(0.001)
        now = loop.time()
        longest, last = max(longest, now - last), now
    return longest
