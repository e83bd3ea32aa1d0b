"""The example of a sink of one's own, against a stand-in that keeps Stripe's limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest

from askii_middleware.delivery_age import CONFIRM_S, TOO_OLD
from askii_middleware.records import UsageRecord
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Sink, Traits, traits_of
from askii_middleware.stores.base import Store
from examples.stripe_sink import HOLD_S, StripeSink

from .support import FakeClock, drain, put, record, serving, unused_port, worker_for

DAY_S = 86_400.0
KEY = "sk_test_for_tests_9f2c"


class Stripe:
    """Meter events as Stripe takes them: `events` are those it bills; `statuses` are answers that come first."""

    def __init__(self, clock: FakeClock, *statuses: int) -> None:
        self.clock = clock
        self.statuses = list(statuses)
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.events: list[dict[str, str]] = []
        self.seen: dict[str, float] = {}
        self.commits_then_fails = False
        """Bill the next event and answer 500."""

    def judge(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        age_s = self.clock() - int(form["timestamp"])
        if not -300 <= age_s <= 35 * DAY_S:
            return 400, {"error": {"type": "invalid_request_error", "message": "timestamp out of range"}}
        if not form["payload[value]"].isdigit():
            return 400, {"error": {"message": "value must be a whole number"}}
        id_ = form["identifier"]
        if self.clock() - self.seen.get(id_, -DAY_S) < DAY_S:
            return 400, {"error": {"message": f"An event already exists with identifier {id_}."}}
        self.seen[id_] = self.clock()
        self.events.append(form)
        if self.commits_then_fails:
            self.commits_then_fails = False
            return 500, {}
        return 200, {"object": "billing.meter_event", "identifier": id_}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        form = dict(parse_qsl(body.decode(), strict_parsing=True))
        self.requests.append((f"{scope['method']} {scope['path']}", headers, form))
        status, answer = (self.statuses.pop(0), {}) if self.statuses else self.judge(form)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": msgspec.json.encode(answer)})


def recorded(number: int, clock: FakeClock, age_s: float = 0.0, **fields: Any) -> UsageRecord:
    moment = datetime.fromtimestamp(clock() - age_s, UTC).isoformat(timespec="milliseconds")
    return record(number, timestamp=moment, subscription=fields.pop("subscription", "cus_acme"), **fields)


@asynccontextmanager
async def stripe(clock: FakeClock, *statuses: int) -> AsyncIterator[tuple[Stripe, StripeSink]]:
    server = Stripe(clock, *statuses)
    async with serving(server) as url:
        sink = StripeSink(url, KEY, clock=clock)
        try:
            yield server, sink
        finally:
            await sink.close()


async def test_an_event_has_the_call_as_identifier_the_records_second_the_customer_and_the_coins(
    clock: FakeClock,
) -> None:
    async with stripe(clock) as (server, sink):
        assert isinstance(sink, Sink)
        assert traits_of(sink) == Traits("string", 35 * DAY_S, DAY_S)
        delivery = await sink.send([recorded(1, clock, coins=174)])
    assert delivery.verdicts == (DELIVERED,)
    ((request, headers, form),) = server.requests
    assert request == "POST /v1/billing/meter_events"
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert form == {
        "event_name": "askii_coins",
        "identifier": "call-00001",
        "timestamp": "1767225600",
        "payload[stripe_customer_id]": "cus_acme",
        "payload[value]": "174",
    }


async def test_an_answer_that_was_lost_bills_once(store: Store, clock: FakeClock) -> None:
    async with stripe(clock) as (server, sink):
        server.commits_then_fails = True
        worker = await worker_for(store, sink, clock)
        await put(store, *(recorded(n, clock) for n in range(30)))
        await drain(worker, clock)
        assert [event["identifier"] for event in server.events] == [f"call-{n:05d}" for n in range(30)]
        assert len(server.requests) == 31
    assert await store.dead_letters("stripe") == []
    assert await store.pending() == {"stripe": 0}


@pytest.mark.parametrize("age_s", [DAY_S + 60, 34 * DAY_S, 36 * DAY_S, 400 * DAY_S])
async def test_what_stripe_would_refuse_or_not_know_again_is_a_dead_letter_and_never_sent(
    store: Store, clock: FakeClock, age_s: float
) -> None:
    async with stripe(clock) as (server, sink):
        worker = await worker_for(store, sink, clock)
        await put(store, recorded(1, clock, age_s), recorded(2, clock, 60.0))
        await drain(worker, clock)
    assert [event["identifier"] for event in server.events] == ["call-00002"]
    (letter,) = await store.dead_letters("stripe")
    assert letter.reason.startswith(f"{TOO_OLD}{age_s + CONFIRM_S:.0f} s; ")


async def test_a_record_from_a_clock_that_is_ahead_waits_until_stripe_takes_it(store: Store, clock: FakeClock) -> None:
    async with stripe(clock) as (server, sink):
        worker = await worker_for(store, sink, clock)
        await put(store, recorded(1, clock, -900.0), recorded(2, clock))
        await worker.round()
        assert [event["identifier"] for event in server.events] == ["call-00002"]
        for _ in range(700):
            await worker.round()
            clock.advance(1.0)
        assert [event["identifier"] for event in server.events] == ["call-00002", "call-00001"]
    assert await store.dead_letters("stripe") == []


async def test_what_bills_nobody_is_rejected_and_what_costs_nothing_is_not_sent(clock: FakeClock) -> None:
    async with stripe(clock) as (server, sink):
        delivery = await sink.send([recorded(1, clock, subscription=""), recorded(2, clock, coins=0)])
    assert [verdict.result for verdict in delivery.verdicts] == ["rejected", "delivered"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "pause_s", "suspect"), [(429, BACK_OFF, False), (409, BACK_OFF, False), (500, BACK_OFF, True)]
)
async def test_while_stripe_is_busy_or_broken_the_rest_keeps_its_place(
    clock: FakeClock, status: int, pause_s: float, suspect: bool
) -> None:
    async with stripe(clock) as (server, sink):
        await sink.send([recorded(0, clock)])
        server.statuses = [200, status]
        delivery = await sink.send([recorded(n, clock) for n in range(1, 4)])
    assert [verdict.result for verdict in delivery.verdicts] == ["delivered", "again", "kept"]
    assert (delivery.pause_s, delivery.suspect, delivery.alarm) == (pause_s, suspect, "")


async def test_a_refused_key_holds_everything_with_an_alarm(clock: FakeClock) -> None:
    async with stripe(clock, 401) as (_, sink):
        delivery = await sink.send([recorded(1, clock)])
    assert (delivery.pause_s, delivery.alarm) == (HOLD_S, "HTTP 401: check key and URL")


async def test_an_event_stripe_does_not_take_is_rejected_with_its_reason(clock: FakeClock) -> None:
    async with stripe(clock, 400) as (_, sink):
        delivery = await sink.send([recorded(1, clock)])
    assert delivery.verdicts[0] == ("rejected", "HTTP 400: {}", 0.0)


async def test_without_a_connection_the_records_wait_and_arrive_once_there_is_one(
    store: Store, clock: FakeClock
) -> None:
    async with stripe(clock) as (server, sink):
        there, sink._url = sink._url, f"http://127.0.0.1:{unused_port()}"
        worker = await worker_for(store, sink, clock)
        await put(store, *(recorded(n, clock) for n in range(3)))
        await worker.round()
        assert (await store.pending(), server.events) == ({"stripe": 3}, [])
        sink._url = there
        await drain(worker, clock)
        assert [event["identifier"] for event in server.events] == [f"call-{n:05d}" for n in range(3)]
