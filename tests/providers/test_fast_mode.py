"""Anthropic's fast mode: `speed` beside `service_tier`, in requests and in answers (anthropic SDK 2.12)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from askii_middleware.pricing import PriceBook
from askii_middleware.providers import find_apis
from askii_middleware.usage import TokenUsage

(MESSAGES,) = find_apis("/v1/messages")


def tier_asked_for(**members: Any) -> str | None:
    body = {"model": "claude-opus-5-5", "max_tokens": 10, "messages": [], **members}
    fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    return MESSAGES.parse(fields, 100).service_tier


def answer(**usage: Any) -> dict[str, Any]:
    return {"type": "message", "usage": {"input_tokens": 1000, "output_tokens": 1000, **usage}}


@pytest.mark.parametrize(
    ("members", "tier"),
    [
        ({"speed": "fast"}, "fast"),
        ({"speed": "fast", "service_tier": "auto"}, "fast"),
        ({"speed": "standard", "service_tier": "standard_only"}, "standard_only"),
        ({"speed": None}, None),
        ({"speed": ["fast"]}, None),
    ],
)
def test_a_request_for_fast_mode_asks_for_that_tier(members: dict[str, Any], tier: str | None) -> None:
    assert tier_asked_for(**members) == tier


@pytest.mark.parametrize(
    ("usage", "tier"),
    [
        ({"speed": "fast", "service_tier": "standard"}, "fast"),
        ({"speed": "standard", "service_tier": "standard"}, "standard"),
        ({"service_tier": "priority"}, "priority"),
    ],
)
def test_a_plain_answer_says_which_speed_was_served(usage: dict[str, Any], tier: str) -> None:
    assert MESSAGES.read_body(json.dumps(answer(**usage)).encode()).service_tier == tier


def test_the_speed_at_the_start_of_a_stream_lasts_to_its_end() -> None:
    reader = MESSAGES.stream_reader(hide_usage=False)
    start = {"type": "message_start", "message": answer(speed="fast", service_tier="standard")}
    delta = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5, "service_tier": "standard"}}
    for event in (start, delta):
        reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert reader.report.service_tier == "fast"


def test_fast_mode_costs_what_the_catalogue_asks_for_it() -> None:
    report = MESSAGES.read_body(json.dumps(answer(speed="fast", service_tier="standard")).encode())
    prices = PriceBook(clock=lambda: 1_795_305_600.0)  # 2026-11-22
    fast = prices.find("claude-opus-5-5", provider="anthropic", service_tier=report.service_tier)
    usual = prices.find("claude-opus-5-5", provider="anthropic")
    assert report.usage == TokenUsage(input=1000, output=1000)
    assert fast is not None
    assert usual is not None
    assert fast.charge(report.usage).nano_usd == 2 * usual.charge(report.usage).nano_usd
