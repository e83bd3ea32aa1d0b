"""`MODEL_PRICING` and `PricingConfig`: prices per 1,000 tokens that count at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from askii_middleware import get_cost_tracker
from askii_middleware.compat import MODEL_PRICING, CostTracker, PricingConfig, cost_tracker
from askii_middleware.errors import ConfigurationError, UnknownModelError
from askii_middleware.model_price import ModelPrice


def test_a_price_counts_from_the_moment_it_is_set() -> None:
    assert MODEL_PRICING["gpt-4"] == {"input": 0.03, "output": 0.06}
    MODEL_PRICING["gpt-4"] = {"input": 0.01, "output": 0.02}
    assert cost_tracker.calculate_cost("GPT-4", 1000, 1000) == 0.03
    assert cost_tracker.record_usage("k", "gpt-4", input_tokens=1000).cost_nano_usd == 10_000_000
    del MODEL_PRICING["gpt-4"]
    assert cost_tracker.calculate_cost("gpt-4", 1000, 1000) == 0.09
    assert cost_tracker.get_spend("k").total_cost == 0.01


def test_it_lists_what_was_set_and_finds_what_has_a_price() -> None:
    assert (list(MODEL_PRICING), "gpt-4" in MODEL_PRICING, "no-such-model" in MODEL_PRICING) == ([], True, False)
    MODEL_PRICING.update({"mine": {"input": 0.001, "output": 0.002}, "gpt-4": {"input": 0.5, "output": 0.5}})
    assert dict(MODEL_PRICING) == {
        "gpt-4": {"input": 0.5, "output": 0.5},
        "mine": {"input": 0.001, "output": 0.002},
    }
    assert (len(MODEL_PRICING), "mine" in repr(MODEL_PRICING)) == (2, True)
    with pytest.raises(KeyError):
        MODEL_PRICING["no-such-model"]
    with pytest.raises(KeyError):
        del MODEL_PRICING["no-such-model"]


def test_the_middlewares_tracker_has_the_price_too() -> None:
    MODEL_PRICING["claude-mine"] = {"input": 0.004, "output": 0.008}
    price = get_cost_tracker().price_of("claude-mine")
    assert price is not None
    assert price.usd_per_mtok("input") == 4
    MODEL_PRICING["claude-mine"] = {"input": 0.005, "output": 0.008}
    assert get_cost_tracker().price_of("claude-mine").usd_per_mtok("input") == 5  # type: ignore[union-attr]


def test_a_price_belongs_to_its_models_provider() -> None:
    for model, provider in (("gpt-4", "openai"), ("anthropic/mine", "anthropic"), ("home-made", "local")):
        MODEL_PRICING[model] = {"input": 0.1, "output": 0.1}
        price = cost_tracker.tracker.price_of(model)
        assert price is not None
        assert price.provider == provider


def test_a_price_that_the_configuration_would_hide_is_refused() -> None:
    Path("askii.toml").write_text(
        '[pricing."mine"]\ninput_usd_per_mtok = 7\noutput_usd_per_mtok = 7\nprovider = "local"\n'
    )
    with pytest.raises(ConfigurationError, match="comes before"):
        MODEL_PRICING["mine"] = {"input": 0.1, "output": 0.1}
    assert cost_tracker.calculate_cost("mine", 1_000_000, 0) == 7
    assert list(MODEL_PRICING) == []


def test_a_price_set_at_run_time_comes_before_too() -> None:
    cost_tracker.run(
        lambda core: core.price_desk.set({"gpt-4": ModelPrice(input_usd_per_mtok=1, output_usd_per_mtok=1)})
    )
    assert MODEL_PRICING["gpt-4"] == {"input": 0.001, "output": 0.001}
    with pytest.raises(ConfigurationError, match="comes before"):
        MODEL_PRICING["gpt-4"] = {"input": 0.1, "output": 0.1}


@pytest.mark.parametrize("wrong", [{"input": -1}, {"input": "cheap"}, {"in": 1}, {}, 3, {"input": 2, "output": 2}])
def test_a_wrong_price_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="mine"):
        MODEL_PRICING["mine"] = wrong  # type: ignore[assignment]
    assert "mine" not in MODEL_PRICING


def test_prices_of_one_tracker_are_not_those_of_another() -> None:
    pricing = PricingConfig()
    pricing.openai["mine"] = {"input": 0.02, "output": 0.04}
    own = CostTracker(pricing)
    assert own.calculate_cost("mine", 1000, 1000) == 0.06
    pricing.openai["mine"] = {"input": 0.01, "output": 0.04}
    assert own.calculate_cost("mine", 1000, 1000) == 0.05
    with pytest.raises(UnknownModelError):
        cost_tracker.calculate_cost("mine", 1, 1)


def test_a_tracker_with_prices_of_its_own_has_the_same_ledger() -> None:
    own = CostTracker(PricingConfig(openai={"mine": {"input": 0.02, "output": 0.04}}))
    own.record_usage("k", "mine", input_tokens=1000)
    assert cost_tracker.get_spend("k").total_cost == 0.02
    own.close()
