"""Every family of models that the catalogue knows of Amazon has its price under the names that Bedrock's paths hold."""

from __future__ import annotations

import pytest

from askii_middleware.pricing import PriceBook

PROFILE = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/"
MODEL = "arn:aws:bedrock:us-east-1::foundation-model/"


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", "regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", "global.anthropic.claude-haiku-4-5-20251001-v1:0"),
        (f"{PROFILE}us.anthropic.claude-haiku-4-5-20251001-v1:0", "regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        (f"{MODEL}anthropic.claude-3-5-sonnet-20241022-v2:0", "regional.anthropic.claude-3-5-sonnet-20241022-v2:0"),
        (f"{MODEL}amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("apac.amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
        ("us.amazon.nova-2-lite-v1:0", "regional.amazon.nova-2-lite-v1:0"),
        ("amazon.titan-text-lite-v1", "amazon.titan-text-lite-v1"),
        ("amazon.titan-embed-text-v2:0", "amazon.titan-embed-text-v2:0"),
        ("us.meta.llama4-scout-17b-instruct-v1:0", "meta.llama4-scout-17b-instruct-v1:0"),
        ("mistral.mistral-7b-instruct-v0:2", "mistral.mistral-7b-instruct-v0:2"),
        ("us.mistral.pixtral-large-2502-v1:0", "mistral.pixtral-large-2502-v1:0"),
        ("us.deepseek.r1-v1:0", "deepseek.r1-v1:0"),
        ("openai.gpt-oss-120b-1:0", "openai.gpt-oss-120b-1:0"),
        ("us.openai.gpt-6-sol", "regional.openai.gpt-6-sol"),
        ("qwen.qwen3-32b-v1:0", "qwen.qwen3-32b-v1:0"),
        ("google.gemma-3-27b-it", "google.gemma-3-27b-it"),
        ("writer.palmyra-x4-v1:0", "writer.palmyra-x4-v1:0"),
        ("moonshotai.kimi-k3", "regional.moonshotai.kimi-k3"),
    ],
)
def test_a_name_in_a_path_finds_amazon_s_price(name: str, entry: str) -> None:
    price = PriceBook().find(name, provider="aws")
    assert price is not None
    assert (price.model, price.provider) == (entry, "aws")


@pytest.mark.parametrize(
    "name", ["cohere.command-r-v1:0", "ai21.jamba-1-5-large-v1:0", f"{PROFILE[:-18]}provisioned-model/abcdefghijkl"]
)
def test_what_the_catalogue_does_not_know_of_amazon_has_no_price_of_another(name: str) -> None:
    assert PriceBook().find(name, provider="aws") is None
