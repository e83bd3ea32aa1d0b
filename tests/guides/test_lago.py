"""`LagoLogger`: events one by one and in batches, through the outbox, to a Lago on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from askii_middleware.compat import CostTracker, LagoLogger, cost_per_token, cost_tracker
from askii_middleware.errors import ConfigurationError, SinkError
from askii_middleware.identity import Identity
from askii_middleware.sinks.lago import LagoSink

from ..support.lago_server import KEY, LagoServer
from ..support.service import make_tracker, soon, url_of


@pytest.fixture
async def lago(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[LagoServer]:
    async with LagoServer(str(tmp_path / "lago.db")) as server:
        monkeypatch.setenv("LAGO_API_BASE", server.url)
        monkeypatch.setenv("LAGO_API_KEY", KEY)
        yield server
        await asyncio.to_thread(cost_tracker.close)


async def flushed() -> None:
    await cost_tracker.act(lambda core: core.flush(0.5))


async def test_events_sent_together_are_each_billed_once_however_often_they_are_sent(lago: LagoServer) -> None:
    logger = LagoLogger()
    for _ in range(3):
        await asyncio.gather(*[logger._send_usage_event("acme", 1000 + n, f"call-{n}") for n in range(20)])
    await flushed()
    assert lago.books.count == 20
    assert lago.books.billed() == {"acme": Decimal(20 * 1000 + 190)}


async def test_parts_of_a_coin_are_carried_to_the_next_event(lago: LagoServer) -> None:
    cost = cost_per_token("gpt-4o-mini", 1, 0)
    assert cost == 0.15
    for n in range(40):
        await LagoLogger()._send_usage_event(external_subscription_id="acme", cost=cost, call_id=f"call-{n}")
    await flushed()
    assert lago.books.billed() == {"acme": Decimal(6)}
    assert cost_tracker.tracker.sinks[0].name == "lago"


async def test_what_was_sent_while_lago_was_away_arrives_later(lago: LagoServer) -> None:
    lago.faults.always = "500"
    await LagoLogger()._send_usage_event("acme", 1_500_000, "c1")
    await flushed()
    assert (lago.books.billed(), len(lago.posts) > 0) == ({}, True)
    lago.faults.always = "ok"

    async def arrived() -> bool:
        await flushed()
        return lago.books.billed() == {"acme": Decimal(1_500_000)}

    await soon(arrived)


async def test_events_are_strings_and_unix_seconds_with_the_code_that_is_set(
    lago: LagoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAGO_API_EVENT_CODE", "tokens_spent")
    await LagoLogger()._send_usage_event("acme", 7, "c1")
    await flushed()
    (event,) = lago.books.events()
    assert (event.code, event.properties["askii_coins"], event.properties["call_id"]) == ("tokens_spent", "7", "c1")
    assert event.timestamp_s > 1_700_000_000


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "lots", True, 10**12])
async def test_what_is_no_amount_of_coins_is_refused(lago: LagoServer, cost: object) -> None:
    with pytest.raises(ValueError, match="cost takes"):
        await LagoLogger()._send_usage_event("acme", cost, "c1")  # type: ignore[arg-type]
    for subscription, call_id in (("", "c"), ("acme", " "), ("a\0", "c"), (None, "c")):
        with pytest.raises(ValueError, match="texts"):
            await LagoLogger()._send_usage_event(subscription, 1, call_id)  # type: ignore[arg-type]


async def test_without_a_lago_it_says_what_to_set() -> None:
    with pytest.raises(SinkError, match="LAGO_API_BASE"):
        await LagoLogger()._send_usage_event("acme", 1, "c1")


async def test_a_sink_that_sends_tokens_bills_no_coins(tmp_path: Path) -> None:
    sink = LagoSink("http://127.0.0.1:9/api/v1", KEY, events="tokens")
    tracker = CostTracker(tracker=make_tracker(url_of("memory", tmp_path), sinks=[sink]))
    with pytest.raises(SinkError, match="no Lago"):
        await LagoLogger(tracker)._send_usage_event("acme", 1, "c1")
    await asyncio.to_thread(tracker.close)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LAGO_API_BASE": "https://lago.example"}, "LAGO_API_KEY"),
        ({"LAGO_API_BASE": "https://lago.example", "LAGO_API_KEY": "k", "LAGO_API_CHARGE_BY": "tag"}, "CHARGE_BY"),
        ({"LAGO_API_BASE": "http://lago.example", "LAGO_API_KEY": "k"}, "allow_http"),
        ({"LAGO_API_BASE": "https://l.example", "LAGO_API_KEY": "k", "ASKII_STORE": "memory://"}, r"\[sinks.lago\]"),
    ],
)
def test_wrong_variables_are_named(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        _ = cost_tracker.tracker


def test_the_payer_may_be_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BASE", "https://l.example/"), ("KEY", "k"), ("CHARGE_BY", "user_id")):
        monkeypatch.setenv(f"LAGO_API_{name}", value)
    (sink,) = cost_tracker.tracker.sinks
    assert isinstance(sink, LagoSink)
    assert sink.url == "https://l.example/api/v1"
    assert cost_tracker.tracker.subscription(Identity(tenant="acme", user="ann")) == "ann"


def test_a_configured_lago_comes_before_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("askii.toml").write_text('[sinks.lago]\nurl = "https://ours.example/api/v1"\napi_key = "x"\n')
    monkeypatch.setenv("LAGO_API_BASE", "https://theirs.example")
    (sink,) = cost_tracker.tracker.sinks
    assert isinstance(sink, LagoSink)
    assert sink.url == "https://ours.example/api/v1"
