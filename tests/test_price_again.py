"""What a call costs at today's prices, from its record; and why some cannot be told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.price_again import PricesAt, Unpriceable, price_again
from askii_middleware.pricing import ModelPrice, PriceBook
from askii_middleware.records import Charge, UsageCounts, UsageRecord
from askii_middleware.settling import Part, bill, timestamp_text
from askii_middleware.usage import TokenUsage

from .support.service import NOW_S, Clock

BOOK = PriceBook(
    prices={
        "tiered": ModelPrice(
            input_usd_per_mtok=1, output_usd_per_mtok=2, tiers={200_000: {"input_usd_per_mtok": 2}}, request_usd="0.01"
        ),
        "plain": ModelPrice(input_usd_per_mtok="0.15", output_usd_per_mtok="0.6", cache_read_usd_per_mtok="0.075"),
        "alias": ModelPrice(input_usd_per_mtok=7, output_usd_per_mtok=7),
    },
    clock=lambda: NOW_S,
)
AT = PricesAt(BOOK.find, lambda: NOW_S)


def record_of(*parts: tuple[str, TokenUsage], **fields: Any) -> UsageRecord:
    """A record as charging writes it, at the prices of `BOOK`."""
    billed = bill([Part(model, BOOK.find(model), usage) for model, usage in parts])
    served = parts[0][0] if parts else "plain"
    return UsageRecord(
        **{
            "call_id": "c1",
            "timestamp": timestamp_text(NOW_S),
            "tenant": "acme",
            "subscription": "acme",
            "api": "openai.chat",
            "provider": "",
            "requested_model": served,
            "served_model": served,
            "usage": UsageCounts(input_tokens=sum(usage.input_tokens for _, usage in parts)),
            "charges": billed.charges,
            "cost_nano_usd": billed.nano_usd,
            "unpriced": billed.unpriced,
            "price_version": "v",
            "exchange_rate": 1e6,
            **fields,
        }
    )


def at_another_price(part: tuple[str, TokenUsage], **fields: Any) -> UsageRecord:
    """A record as it was charged at half the price of `BOOK`."""
    record = record_of(part, **fields)
    charges = tuple(msgspec.structs.replace(each, nano_usd=each.nano_usd // 2) for each in record.charges)
    return msgspec.structs.replace(record, charges=charges, cost_nano_usd=sum(charge.nano_usd for charge in charges))


usages = st.builds(
    lambda counts: msgspec.convert(counts, TokenUsage),
    st.dictionaries(st.sampled_from(("input", "cache_read", "output", "reasoning")), st.integers(0, 300_000)),
)


@given(st.lists(st.tuples(st.sampled_from(["tiered", "plain"]), usages), max_size=4))
def test_at_unchanged_prices_every_call_costs_what_it_was_charged(parts: list[tuple[str, TokenUsage]]) -> None:
    # Two parts of one model that no bucket tells apart are priced as one: a nano-USD for each may be rounded away.
    models = [model for model, _ in parts]
    record = record_of(*parts)
    if record.unpriced:
        return
    if len(set(models)) == len(models) or all(usage.input for _, usage in parts):
        assert price_again(record, AT) == record.cost_nano_usd


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (record_of(("plain", TokenUsage(input=1)), api="external"), "computed elsewhere"),
        (record_of(("plain", TokenUsage(input=1)), unpriced=True), "had no price"),
        (record_of(("plain", TokenUsage(input=9)), cost_nano_usd=7), "do not sum"),
        (record_of(cost_nano_usd=0, usage=UsageCounts(output_tokens=1)), "no charges"),
        (record_of(("plain", TokenUsage(input=1)), requested_model="x-1", served_model="x-1"), "no price is known now"),
        (
            record_of(cost_nano_usd=5, charges=(Charge(bucket="provider_cost", quantity=1, nano_usd=5),)),
            "what its provider said",
        ),
        (record_of(cost_nano_usd=5, charges=(Charge(bucket="new", quantity=1, nano_usd=5),)), "not known (new)"),
        (record_of(cost_nano_usd=5, charges=(Charge(bucket="page", quantity=1, nano_usd=5),)), "lacks some"),
        (at_another_price(("tiered", TokenUsage(input=300_000)), api="anthropic.batches"), "size of each prompt"),
        (at_another_price(("tiered", TokenUsage(input=300_000, largest_prompt=150_000))), "size of each prompt"),
        (at_another_price(("tiered", TokenUsage(input=300_000))), "size of each prompt"),
    ],
)
def test_it_says_why_a_call_cannot_be_priced_again(record: UsageRecord, why: str) -> None:
    with pytest.raises(Unpriceable) as told:
        price_again(record, AT)
    assert why in str(told.value)


@pytest.mark.parametrize("api", ["openai.chat", "anthropic.batches"])
@pytest.mark.parametrize("largest", [0, 150_000, 250_000])
def test_a_sum_of_prompts_of_any_size_costs_what_it_was_charged_at_unchanged_prices(largest: int, api: str) -> None:
    record = record_of(("tiered", TokenUsage(input=300_000, output=7, largest_prompt=largest)), api=api)
    assert price_again(record, AT) == record.cost_nano_usd


def test_a_batch_is_priced_again_where_the_size_of_a_prompt_does_not_matter() -> None:
    record = record_of(("tiered", TokenUsage(input=150_000)), api="anthropic.batches")
    assert price_again(record, AT) == record.cost_nano_usd


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({"requested_model": "alias", "served_model": "plain"}, "alias"),
        ({"requested_model": "alias", "served_model": "plain", "fallback_reason": "budget"}, "plain"),
        ({"requested_model": "unheard-of", "served_model": "plain"}, "plain"),
        ({"requested_model": "plain", "served_model": "unheard-of"}, "plain"),
    ],
)
def test_the_price_is_chosen_as_it_was_when_the_call_was_charged(fields: dict[str, str], model: str) -> None:
    usage = TokenUsage(input=1000, output=10)
    price = BOOK.find(model)
    assert price is not None
    assert price_again(record_of(("plain", usage), **fields), AT) == price.charge(usage).nano_usd


def stopped(now_s: float) -> Clock:
    clock = Clock()
    clock.now_s = now_s
    return clock


def test_a_price_of_the_catalogue_is_the_one_of_the_calls_moment() -> None:
    """DeepSeek's nights were cheaper: repriced at noon, a night's call still costs what nights did."""
    moments = [NOW_S - 400 * 86_400 + hour * 1800 for hour in range(48)]
    usage = TokenUsage(input=1_000_000, output=1_000_000)
    seen = set()
    for asked_s in (moments[0], moments[20]):
        at = PricesAt(PriceBook(clock=stopped(asked_s)).find, lambda: NOW_S)
        for moment_s in (*moments, *reversed(moments)):
            then = PriceBook(clock=stopped(moment_s)).find("deepseek-chat", provider="deepseek")
            found = at("deepseek-chat", "deepseek", None, moment_s)
            assert then is not None
            assert found is not None
            assert found.charge(usage) == then.charge(usage)
            seen.add(then.charge(usage).nano_usd)
    assert len(seen) == 2
