"""The catalogue's prices, with `genai_prices` itself as the oracle."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from math import inf
from typing import Any

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider

from askii_middleware import catalogue
from askii_middleware.catalogue import Entry, locate, price_of
from askii_middleware.price import Price
from askii_middleware.pricing import PriceBook
from askii_middleware.records import Charge
from askii_middleware.usage import TokenUsage

AT = 1_795_305_600.0
"""2026-11-22T00:00:00Z."""

COUNTED = (
    "input", "cache_read", "cache_write", "cache_write_1h", "input_audio", "cache_read_audio", "input_image",
    "cache_read_image", "output", "reasoning", "output_audio", "output_image", "web_search", "page", "character",
    "second",
)  # fmt: skip
"""All but `request`, which the oracle always counts as one."""

MODELS = [(provider, model) for provider in get_snapshot().providers for model in provider.models]


def random_usage(rng: random.Random) -> TokenUsage:
    counts: dict[str, Any] = {name: rng.choice((0, rng.randrange(1, 1000), rng.randrange(400_000))) for name in COUNTED}
    return TokenUsage(**{**counts, "input": counts["input"] or 1})


def oracle(provider: Provider, model: ModelInfo, usage: TokenUsage, at_s: float, service_tier: str | None) -> int:
    """Nano-USD by the catalogue's own arithmetic, rounded half-even. Video, citations, other searches and annotated
    pages have no bucket here, so they are 0 on both sides.
    """
    theirs = Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h,
        input_audio_tokens=usage.audio_input_tokens,
        cache_audio_read_tokens=usage.cache_read_audio,
        input_image_tokens=usage.input_image + usage.cache_read_image,
        cache_image_read_tokens=usage.cache_read_image,
        input_video_tokens=0,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning,
        output_audio_tokens=usage.output_audio,
        output_image_tokens=usage.output_image,
        output_video_tokens=0,
        output_citation_tokens=0,
        web_searches=usage.web_search,
        storage_searches=0,
        input_text_messages=0,
        input_document_pages=usage.page,
        input_annotated_document_pages=0,
        input_characters=usage.character,
        audio_seconds=usage.second,
        input_audio_seconds=usage.second,
    )
    context = dict.fromkeys(("service_tier", "processing", "speed"), service_tier) if service_tier else None
    at = datetime.fromtimestamp(at_s, UTC)
    price = model.calc_price(theirs, provider, genai_request_timestamp=at, price_context=context).total_price
    return int((price * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


def test_every_model_of_the_catalogue_costs_what_the_catalogue_says() -> None:
    rng = random.Random(20261122)
    compared = unpriced = 0
    for provider, model in MODELS:
        listed, _ = price_of(Entry(provider, model), None, AT)
        if listed is None:
            unpriced += 1
            continue
        price = Price(model.id, listed)
        for _ in range(2):
            usage = random_usage(rng)
            assert price.charge(usage).nano_usd == oracle(provider, model, usage, AT, None), (provider.id, model.id)
            compared += 1
    assert compared > 4400
    assert unpriced < 30


@pytest.mark.parametrize("tier", ["flex", "priority", "batch", "fast"])
def test_every_served_tier_costs_what_the_catalogue_says(tier: str) -> None:
    rng = random.Random(tier)
    differs = 0
    for provider, model in MODELS:
        if not model.price_variants:
            continue
        base, _ = price_of(Entry(provider, model), None, AT)
        listed, _ = price_of(Entry(provider, model), tier, AT)
        assert base is not None
        assert listed is not None
        differs += listed != base
        usage = random_usage(rng)
        expected = oracle(provider, model, usage, AT, tier)
        assert Price(model.id, listed).charge(usage).nano_usd == expected, (provider.id, model.id)
    assert differs >= 5


def test_every_dated_or_hourly_price_holds_exactly_until_it_changes() -> None:
    rng = random.Random(7)
    changes = 0
    for provider, model in MODELS:
        if isinstance(model.prices, list):
            at_s = 1_735_689_600.0  # 2025-01-01
            for _ in range(12):
                listed, until_s = price_of(Entry(provider, model), None, at_s)
                for moment in {at_s, min(until_s - 1, at_s + rng.randrange(10**6))}:
                    if listed is not None:
                        usage = random_usage(rng)
                        charged = Price(model.id, listed).charge(usage).nano_usd
                        assert charged == oracle(provider, model, usage, moment, None), (model.id, moment)
                if until_s == inf:
                    break
                assert until_s > at_s
                at_s = until_s
                changes += 1
    assert changes > 100


def test_every_model_that_the_catalogue_finds_by_its_identifier_is_found_here_too() -> None:
    missed = []
    for provider, model in MODELS:
        expected = provider.find_model(model.id, all_providers=get_snapshot().providers)
        if expected is None:
            continue  # an identifier that is not itself a name of the model
        entry = locate(model.id, provider.id)
        if entry is None or entry.model is not expected:
            missed.append((provider.id, model.id))
    assert missed == []


@pytest.mark.parametrize(
    ("name", "hint", "provider", "model"),
    [
        ("gpt-4o", None, "openai", "gpt-4o"),
        ("gpt-4o", "azure", "azure", "gpt-4o"),
        ("azure/gpt-4o", "openai", "azure", "gpt-4o"),
        ("o3", "my-upstream", "openai", "o3"),
        ("gpt-4o", "openai-eu", "openai", "gpt-4o"),
        ("amazon.nova-pro-v1:0", "amazon-eu", "aws", "amazon.nova-pro-v1:0"),
        ("claude-3-5-sonnet-20241022", "openai", "anthropic", "claude-3-5-sonnet"),
        ("claude-3-haiku-20240307", "azure", "azure", "claude-3-haiku"),
        ("vertex_ai/claude-3-5-sonnet@20240620", None, "google", "claude-3-5-sonnet"),
        ("models/gemini-2.5-pro", None, "google", "gemini-2.5-pro"),
        ("mistral-large-latest", "openai", "mistral", "mistral-large"),
        ("grok-4-0709", "xai", "x-ai", "grok-4-0709"),
        ("gpt-4o-2099-01-01", None, "openai", "gpt-4o"),
        ("gpt-5.2-20251211", None, "openai", "gpt-5.2"),
        (
            "us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "openai",
            "aws",
            "regional.anthropic.claude-haiku-4-5-20251001-v1:0",
        ),
        ("bedrock/amazon.nova-pro-v1:0", None, "aws", "amazon.nova-pro-v1:0"),
        ("openai/gpt-oss-120b", "groq", "groq", "openai/gpt-oss-120b"),
        ("groq/openai/gpt-oss-120b", None, "groq", "openai/gpt-oss-120b"),
        ("openai/gpt-oss-120b", "openai", "openai", "gpt-oss-120b"),
        ("anthropic/claude-3.5-sonnet", "openrouter", "openrouter", "anthropic/claude-3.5-sonnet"),
        ("perplexity/sonar", None, "perplexity", "sonar"),
        ("perplexity/sonar", "perplexity", "perplexity", "perplexity/sonar"),
    ],
)
def test_prefix_then_hint_then_the_look_of_the_name_decide(
    name: str, hint: str | None, provider: str, model: str
) -> None:
    entry = locate(name, hint)
    assert entry is not None
    assert (entry.provider.id, entry.name) == (provider, model)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("no-such-model", None),
        ("no-such-model", "openai"),
        ("", None),
        ("meta-llama/llama-3.3-70b-instruct", None),  # many hosts, many prices
        ("gpt-4o-but-mine", "openrouter"),  # a host lists what it sells
        ("groq/gpt-4o", None),
        ("ollama/llama3", None),
        ("local/gpt-4o", None),
        ("deepseek-r1:7b", "ollama"),  # not DeepSeek's own price for a model on one's own machine
        ("gpt-4o", "vllm"),
    ],
)
def test_what_nobody_lists_for_this_call_is_not_found(name: str, hint: str | None) -> None:
    assert locate(name, hint) is None


def test_a_model_listed_without_prices_is_not_free() -> None:
    for name in ("github_copilot/gpt-4o", "github_copilot/gpt-4.1"):
        entry = locate(name)
        assert entry is not None
        assert price_of(entry, None, AT)[0] is None
        assert PriceBook().find(name) is None


def test_a_model_whose_name_says_free_is() -> None:
    price = PriceBook().find("openrouter/deepseek/deepseek-chat:free")
    assert price is not None
    assert price.free


def test_tiers_of_the_maker_do_not_apply_at_a_cloud() -> None:
    flex = PriceBook().find("gpt-5", provider="azure", service_tier="flex")
    base = PriceBook().find("gpt-5", provider="azure")
    assert flex is not None
    assert base is not None
    assert flex.charge(TokenUsage(input=1)) == base.charge(TokenUsage(input=1))


def test_the_shortest_billed_transcription_is_the_hosts() -> None:
    price = PriceBook().find("whisper-large-v3", provider="groq")
    assert price is not None
    # 0.111 USD per hour, for at least 10 seconds (console.groq.com/docs/speech-to-text)
    assert price.charge(TokenUsage(second=2)).nano_usd == price.charge(TokenUsage(second=10)).nano_usd == 308_333


def test_the_version_is_the_installed_ones() -> None:
    assert catalogue.version().split()[0] == "genai-prices"


@pytest.mark.parametrize("model", ["omni-moderation-latest", "text-moderation-stable"])
def test_moderation_at_openai_is_free_and_not_unpriced(model: str) -> None:
    price = PriceBook().find(model, provider="openai")
    assert price is not None
    assert price.free
    assert price.serves("moderation")
    assert price.charge(TokenUsage(request=1)) == (0, (Charge(bucket="request", quantity=1, nano_usd=0),), False)
