from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.currency import RATE_VARIABLE
from askii_middleware.errors import ConfigurationError, UnknownModelError
from askii_middleware.pricing import MAX_CACHED, ModelPrice, PriceBook, PricingConfig, cost_per_token
from askii_middleware.usage import TokenUsage

AT = 1_795_305_600.0
"""2026-11-22T00:00:00Z."""


def book(**options: Any) -> PriceBook:
    return PriceBook(clock=lambda: AT, **options)


def per_input_token(found: Any) -> int | None:
    """Nano-USD for one input token."""
    return None if found is None else found.charge(TokenUsage(input=1)).nano_usd


def test_a_public_model_has_its_catalogue_price_and_limits() -> None:
    price = book().find("gpt-4o-mini", provider="openai")
    assert price is not None
    assert (price.model, price.provider, price.explicit, price.free) == ("gpt-4o-mini", "openai", False, False)
    assert (price.context_window, price.max_output_tokens) == (128_000, 16_384)
    assert price.charge(TokenUsage(input=748, cache_read=64, output=95)).nano_usd == 174_000


def test_the_same_question_gets_the_same_object() -> None:
    prices = book()
    assert prices.find("gpt-4o") is prices.find("gpt-4o")
    assert prices.find("gpt-4o", service_tier="default") is prices.find("gpt-4o", service_tier="default")


def test_a_price_given_for_a_name_wins_over_the_catalogue_under_any_spelling() -> None:
    prices = book(prices={"OpenAI/GPT-4o": ModelPrice(input_usd_per_mtok=1)})
    for name in ("gpt-4o", "GPT-4O", "azure/gpt-4o", "openai/gpt-4o"):
        price = prices.find(name, provider="azure")
        assert price is not None
        assert price.explicit
        assert price.charge(TokenUsage(input=1)).nano_usd == 1000
    assert per_input_token(prices.find("gpt-4o-mini")) == 150


def test_a_dated_name_takes_its_familys_price_unless_it_has_its_own() -> None:
    prices = book(
        prices={
            "gpt-4o": ModelPrice(input_usd_per_mtok=1),
            "gpt-4o-2024-11-20": ModelPrice(input_usd_per_mtok=2),
        }
    )
    assert per_input_token(prices.find("gpt-4o-2024-08-06")) == 1000
    assert per_input_token(prices.find("azure/gpt-4o-2024-11-20")) == 2000
    assert prices.family_of("gpt-4o-2024-08-06") == "gpt-4o"
    assert prices.family_of("gpt-4o-2024-11-20") == "gpt-4o-2024-11-20"


def test_where_several_providers_are_priced_the_calls_own_decides() -> None:
    pricing = PricingConfig(azure={"m": {"input": "0.001"}}, google={"m": {"input": "0.002"}})
    prices = book(config=pricing, prices={"bedrock/m": ModelPrice(input_usd_per_mtok=3)})
    assert per_input_token(prices.find("m", provider="azure")) == 1000
    assert per_input_token(prices.find("vertex_ai/m", provider="azure")) == 2000
    assert per_input_token(prices.find("m", provider="bedrock")) == 3000
    assert per_input_token(prices.find("m", provider="openai")) == 3000  # the first given
    prices = book(config=pricing, prices={"m": ModelPrice(input_usd_per_mtok=4)})
    assert per_input_token(prices.find("m", provider="openai")) == 4000  # one without a provider
    assert per_input_token(prices.find("m", provider="azure")) == 1000


def test_prices_by_model_come_before_the_guides_form() -> None:
    pricing = PricingConfig(openai={"m": {"input": "0.001"}})
    prices = book(config=pricing, prices={"m": ModelPrice(input_usd_per_mtok=7, provider="openai")})
    assert per_input_token(prices.find("m", provider="openai")) == 7000


def test_a_name_priced_twice_is_an_error() -> None:
    price = ModelPrice(input_usd_per_mtok=1)
    with pytest.raises(ConfigurationError, match="'GPT-4O' has two prices"):
        book(prices={"gpt-4o": price, "GPT-4O": price})
    with pytest.raises(ConfigurationError, match="two prices for azure"):
        book(prices={"azure/gpt-4o": price, "azure_ai/gpt-4o": price})


def test_a_price_without_an_amount_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="'m' has no amount; a free model"):
        book(prices={"m": ModelPrice(context_window=100)})


def test_an_alias_shares_the_price_of_its_model_unless_it_has_its_own() -> None:
    aliases = {"Prod-Chat": "azure/gpt-4o-mini", "cheap": "gpt-4o-mini"}
    prices = book(aliases=aliases, prices={"cheap": ModelPrice(input_usd_per_mtok="0.01")})
    found = prices.find("prod-chat", provider="openai")
    assert found is not None
    assert (found.model, found.provider) == ("gpt-4o-mini", "azure")
    assert per_input_token(prices.find("cheap")) == 10
    assert per_input_token(prices.find("gpt-4o-mini")) == 150
    assert prices.canonical("azure/PROD-chat") == "gpt-4o-mini"
    assert prices.family_of("prod-chat") == "gpt-4o-mini"


