"""Mapping: further properties, and whom to bill."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askii_middleware.errors import SinkError
from askii_middleware.records import decode_record
from askii_middleware.sinks.base import DELIVERED
from askii_middleware.sinks.lago import LagoSink
from askii_middleware.sinks.lago_events import coin_events
from askii_middleware.sinks.lago_properties import MAX_PROPERTIES, Properties
from askii_middleware.stores.base import Store

from .support import API_KEY, FakeClock, drain, put, record, running_lago, worker_for

URL = "https://lago.example.com/api/v1"


async def test_constants_and_fields_of_the_record_become_properties() -> None:
    changed = msgspec.structs.replace(
        record(1), team="research", tags=("a", "b"), stream=True, status=200, metadata={"project": "x", "n": 3}
    )
    table = {
        "env": "prod",
        "team": "{team}",
        "user": "{user}",
        "tags": "{tags}",
        "stream": "{stream}",
        "status": "{status}",
        "project": "{metadata.project}",
        "missing": "{metadata.none}",
        "cached": "{usage.cached_input_tokens}",
    }
    async with running_lago(properties=table) as lago:
        await lago.sink.send([changed])
        ((event,),) = lago.recorder.events
    own = ("askii_coins", "call_id", "model", "input_tokens", "output_tokens")
    assert {name: value for name, value in event["properties"].items() if name not in own} == {
        "env": "prod",
        "team": "research",
        "tags": "a,b",
        "stream": "true",
        "status": "200",
        "project": "x",
        "cached": "0",
    }
    assert tuple(event["properties"])[:5] == own


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_point_10_any_metadata_becomes_a_bounded_text_without_nul_or_exponent(value: Any) -> None:
    try:
        written = msgspec.json.encode(msgspec.structs.replace(record(1), metadata={"x": value}))
        read = decode_record(written)
    except (msgspec.DecodeError, OverflowError):
        return  # an integer that JSON readers refuse
    found = Properties({"x": "{metadata.x}"}).of(read)
    text = found.get("x")
    if text is None:
        assert value in (None, "") or isinstance(value, list | dict)
        return
    assert 1 <= len(text) <= 256
    assert "\0" not in text
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert re.fullmatch(r"-?\d+(\.\d+)?", text)


def test_point_10_a_nul_in_a_property_is_replaced_and_the_record_billed() -> None:
    (event,) = coin_events("askii_coins", Properties({"x": "{metadata.x}"}))(
        msgspec.structs.replace(record(1), metadata={"x": "a\0b"})
    )
    assert json.loads(event.body)["properties"]["x"] == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"team": "{tem}"}, "team names 'tem'; known are anomalous, api"),
        ({"x": "{metadata}"}, "names 'metadata'"),
        ({"x": "{metadata.}"}, "names 'metadata.'"),
        ({"x": "{usage}"}, "names 'usage'"),
        ({"x": "{usage.cats}"}, "names 'usage.cats'"),
        ({"x": "{duration_ms}"}, "names 'duration_ms'"),
        ({"x": "a {team}"}, "one field as in"),
        ({"x": "a\0"}, "without NUL"),
        ({"x": "a" * 257}, "at most 256"),
        ({"": "a"}, "is no name"),
        ({"x" * 65: "a"}, "is no name"),
        ({"x\0": "a"}, "is no name"),
        ({"askii_coins": "1"}, "askii_coins is the event's own"),
        ({"model": "{requested_model}"}, "model is the event's own"),
        ({f"p{n}": "x" for n in range(MAX_PROPERTIES + 1)}, "at most 20, not 21"),
    ],
)
def test_properties_that_cannot_be_are_refused_at_construction(table: dict[str, str], says: str) -> None:
    with pytest.raises(SinkError, match=re.escape(says)):
        LagoSink(URL, API_KEY, properties=table)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"code": ""}, "code '': a billable metric"),
        ({"code": "a\0"}, "no NUL"),
        ({"code": "x" * 256}, "1 to 255"),
        ({"events": "both"}, '"coins" or "tokens"'),
        ({"events": "tokens", "token_codes": {}}, "a code of its own"),
        ({"events": "tokens", "token_codes": {"inputs": "x"}}, r"not \['inputs'\]"),
        ({"events": "tokens", "token_codes": {"input": "x", "output": "x"}}, "a code of its own"),
        ({"events": "tokens", "token_codes": {"input": ""}}, "code ''"),
        ({"only_tenants": "acme"}, "only_tenants is a list"),
        ({"only_tenants": []}, "only_tenants is empty, so that nobody would be billed"),
    ],
)
def test_mappings_that_cannot_be_are_refused_at_construction(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SinkError, match=says):
        LagoSink(URL, API_KEY, **options)


async def test_tenants_that_are_not_billed_here_are_delivered_without_a_request(store: Store, clock: FakeClock) -> None:
    async with running_lago(only_tenants=["acme"]) as lago:
        worker = await worker_for(store, lago.sink, clock)
        await put(store, record(1), record(2, subscription="globex"), record(3, subscription=""), record(4))
        await drain(worker, clock)
        assert lago.recorder.ids == [["call-00001", "call-00004"]]
        assert await store.pending() == {"lago": 0}
        assert await store.dead_letters("lago") == []


async def test_another_code_is_billed_under_the_same_id_and_property() -> None:
    async with running_lago(code="my_metric") as lago:
        await lago.sink.send([record(1, coins=7)])
        ((event,),) = lago.recorder.events
    assert (event["code"], event["transaction_id"], event["properties"]["askii_coins"]) == (
        "my_metric",
        "call-00001",
        "7",
    )


async def test_a_correction_sends_its_coins_and_one_of_none_sends_nothing() -> None:
    async with running_lago() as lago:
        up = msgspec.structs.replace(record(1, coins=5), kind="adjustment")
        back = msgspec.structs.replace(record(2, coins=0), kind="adjustment", cost_nano_usd=-5000, subscription="")
        assert (await lago.sink.send([up, back])).verdicts == (DELIVERED, DELIVERED)
        assert lago.recorder.ids == [["call-00001"]]
        assert lago.ledger.coins("acme") == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [({"events": "tokens"}, "events='coins'"), ({"only_tenants": ["globex"]}, "only_tenants leaves out 'acme'")],
)
async def test_an_event_that_would_never_be_billed_is_refused_when_it_is_recorded(
    options: dict[str, Any], says: str
) -> None:
    async def nowhere(_subscription: str, _coins: int, _call_id: str) -> None:
        raise AssertionError("recorded")

    sink = LagoSink(URL, API_KEY, **options)
    sink.bind(nowhere)
    with pytest.raises(SinkError, match=says):
        await sink.send_usage_event("acme", 5, "call-1")


@pytest.mark.parametrize(
    "cost", [10**5000, -(10**5000), "x" * 10**6, None, [1]], ids=["10**5000", "-10**5000", "a text", "None", "a list"]
)
async def test_point_09_an_amount_of_any_size_and_kind_gives_a_short_error(cost: Any) -> None:
    with pytest.raises(ValueError, match="whole coins") as caught:
        await LagoSink(URL, API_KEY).send_usage_event("acme", cost, "call-1")
    assert len(str(caught.value)) < 200


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_point_08_whatever_a_record_says_its_event_is_flat_and_all_text(model: str, tenant: str, team: str) -> None:
    events_of = coin_events("askii_coins", Properties({"team": "{team}"}))
    try:
        each = msgspec.structs.replace(record(1, model=model, subscription=tenant), team=team)
        (event,) = events_of(each)
    except SinkError:
        assert "\0" in model + tenant or not tenant.strip()
        return
    decoded = json.loads(event.body)
    assert all(isinstance(value, str) for value in decoded["properties"].values())
    assert "\\u0000" not in event.body.decode() or "\\u0000" in model + tenant + team
    assert decoded["external_subscription_id"] == tenant
