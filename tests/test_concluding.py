"""Which price charges what: the provider and tier that served, and models that price no text."""

from __future__ import annotations

import pytest

from askii_middleware import Budget, CostTracker, ModelPrice, UnknownModelError
from askii_middleware.assembly import tracker_from_settings
from askii_middleware.calls import CallSpec
from askii_middleware.identity import Identity
from askii_middleware.settings import Settings
from askii_middleware.settling import Ending
from askii_middleware.usage import Report, TokenUsage

ACME = Identity(tenant="acme")
MILLION = TokenUsage(input=1_000_000)


def chat(model: str, **fields: object) -> CallSpec:
    return CallSpec(model=model, api="openai.chat", provider="openai", output_tokens=10, **fields)  # type: ignore[arg-type]


async def charge(tracker: CostTracker, spec: CallSpec, served: str, tier: str | None = None) -> int:
    call = await tracker.admit(ACME, spec)
    report = Report(usage=MILLION, model=served, service_tier=tier, finished=True)
    conclusion = tracker.concluder.conclude(call, report, Ending(status=200, complete=True))
    await tracker.close_call(call, conclusion)
    return conclusion.billed.nano_usd


async def test_the_served_model_is_priced_at_the_provider_that_was_admitted() -> None:
    async with CostTracker(store="memory://") as tracker:
        # Groq answers without its prefix; the same name costs less elsewhere.
        assert await charge(tracker, chat("groq/openai/gpt-oss-120b"), "openai/gpt-oss-120b") == 150_000_000


async def test_an_upstreams_provider_decides_whose_price_a_model_has() -> None:
    settings = Settings(
        store="memory://",
        upstreams={
            "groq": {"url": "https://example.invalid/v1", "models": ["llama-*", "openai/gpt-oss-*"]},
            "openai": {"url": "https://example.invalid/v1", "models": ["gpt-*"]},
        },
    )
    tracker = tracker_from_settings(settings)
    async with tracker:
        assert await charge(tracker, chat("openai/gpt-oss-120b"), "openai/gpt-oss-120b") == 150_000_000
        assert await charge(tracker, chat("gpt-4o"), "gpt-4o-2024-11-20") == 2_500_000_000


async def test_an_explicit_price_without_a_reported_tier_is_charged_at_its_base() -> None:
    price = ModelPrice(input_usd_per_mtok=2, output_usd_per_mtok=4, service_tiers={"flex": {"input_usd_per_mtok": 1}})
    async with CostTracker(store="memory://", prices={"own": price}) as tracker:
        assert await charge(tracker, chat("own", service_tier="flex"), "own") == 2_000_000_000
        assert await charge(tracker, chat("own", service_tier="flex"), "own", "flex") == 1_000_000_000


@pytest.mark.parametrize("model", ["tts-1", "whisper-1"])
async def test_a_model_that_prices_no_text_has_no_price_for_text(model: str) -> None:
    async with CostTracker(store="memory://", budgets=[Budget(scope="tenant=*", limit_usd=1)]) as tracker:
        with pytest.raises(UnknownModelError):
            await tracker.admit(ACME, chat(model))


async def test_above_downgrade_at_fallbacks_come_first() -> None:
    tracker = CostTracker(
        store="memory://",
        budgets=[Budget(scope="tenant=*", limit_usd=10)],
        fallbacks={"gpt-4o": ["gpt-4o-mini"]},
        downgrade_at=0.2,
    )
    async with tracker:
        assert (await tracker.admit(ACME, chat("gpt-4o"))).model == "gpt-4o"
        assert await charge(tracker, chat("gpt-4o"), "gpt-4o") == 2_500_000_000
        moved = await tracker.admit(ACME, chat("gpt-4o"))
        assert (moved.model, moved.fallback_reason) == ("gpt-4o-mini", "budget")