def test_an_unknown_model_has_no_price_and_is_asked_for_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = book()
    assert prices.find("no-such-model") is None
    monkeypatch.setattr("askii_middleware.catalogue.locate", lambda *_: pytest.fail("asked again"))
    assert prices.find("no-such-model") is None


def test_an_overlong_name_has_no_price_and_is_not_remembered() -> None:
    prices = book()
    assert prices.find("gpt-4o" + "x" * 300) is None
    assert not prices._unknown


def test_names_that_clients_invent_fill_bounded_caches_and_do_not_push_out_known_ones() -> None:
    prices = book(prices={"m": ModelPrice(input_usd_per_mtok=1)})
    known = prices.find("m")
    for number in range(MAX_CACHED + 50):
        assert prices.find(f"ollama/invented-{number}") is None
    assert len(prices._unknown) == MAX_CACHED
    for number in range(50):
        assert prices.find("m", service_tier=f"invented-{number}") is known
    assert len(prices._known) == 1
    for number in range(MAX_CACHED + 50):
        prices.find("m", provider=f"upstream-{number}")
    assert len(prices._known) == MAX_CACHED


@pytest.mark.parametrize("tier", [None, "", "default", "standard", "auto", "Standard", "scale", "something-new"])
def test_tiers_without_prices_of_their_own_have_the_base_price(tier: str | None) -> None:
    assert per_input_token(book().find("gpt-5", service_tier=tier)) == 1250


@pytest.mark.parametrize(("tier", "nano"), [("flex", 625), ("FLEX", 625), ("priority", 2500), ("batch", 625)])
def test_a_served_tier_has_its_own_price(tier: str, nano: int) -> None:
    # developers.openai.com/api/docs/pricing, 2026-11: gpt-5 at 1.25, flex and batch half, priority double.
    assert per_input_token(book().find("gpt-5", service_tier=tier)) == nano


def test_a_tier_of_the_users_own_price_needs_no_fixed_name() -> None:
    price = ModelPrice(input_usd_per_mtok=2, service_tiers={"Night": {"input_usd_per_mtok": 1}})
    prices = book(prices={"m": price})
    assert per_input_token(prices.find("m", service_tier="night")) == 1000
    assert per_input_token(prices.find("m", service_tier="NIGHT")) == 1000
    assert per_input_token(prices.find("m", service_tier="flex")) == 2000


def test_a_price_by_the_hour_changes_at_its_hour() -> None:
    # deepseek-chat was dearer from 00:30 to 16:30 UTC (api-docs.deepseek.com/quick_start/pricing).
    now = [AT]
    prices = PriceBook(clock=lambda: now[0])
    seen = []
    for minutes in (0, 29, 30, 60, 16 * 60 + 29, 16 * 60 + 30, 24 * 60 + 29, 24 * 60 + 30):
        now[0] = AT + minutes * 60
        seen.append(per_input_token(prices.find("deepseek-chat")))
    assert seen == [135, 135, 270, 270, 270, 135, 135, 270]


def test_a_price_by_the_date_changes_at_midnight_utc() -> None:
    # Google announced new prices for gemini-3.8-flash-lite-tts from 2027-01-01.
    now = [1_798_761_600.0 - 1]
    prices = PriceBook(clock=lambda: now[0])
    before = per_input_token(prices.find("gemini-3.8-flash-lite-tts", service_tier="flex"))
    now[0] += 1
    after = per_input_token(prices.find("gemini-3.8-flash-lite-tts", service_tier="flex"))
    assert (before, after) == (250, 500)


def test_the_version_names_the_catalogue_and_digests_what_the_user_gave() -> None:
    plain = book().version
    assert plain.startswith("genai-prices 0.")
    assert "+" not in plain
    one = book(prices={"m": ModelPrice(input_usd_per_mtok=1)})
    same = book(prices={"M": ModelPrice(input_usd_per_mtok="1")})
    other = book(prices={"m": ModelPrice(input_usd_per_mtok=2)})
    assert one.version == same.version == one.version
    assert one.version.startswith(f"{plain}+")
    assert len({plain, one.version, other.version, book(aliases={"a": "b"}).version}) == 4


def test_the_version_follows_a_change_of_prices() -> None:
    pricing = PricingConfig()
    prices = book(config=pricing)
    prices.warm()
    before = prices.version
    pricing.openai["m"] = {"input": 1}
    assert prices.version != before
    del pricing.openai["m"]
    assert prices.version == before


