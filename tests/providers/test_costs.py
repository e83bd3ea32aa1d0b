"""What answers say that they cost is read to the last digit, or not at all."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS, find_apis
from askii_middleware.providers.costs import LITELLM_COST, absorb_cost_headers, as_usd, to_nano_usd
from askii_middleware.providers.dialects import reported_cost
from askii_middleware.providers.fields import decode_object
from askii_middleware.usage import Report

from .support import CORPUS, NO_CORPUS, USAGE, feed

NANO = Decimal(10) ** 9


@pytest.mark.parametrize(
    ("text", "nano_usd"),
    [
        ("0", 0),
        ("0.0", 0),
        ("-0.0", 0),
        ("0.000235", 235_000),
        ("1.2e-05", 12_000),
        ("0.00019199999999999998", 192_000),
        ("0.0000000005", 0),  # half of a nano-USD goes to the even side
        ("0.0000000015", 2),
        ("0.00000000250000001", 3),
        ("1e-400", 0),
        ("3", 3_000_000_000),
        ("1000000", 10**15),
    ],
)
def test_an_amount_is_the_decimal_that_was_written(text: str, nano_usd: int) -> None:
    usage = decode_object(f'{{"cost": {text}}}'.encode())
    assert usage is not None
    assert reported_cost(usage) == nano_usd


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -1, -0.5, float("nan"), float("inf"), 1_000_001, 10**40, 1e300, "", "x", "NaN", "-1", "Infinity"),
        *("1" * 65, "1e999999999", [], {}, ["1"], "0x10"),
    ],
)
def test_what_is_no_amount_costs_nothing_that_is_known(value: object) -> None:
    assert to_nano_usd(as_usd(value)) is None
    assert reported_cost({"cost": value}) is None
    assert reported_cost({"cost": {"total_cost": value}}) is None
    assert reported_cost({"pydantic_ai_gateway": {"cost_estimate": value}}) is None


@given(st.decimals(0, 1_000_000, allow_nan=False, allow_infinity=False, places=12))
def test_every_amount_is_rounded_once_and_half_even(amount: Decimal) -> None:
    assert to_nano_usd(as_usd(str(amount))) == int((amount * NANO).quantize(Decimal(1), ROUND_HALF_EVEN))


@given(st.floats() | st.integers() | st.text(max_size=70) | st.none() | st.booleans())
def test_nothing_raises_and_no_cost_is_negative(value: object) -> None:
    cost = to_nano_usd(as_usd(value))
    assert cost is None or (type(cost) is int and 0 <= cost <= 10**15)


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        ({"cost": 0.00095, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.00095}}, 950_000),
        ({"cost": 0.00095, "cost_details": {"upstream_inference_cost": 0.00095}}, 950_000),
        ({"cost": 0.0000475, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.00095}}, 997_500),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.00095}}, 950_000),
        ({"cost": 0.0000475, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": 0.0000475, "is_byok": True}, None),
        ({"cost": 0, "is_byok": False, "cost_details": {"upstream_inference_cost": None}}, 0),
        ({"cost": {"input_tokens_cost": 1e-05, "request_cost": 0.005, "total_cost": 0.00501}}, 5_010_000),
        ({"cost_in_usd_ticks": 37_756_000}, 3_775_600),
        ({"cost_in_usd_ticks": 15}, 2),
        ({"cost_in_usd_ticks": 25}, 2),
        ({"cost_in_usd_ticks": -1}, None),
        ({"cost_in_usd_ticks": 10**17}, None),
        ({"cost_in_usd_ticks": True}, None),
        ({"pydantic_ai_gateway": {"cost_estimate": 0.00019199999999999998}}, 192_000),
        ({"cost": 0.5, "pydantic_ai_gateway": {"cost_estimate": 0.6}}, 600_000_000),
        ({"prompt_tokens": 4}, None),
    ],
)
def test_each_gateway_tells_its_cost_in_its_own_way(usage: dict[str, Any], nano_usd: int | None) -> None:
    assert reported_cost(usage) == nano_usd


@pytest.mark.parametrize(
    ("value", "nano_usd"),
    [
        (b"0.00012345", 123_450),
        (b" 5e-06 ", 5_000),
        (b"0", 7),
        (b"0.0", 7),
        (b"None", 7),
        (b"-1", 7),
        (b"\xff", 7),
        (b"", 7),
    ],
)
def test_a_gateways_header_stands_above_the_body_where_it_says_something(value: bytes, nano_usd: int) -> None:
    report = Report(cost_nano_usd=7)
    absorb_cost_headers(report, {LITELLM_COST: value})
    assert report.cost_nano_usd == nano_usd


def test_apis_of_openais_shape_look_at_the_header() -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        api = find_apis(path)[0]
        assert LITELLM_COST in api.answer_headers
        report = api.read_body(b'{"choices": []}')
        api.absorb_headers(report, {LITELLM_COST: b"0.25"})
        assert report.cost_nano_usd == 250_000_000


def test_headers_that_say_nothing_leave_every_report_alone() -> None:
    for api in APIS:
        report = Report()
        api.absorb_headers(report, {})
        assert report == Report()


@pytest.mark.skipif(not CORPUS.exists(), reason=NO_CORPUS)
@pytest.mark.parametrize(
    ("file", "nano_usd"),
    [
        ("openrouter/chat_reasoning_cost.json", 235_000),
        ("openrouter/stream_comments_cost.sse", 837_000),
        ("openrouter/stream_error_with_usage.sse", 0),
        ("perplexity/stream_usage_every_chunk.sse", 5_010_000),
        ("vllm/stream_v0_24.sse", None),
    ],
)
def test_recorded_answers_tell_what_they_cost(file: str, nano_usd: int | None) -> None:
    api = find_apis("/v1/chat/completions")[0]
    body = (CORPUS / file).read_bytes()
    reader = api.stream_reader(hide_usage=False) if file.endswith(".sse") else api.body_reader()
    feed(reader, [body])
    assert reader.report.cost_nano_usd == nano_usd
    hiding = api.stream_reader(hide_usage=True)
    feed(hiding, [body])
    assert hiding.report.cost_nano_usd == (nano_usd if file.endswith(".sse") else None)


def test_a_later_usage_without_a_cost_does_not_take_the_earlier_one_back() -> None:
    api = find_apis("/v1/chat/completions")[0]
    report = Report()
    api.absorb(report, {"choices": [], "usage": {**USAGE, "cost": 0.5}})
    api.absorb(report, json.loads(json.dumps({"choices": [], "usage": USAGE})))
    assert report.cost_nano_usd == 500_000_000
