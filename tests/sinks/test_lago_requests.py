"""Points 1 to 11 of what a sender to Lago must satisfy: what its requests look like."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.delivery import DeliveryLoop
from askii_middleware.demo.lago import Fault
from askii_middleware.errors import SinkError
from askii_middleware.sinks.base import DELIVERED
from askii_middleware.sinks.lago import MAX_COINS, LagoSink, UnbillableError, encode_event, unix_seconds, whole_coins
from askii_middleware.stores.base import Store
from askii_middleware.stores.sqlite import SQLiteStore

from .lago_spec import NO_SPEC, validator
from .support import API_KEY, SPEC, FakeClock, drain, put, record, running_lago, worker_for

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIXED_POINT = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


@pytest.fixture(scope="module")
def spec() -> jsonschema.Draft202012Validator:
    if not SPEC.exists():
        pytest.skip(NO_SPEC)
    return validator("EventBatchInput")


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


@pytest.mark.parametrize(
    ("subscription", "call_id"),
    [("", "c"), (" ", "c"), ("a\0", "c"), ("a", ""), ("a", "c\0"), (None, "c"), (5, "c"), ("a", b"c"), ("a", None)],
)
async def test_point_09_ids_that_cannot_be_billed_are_refused_when_they_are_recorded(
    subscription: Any, call_id: Any
) -> None:
    sink = LagoSink("https://lago.example.com/api/v1", API_KEY)
    with pytest.raises(ValueError, match="are texts, not empty"):
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