def test_reading_the_prices_imports_no_catalogue_until_a_name_is_asked_for() -> None:
    code = (
        "import sys; from askii_middleware.pricing import PriceBook; b = PriceBook(); b.version\n"
        "assert 'genai_prices' not in sys.modules\n"
        "b.warm()\n"
        "assert 'genai_prices' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_cost_per_token_is_in_coins_at_the_current_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RATE_VARIABLE, raising=False)
    # gpt-3.5-turbo: 0.50 and 1.50 USD per million (developers.openai.com, 2026-11)
    assert cost_per_token("gpt-3.5-turbo", 100, 50) == 125.0
    assert cost_per_token(model="gpt-4o-mini", prompt_tokens=1, completion_tokens=0) == 0.15
    monkeypatch.setenv(RATE_VARIABLE, "1000")
    assert cost_per_token("gpt-3.5-turbo", 100, 50) == 0.125


def test_cost_per_token_knows_the_parts_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RATE_VARIABLE, raising=False)
    assert cost_per_token("gpt-4o-mini", 812, 95, cached_tokens=64) == 174.0
    assert cost_per_token("gpt-4o-mini", 812, 95, cache_read_tokens=64) == 174.0
    assert cost_per_token("claude-sonnet-4-5", 100, 0, cache_write_tokens=100) == 375.0
    assert cost_per_token("gpt-5", 0, 10, reasoning_tokens=10) == 100.0
    assert cost_per_token("gpt-5", 100, 0, service_tier="flex") == 62.5
    assert cost_per_token("gpt-realtime", 10, 10, audio_input_tokens=10, audio_output_tokens=10) == 960.0
    assert cost_per_token("openai/gpt-oss-120b", 100, 0, provider="groq") == 15.0


def test_cost_per_token_takes_prices_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RATE_VARIABLE, raising=False)
    assert cost_per_token("mine", 10, 5, input_cost_per_token=0.00002, output_cost_per_token="0.00004") == 400.0
    assert cost_per_token("mine", 10, 5, input_cost_per_token=0, output_cost_per_token=0) == 0.0
    with pytest.raises(UnknownModelError, match="mine"):
        cost_per_token("mine", 10, 5, input_cost_per_token=0.00002)
    with pytest.raises(ConfigurationError, match="input_cost_per_token"):
        cost_per_token("mine", 10, 5, input_cost_per_token=-1)


def test_cost_per_token_refuses_what_it_cannot_price() -> None:
    with pytest.raises(UnknownModelError):
        cost_per_token("no-such-model", 1, 1)
    with pytest.raises(UnknownModelError):
        cost_per_token("text-embedding-3-small", 10, 1)  # an embedding has no output price
    wrong: list[dict[str, Any]] = [
        {"prompt_tokens": -1, "completion_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": -1},
        {"prompt_tokens": 5, "completion_tokens": 0, "cached_tokens": -1},
        {"prompt_tokens": 5, "completion_tokens": 0, "cached_tokens": 6},
        {"prompt_tokens": 5, "completion_tokens": 0, "reasoning_tokens": 1},
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"negative|whole"):
            cost_per_token("gpt-4o", **arguments)
    mistaken: list[dict[str, Any]] = [
        {"prompt_tokens": 1.5, "completion_tokens": 0},
        {"prompt_tokens": 1, "completion_tokens": 0, "tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 0, "cached_tokens": 0, "cache_read_tokens": 0},
    ]
    for arguments in mistaken:
        with pytest.raises(TypeError):
            cost_per_token("gpt-4o", **arguments)


@pytest.mark.parametrize(
    ("model", "tier"), [("gpt-5", "flex"), ("o3", "flex"), ("gpt-4o", "batch"), ("gpt-4o", "priority")]
)
def test_a_hold_covers_the_base_tier_where_the_tier_asked_for_is_not_served(model: str, tier: str) -> None:
    prices = book()
    asked, base = prices.find(model, service_tier=tier), prices.find(model)
    assert asked is not None
    assert base is not None
    used = TokenUsage(input=1000, output=1000)
    holds = asked.hold(1000, 1000)
    assert holds >= base.charge(used).nano_usd
    assert holds >= asked.charge(used).nano_usd
    assert asked.charge(used).nano_usd != base.charge(used).nano_usd


def test_a_hold_at_a_cheap_tier_of_the_users_own_price_covers_its_base_price() -> None:
    own = ModelPrice(input_usd_per_mtok=2, output_usd_per_mtok=8, service_tiers={"flex": {"output_usd_per_mtok": 4}})
    price = book(prices={"m": own}).find("m", service_tier="flex")
    assert price is not None
    assert price.charge(TokenUsage(output=10)).nano_usd == 40_000
    assert price.hold(1, 10) == 82_000
