"""Records as signed CloudEvents, on real sockets. The official packages say whether event and signature are sound."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from askii_middleware.errors import SinkError
from askii_middleware.records import Charge, UsageRecord, decode_record
from askii_middleware.sinks.base import BACK_OFF, DELIVERED, Delivery, Traits, traits_of
from askii_middleware.sinks.http import HOLD_S
from askii_middleware.sinks.webhook import WebhookSink, read_answer, with_text_numbers
from askii_middleware.stores.base import Store

from .support import FakeClock, drain, put, record, serving, unused_port, worker_for

OLD, NEW = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
TOKEN = "om-token-for-tests-4b1e"


class Receiver:
    """Takes batches of events. `refuses` are ids that spoil the batch they come in; `limit` is how many events it
    takes at once; `statuses` are answers that come first.
    """

    def __init__(self, *statuses: int, refuses: tuple[str, ...] = (), limit: int = 1000) -> None:
        self.statuses = list(statuses)
        self.headers: dict[str, str] = {}
        self.refuses = set(refuses)
        self.limit = limit
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.taken: list[dict[str, Any]] = []

    @property
    def sizes(self) -> list[int]:
        return [len(json.loads(body)) for _, _, body in self.requests]

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.taken]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["path"], headers, body))
        events = json.loads(body)
        status = self.statuses.pop(0) if self.statuses else 204
        if len(events) > self.limit:
            status = 413
        elif self.refuses.intersection(event["id"] for event in events):
            status = 400
        if status == 204:
            self.taken += events
        sent = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": b"" if status == 204 else b'{"detail":"no\0good"}'})


def results(delivery: Delivery) -> list[str]:
    return [verdict.result for verdict in delivery.verdicts]


async def send(receiver: Any, count: int = 1, **options: Any) -> Delivery:
    async with serving(receiver) as url:
        sink = WebhookSink(f"{url}/api/v1/events", **options)
        try:
            return await sink.send([record(n) for n in range(count)])
        finally:
            await sink.close()


async def test_a_batch_is_cloudevents_with_the_call_id_the_subscription_and_the_records_time() -> None:
    receiver = Receiver()
    delivery = await send(receiver, 3, token=TOKEN)
    assert delivery.verdicts == (DELIVERED,) * 3
    ((path, headers, body),) = receiver.requests
    assert path == "/api/v1/events"
    assert headers["content-type"] == "application/cloudevents-batch+json"
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert "webhook-signature" not in headers
    events = [JSONFormat().read(None, json.dumps(event)) for event in json.loads(body)]
    for n, event in enumerate(events):
        assert event.get_specversion() == "1.0"
        assert event.get_id() == f"call-{n:05d}"
        assert (event.get_type(), event.get_source()) == ("askii.usage", "askii-middleware")
        assert event.get_subject() == "acme"
        time = event.get_time()
        assert time is not None
        assert time.isoformat() == "2026-01-01T00:00:00.123000+00:00"
        assert event.get_datacontenttype() == "application/json"
    assert [decode_record(json.dumps(event["data"]).encode()) for event in json.loads(body)] == [
        record(n) for n in range(3)
    ]


async def test_type_and_source_are_the_operators_to_choose() -> None:
    receiver = Receiver()
    await send(receiver, type="llm.call", source="eu-1")
    assert (receiver.taken[0]["type"], receiver.taken[0]["source"]) == ("llm.call", "eu-1")


async def test_a_record_without_a_subscription_has_no_subject() -> None:
    receiver = Receiver()
    async with serving(receiver) as url:
        sink = WebhookSink(url)
        await sink.send([record(subscription="")])
        await sink.close()
    assert "subject" not in receiver.taken[0]


async def test_the_standard_library_of_receivers_verifies_the_signature_with_the_old_and_the_new_secret() -> None:
    receiver = Receiver()
    await send(receiver, 2, secrets=[NEW, OLD])
    ((_, headers, body),) = receiver.requests
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(body, headers) == receiver.taken
    other = "whsec_" + base64.b64encode(bytes(32)).decode()
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(other).verify(body, headers)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(OLD).verify(body + b" ", headers)


async def test_a_repetition_has_the_same_id_and_bytes_and_the_time_of_its_own_try() -> None:
    receiver, clock = Receiver(500), FakeClock()
    async with serving(receiver) as url:
        for _ in range(2):  # two processes
            sink = WebhookSink(url, secrets=[OLD], clock=clock)
            await sink.send([record(1), record(2)])
            await sink.close()
            clock.advance(90)
        sink = WebhookSink(url, secrets=[OLD], clock=clock)
        await sink.send([record(2)])
        await sink.close()
    (_, first, body), (_, again, same), (_, other, _) = receiver.requests
    assert body == same
    assert first["webhook-id"] == again["webhook-id"] != other["webhook-id"]
    assert int(again["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 90
    assert first["webhook-signature"] != again["webhook-signature"]


@given(st.integers(0, 2**53), st.integers(0, 10**15))
def test_numbers_as_text_are_the_same_numbers_and_the_users_own_stay_as_they_are(cost: int, tokens: int) -> None:
    one = record(coins=cost, input_tokens=tokens)
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    charge = Charge(bucket="input", quantity=tokens, nano_usd=cost)
    given_ = {"metadata": {"seat": 7}, "charges": (charge,), "status": 200}
    text = with_text_numbers(UsageRecord(**{**fields, **given_}))
    assert text["askii_coins"] == str(cost)
    assert text["usage"]["input_tokens"] == str(tokens)
    assert text["charges"] == [{"bucket": "input", "quantity": str(tokens), "nano_usd": str(cost)}]
    assert text["metadata"] == {"seat": 7}
    assert (text["stream"], text["late"], text["key"]) == (False, False, None)


async def test_numbers_are_text_where_the_receiver_reads_floats() -> None:
    receiver = Receiver()
    await send(receiver, number_format="string")
    assert receiver.taken[0]["data"]["askii_coins"] == "1500000"
    await send(receiver)
    assert receiver.taken[1]["data"]["askii_coins"] == 1500000


@pytest.mark.parametrize("bad", [0, 41, 99])
async def test_one_event_that_is_refused_goes_alone_and_the_others_arrive(bad: int) -> None:
    receiver = Receiver(refuses=(f"call-{bad:05d}",))
    delivery = await send(receiver, 100)
    assert [n for n, result in enumerate(results(delivery)) if result != "delivered"] == [bad]
    assert delivery.verdicts[bad].result == "rejected"
    assert delivery.verdicts[bad].reason == 'HTTP 400: {"detail":"no\N{REPLACEMENT CHARACTER}good"}'
    assert delivery.pause_s is None
    assert sorted(receiver.ids) == [f"call-{n:05d}" for n in range(100) if n != bad]
    assert len(receiver.requests) <= 25


async def test_a_receiver_that_takes_few_at_a_time_gets_few() -> None:
    receiver = Receiver(limit=30)
    assert (await send(receiver, 100)).verdicts == (DELIVERED,) * 100
    assert receiver.ids == [f"call-{n:05d}" for n in range(100)]
    assert receiver.sizes[:3] == [100, 50, 25]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 405, 301, 307])
async def test_what_a_person_has_to_put_right_holds_everything_with_an_alarm(status: int) -> None:
    receiver = Receiver(status)
    receiver.headers = {"location": "/elsewhere"}
    delivery = await send(receiver, 3, token=TOKEN)
    assert results(delivery) == ["again"] * 3
    assert (delivery.pause_s, delivery.suspect) == (HOLD_S, False)
    assert delivery.alarm.startswith(f"HTTP {status}: ")
    assert [path for path, _, _ in receiver.requests] == ["/api/v1/events"]  # no redirection was followed


@pytest.mark.parametrize(
    ("status", "headers", "pause_s", "suspect"),
    [
        (429, {"retry-after": "7"}, 7.0, False),
        (503, {"retry-after": "12"}, 12.0, False),
        (503, {}, BACK_OFF, False),
        (429, {"retry-after": "999999"}, 300.0, False),
        (408, {}, BACK_OFF, False),
        (500, {}, BACK_OFF, True),
        (502, {}, BACK_OFF, True),
    ],
)
async def test_a_receiver_in_trouble_is_waited_for(
    status: int, headers: dict[str, str], pause_s: float, suspect: bool
) -> None:
    receiver = Receiver(status)
    receiver.headers = headers
    delivery = await send(receiver, 3)
    assert results(delivery) == ["again"] * 3
    assert (delivery.pause_s, delivery.suspect, delivery.alarm) == (pause_s, suspect, "")


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_every_2xx_is_an_acknowledgement(status: int) -> None:
    assert read_answer(status, {"content-type": "text/html"}, b"ok", now_s=0.0) == read_answer(204, {}, b"", now_s=0.0)


async def test_no_answer_in_time_is_suspect_and_no_connection_is_not() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    delivery = await send(silent, timeout_s=0.2)
    assert (results(delivery), delivery.pause_s, delivery.suspect) == (["again"], BACK_OFF, True)
    sink = WebhookSink(f"http://127.0.0.1:{unused_port()}")
    delivery = await sink.send([record()])
    await sink.close()
    assert (results(delivery), delivery.pause_s, delivery.suspect) == (["again"], BACK_OFF, False)
    assert delivery.verdicts[0].reason.startswith("ConnectError")


async def test_a_receiver_that_only_refuses_slowly_is_left_when_the_time_is_up() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.12)
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    delivery = await send(slow, 100, timeout_s=0.2)
    assert (results(delivery), delivery.pause_s) == (["again"] * 100, BACK_OFF)


async def test_through_the_outbox_everything_arrives_once_in_order_and_the_refused_one_is_a_dead_letter(
    store: Store, clock: FakeClock
) -> None:
    receiver = Receiver(503, 500, refuses=("call-00007",))
    async with serving(receiver) as url:
        sink = WebhookSink(url, secrets=[OLD], max_batch=20)
        worker = await worker_for(store, sink, clock)
        await put(store, *(record(n) for n in range(50)))
        await drain(worker, clock)
        await sink.close()
    assert receiver.ids == [f"call-{n:05d}" for n in range(50) if n != 7]
    assert [letter.call_id for letter in await store.dead_letters("webhook")] == ["call-00007"]


@pytest.mark.parametrize(
    "url",
    ["http://example.com/x", "http://10.0.0.7/x", "http://localhost.example.com/x", "http://127.0.0.1.example.com"],
)
def test_beyond_this_machine_records_go_encrypted_unless_somebody_says_otherwise(url: str) -> None:
    with pytest.raises(SinkError, match="must be https, or set allow_http"):
        WebhookSink(url)
    assert WebhookSink(url, allow_http=True).url == url


@pytest.mark.parametrize("url", ["http://localhost:1/x", "http://127.8.8.8/x", "http://[::1]:9/x", "https://h/x/"])
def test_on_this_machine_and_under_https_nothing_has_to_be_said_and_the_url_stays_as_it_is(url: str) -> None:
    assert WebhookSink(url).url == url


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WebhookSink("https://user:hunter2@h/x"), "without user, query or fragment"),
        (lambda: WebhookSink("https://h/x?key=hunter2"), "without user, query or fragment"),
        (lambda: WebhookSink("ftp://h/hunter2"), "must be http"),
        (lambda: WebhookSink("https://h", secrets=["whsec_hunter2"]), "whsec_ and the base64 of 24 to 64"),
        (lambda: WebhookSink("https://h", secrets=["hünter2"]), "whsec_ and the base64 of 24 to 64"),
        (lambda: WebhookSink("https://h", secrets=["whsec_hünter2"]), "whsec_ and the base64 of 24 to 64"),
        (lambda: WebhookSink("https://h", secrets=OLD), "secrets of sink 'webhook' is a list"),
        (lambda: WebhookSink("https://h", token="hunter2\n"), "the token of sink 'webhook' is empty or has"),
        (lambda: WebhookSink("https://h", max_batch=0), "1 to 1000 events"),
        (lambda: WebhookSink("https://h", type=""), "must not be empty"),
    ],
)
def test_what_cannot_work_is_refused_without_repeating_a_secret(make: Callable[[], object], says: str) -> None:
    with pytest.raises(SinkError, match=says) as caught:
        make()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_secrets_and_token_stand_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await send(Receiver(500), token=TOKEN, secrets=[OLD])
    sink = WebhookSink("https://h/x", token=TOKEN, secrets=[OLD])
    assert repr(sink) == "WebhookSink(url='https://h/x', name='webhook')"
    for secret in (TOKEN, OLD, OLD.removeprefix("whsec_")):
        assert secret not in caplog.text + repr(sink) + str(sink.__dict__)


def test_what_the_receiver_forgets_is_declared() -> None:
    assert traits_of(WebhookSink("https://h")) == Traits("integer", None, None)
    sink = WebhookSink("https://h", number_format="string", max_age_s=60.0, remembers_s=30.0)
    assert traits_of(sink) == Traits("string", 60.0, 30.0)


async def test_a_client_that_was_given_stays_open() -> None:
    receiver = Receiver()
    async with httpx.AsyncClient() as client:
        await send(receiver, client=client)
        assert not client.is_closed
    assert receiver.ids == ["call-00000"]
