"""The stand-in keeps Lago's rules; without that, reconciling against it would show nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from askii_middleware.demo.lago import Fault, LagoFaults, LagoLedger, lago_app

KEY = {"authorization": "Bearer k"}


@pytest.fixture
def ledger() -> LagoLedger:
    return LagoLedger(subscriptions={"acme", "globex"})


@pytest.fixture
def faults() -> LagoFaults:
    return LagoFaults()


@pytest.fixture
async def client(ledger: LagoLedger, faults: LagoFaults) -> AsyncIterator[httpx.AsyncClient]:
    app = lago_app(api_key="k", ledger=ledger, faults=faults, clock=lambda: 1_767_225_600.0)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://lago/api/v1", headers=KEY) as client:
        yield client


def event(number: int = 1, *, coins: Any = "5", **changes: Any) -> dict[str, Any]:
    base = {
        "transaction_id": f"t{number}",
        "external_subscription_id": "acme",
        "code": "askii_coins",
        "timestamp": "1767225600.123",
        "properties": {"askii_coins": coins},
    }
    return {**base, **changes}


async def post(client: httpx.AsyncClient, *events: Any) -> httpx.Response:
    return await client.post("/events/batch", json={"events": list(events)})


async def test_it_says_in_every_answer_that_it_is_not_lago(client: httpx.AsyncClient) -> None:
    for answer in (
        await post(client, event()),
        await post(client),
        await client.get("/events"),
        await client.get("/events/t1"),
        await client.get("/events/none"),
        await client.get("/events", headers={"authorization": "Bearer x"}),
    ):
        assert answer.headers["x-lago-stand-in"] == "askii-middleware demo; not Lago"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "k", "bearer k", "Bearer k "])
async def test_another_key_is_401_and_nothing_is_taken(
    client: httpx.AsyncClient, ledger: LagoLedger, header: str
) -> None:
    headers = {"authorization": header}
    assert (await client.post("/events/batch", json={"events": [event()]}, headers=headers)).status_code == 401
    assert (await client.get("/events", headers=headers)).status_code == 401
    assert (await client.get("/events/t1", headers=headers)).status_code == 401
    assert ledger.events == {}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"event":{}}', b"5", b'{"events":'])
async def test_a_malformed_body_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await client.post("/events/batch", content=body)).status_code == 400


@pytest.mark.parametrize(("count", "code"), [(0, "no_events"), (101, "too_many_events")])
async def test_a_batch_has_1_to_100_events(client: httpx.AsyncClient, count: int, code: str) -> None:
    answer = await post(client, *(event(n) for n in range(count)))
    assert (answer.status_code, answer.json()["error_details"]) == (422, {"events": [code]})
    assert (await post(client, *(event(n) for n in range(100)))).status_code == 200


async def test_a_batch_is_taken_whole_or_not_at_all(client: httpx.AsyncClient, ledger: LagoLedger) -> None:
    assert (await post(client, event(1))).status_code == 200
    answer = await post(client, event(0), event(1), event(2), event(3, timestamp="2026-01-01T00:00:00Z"))
    assert answer.status_code == 422
    assert answer.json() == {
        "status": 422,
        "error": "Unprocessable Entity",
        "code": "validation_errors",
        "error_details": {"1": {"transaction_id": ["value_already_exist"]}, "3": {"timestamp": ["invalid_format"]}},
    }
    assert list(ledger.events) == [("acme", "t1")]


async def test_a_transaction_id_is_taken_per_subscription_and_for_ever(
    client: httpx.AsyncClient, ledger: LagoLedger
) -> None:
    await post(client, event(1))
    assert (await post(client, event(1, external_subscription_id="globex", coins="9"))).status_code == 200
    assert (await post(client, event(1, coins="1000"))).status_code == 422
    assert [int(ledger.coins("acme")), int(ledger.coins("globex")), int(ledger.total_coins)] == [5, 9, 14]


async def test_one_id_twice_in_a_batch_fails_in_the_database(client: httpx.AsyncClient, ledger: LagoLedger) -> None:
    assert (await post(client, event(1), event(1))).status_code == 500
    assert ledger.events == {}


async def test_a_nul_character_breaks_the_batch(client: httpx.AsyncClient, ledger: LagoLedger) -> None:
    nul = event(2, properties={"askii_coins": "5", "model": "a\0"})
    assert (await post(client, event(1), nul)).status_code == 500
    assert ledger.events == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"external_subscription_id": "unknown"},
        {"external_subscription_id": ""},
        {"external_subscription_id": None},
        {"code": "other"},
        {"coins": "1e-05"},
        {"coins": "1E+6"},
        {"coins": "+1"},
        {"coins": ".5"},
        {"coins": "1."},
        {"coins": ""},
        {"coins": " 1"},
        {"coins": "1\n"},
        {"coins": "٣"},
        {"coins": "1234567890123"},
        {"properties": None},
        {"properties": {"coins": "5"}},
        {"timestamp": "1767225600123"},
    ],
)
async def test_what_lago_never_bills_is_accepted_and_not_billed(
    client: httpx.AsyncClient, ledger: LagoLedger, changes: dict[str, Any]
) -> None:
    assert (await post(client, event(**changes))).status_code == 200
    assert [int(ledger.total_coins), len(ledger.unbilled), len(ledger.events)] == [0, 1, 1]


@pytest.mark.parametrize("coins", ["0", "-3", "1.50", "999999999999", 7])
async def test_plain_numbers_are_billed(client: httpx.AsyncClient, ledger: LagoLedger, coins: Any) -> None:
    await post(client, event(coins=coins))
    assert ledger.coins("acme") == Decimal(coins)
    assert ledger.unbilled == []


@pytest.mark.parametrize("timestamp", ["soon", 1767225600.5, True, "nan", "inf", [], "2026-01-01"])
async def test_a_timestamp_that_is_none_is_refused(client: httpx.AsyncClient, timestamp: Any) -> None:
    answer = await post(client, event(timestamp=timestamp))
    assert answer.json()["error_details"] == {"0": {"timestamp": ["invalid_format"]}}


async def test_a_missing_timestamp_means_the_servers_now(client: httpx.AsyncClient) -> None:
    answer = await post(client, event(timestamp=None))
    assert answer.json()["events"][0]["timestamp"] == "2026-01-01T00:00:00.000Z"


async def test_missing_fields_are_named(client: httpx.AsyncClient) -> None:
    answer = await post(client, event(transaction_id=None, code=""), "text", event(properties=[1]))
    assert answer.json()["error_details"] == {
        "0": {"transaction_id": ["value_is_mandatory"], "code": ["value_is_mandatory"]},
        "1": {"event": ["invalid_format"]},
        "2": {"properties": ["invalid_format"]},
    }


async def test_single_events_follow_the_same_rules(client: httpx.AsyncClient, ledger: LagoLedger) -> None:
    answer = await client.post("/events", json={"event": event(1)})
    assert answer.json()["event"]["transaction_id"] == "t1"
    again = await client.post("/events", json={"event": event(1)})
    assert again.json()["error_details"] == {"transaction_id": ["value_already_exist"]}
    assert (await client.post("/events", json={"events": []})).status_code == 400
    assert (await client.post("/events", json={"event": event(2, code="a\0")})).status_code == 500
    assert ledger.total_coins == 5


async def test_events_are_listed_by_page_subscription_and_code(client: httpx.AsyncClient) -> None:
    await post(client, *(event(n, external_subscription_id="globex" if n == 3 else "acme") for n in range(5)))
    page = (await client.get("/events", params={"per_page": 2, "page": 2})).json()
    assert [each["transaction_id"] for each in page["events"]] == ["t2", "t3"]
    assert page["meta"] == {"current_page": 2, "next_page": 3, "prev_page": 1, "total_pages": 3, "total_count": 5}
    found = (await client.get("/events", params={"external_subscription_id": "globex", "code": "askii_coins"})).json()
    assert [each["transaction_id"] for each in found["events"]] == ["t3"]
    assert (await client.get("/events", params={"page": "x"})).status_code == 400
    assert (await client.get("/events/t3")).json()["event"]["external_subscription_id"] == "globex"
    assert (await client.get("/events/t9")).status_code == 404


async def test_faults_happen_in_their_order_and_then_the_rules_apply_again(
    client: httpx.AsyncClient, ledger: LagoLedger, faults: LagoFaults
) -> None:
    faults.script.extend([Fault(500), Fault(429, {"x-ratelimit-reset": "7"}), Fault(502, body=b"<html>")])
    answers = [await post(client, event(1)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [500, 429, 502, 200]
    assert answers[1].headers["x-ratelimit-reset"] == "7"
    assert answers[2].text == "<html>"
    assert ledger.requests == 4


async def test_a_fault_can_lose_the_answer_of_what_was_taken(
    client: httpx.AsyncClient, ledger: LagoLedger, faults: LagoFaults
) -> None:
    faults.script.extend([Fault(504, commit=True), Fault(hang_s=0.01)])
    assert (await post(client, event(1))).status_code == 504
    assert ledger.coins("acme") == 5
    assert (await post(client, event(1))).status_code == 422


async def test_poison_and_size_hit_their_requests_only(client: httpx.AsyncClient, faults: LagoFaults) -> None:
    faults.poison["t7"] = Fault(500)
    faults.max_body_bytes = 2000
    assert (await post(client, event(1), event(7))).status_code == 500
    assert (await post(client, event(1), event(70))).status_code == 200
    large = await post(client, *(event(n) for n in range(10, 40)))
    assert (large.status_code, large.headers["content-type"]) == (413, "text/html; charset=utf-8")
