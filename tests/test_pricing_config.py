from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError
from askii_middleware.pricing import PriceBook, PricingConfig
from askii_middleware.pricing_config import PROVIDERS
from askii_middleware.usage import TokenUsage


def test_the_guides_snippet_prices_a_custom_model_per_thousand_tokens() -> None:
    custom_pricing = PricingConfig()
    custom_pricing.openai["custom-model"] = {"input": 0.02, "output": 0.04}
    custom_pricing.local["custom-local"] = {"input": 0.0002, "output": 0.0002}
    book = PriceBook(custom_pricing)
    custom = book.find("custom-model")
    local = book.find("custom-local", provider="openai")
    assert custom is not None
    assert local is not None
    # 0.02 USD per 1,000 is 20 USD per million: 20,000 nano-USD per token
    assert custom.charge(TokenUsage(input=1000, output=1000)).nano_usd == 20_000_000 + 40_000_000
    assert local.charge(TokenUsage(input=3, output=2)).nano_usd == 5 * 200
    assert (custom.model, custom.provider, custom.explicit) == ("custom-model", "openai", True)


def test_cached_input_and_cache_writes_may_be_priced_too() -> None:
    pricing = PricingConfig(
        anthropic={"c": {"input": "0.003", "output": "0.015", "cached_input": "0.0003", "cache_write": "0.00375"}}
    )
    price = PriceBook(pricing).find("c")
    assert price is not None
    assert price.charge(TokenUsage(input=1, cache_read=1, cache_write=1, output=1)).nano_usd == (
        3000 + 300 + 3750 + 15_000
    )


def test_every_way_to_change_a_price_counts_at_once() -> None:
    pricing = PricingConfig()
    book = PriceBook(pricing)

    def cost() -> int | None:
        price = book.find("custom")
        return None if price is None else price.charge(TokenUsage(input=1)).nano_usd

    assert cost() is None
    pricing.local["custom"] = {"input": 1, "output": 1}
    assert cost() == 1_000_000
    pricing.local.update({"custom": {"input": 0.5}})
    assert cost() == 500_000
    entry: Any = pricing.local["custom"]
    entry["input"] = 0.25
    assert cost() == 250_000
    pricing.local = {"custom": {"input": 0.1}}
    assert cost() == 100_000
    before = book.version
    del pricing.local["custom"]
    assert cost() is None
    assert book.version != before


def test_free_is_said_with_zero() -> None:
    pricing = PricingConfig(local={"llama": {"input": 0, "output": 0}})
    price = PriceBook(pricing).find("ollama/llama")
    assert price is not None
    assert price.free


@pytest.mark.parametrize(
    "wrong",
    [{"input": -1}, {"input": "dear"}, {"inputs": 1}, {}, 5, None, {"input": 1.001}, {"input": float("nan")}],
)
def test_a_wrong_price_is_an_error_that_names_it_and_changes_nothing(wrong: Any) -> None:
    pricing = PricingConfig()
    with pytest.raises(ConfigurationError, match=r"pricing\.groq\['m'\]"):
        pricing.groq["m"] = wrong
    assert "m" not in pricing.groq
    with pytest.raises(ConfigurationError):
        PricingConfig(groq={"m": wrong})


def test_more_than_a_usd_per_thousand_tokens_needs_allow_high() -> None:
    pricing = PricingConfig(openai={"m": {"input": 2, "allow_high": True}})
    price = PriceBook(pricing).find("m")
    assert price is not None
    assert price.charge(TokenUsage(input=1)).nano_usd == 2_000_000


def test_unknown_providers_are_errors_that_list_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"pricing\.opnai: unknown provider; known are openai"):
        PricingConfig(opnai={})
    with pytest.raises(AttributeError, match="unknown provider"):
        PricingConfig().opnai = {}


def test_it_reads_like_dictionaries() -> None:
    pricing = PricingConfig(openai={"a": {"input": 1, "output": 1}})
    assert list(pricing.openai) == ["a"]
    assert len(pricing.openai) == 1
    assert pricing.openai["a"]["input"] == Decimal(1)
    assert repr(pricing.openai) == "{'a': {'input': Decimal('1'), 'output': Decimal('1')}}"
    assert [len(getattr(pricing, name)) for name in PROVIDERS] == [1] + [0] * (len(PROVIDERS) - 1)
    assert [(p, m) for p, m, _ in pricing.items()] == [("openai", "a")]
