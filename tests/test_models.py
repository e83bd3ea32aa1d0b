from __future__ import annotations

import pytest

from askii_middleware.models import canonical, catalogue_provider, family, split_provider


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o", "gpt-4o"),
        ("GPT-4o", "gpt-4o"),
        (" gpt-4o ", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("azure/GPT-4o-2024-11-20", "gpt-4o-2024-11-20"),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("gemini/gemini-2.5-pro", "gemini-2.5-pro"),
        ("vertex_ai/claude-sonnet-4@20250514", "claude-sonnet-4@20250514"),
        ("publishers/google/models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("projects/p1/locations/eu/publishers/anthropic/models/claude-opus-4-1", "claude-opus-4-1"),
        ("bedrock/us.anthropic.claude-3-haiku-20240307-v1:0", "us.anthropic.claude-3-haiku-20240307-v1:0"),
        ("openrouter/anthropic/claude-3.5-sonnet", "claude-3.5-sonnet"),
        ("groq/openai/gpt-oss-120b", "gpt-oss-120b"),
        ("ollama/llama3:8b", "llama3:8b"),
    ],
)
def test_provider_prefixes_and_case_do_not_count(name: str, expected: str) -> None:
    assert canonical(name) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    "name",
    ["meta-llama/llama-3.3-70b-instruct", "mistralai/mixtral-8x7b", "openai/", "models/", "/", "", "projects/p1/x"],
)
def test_organisations_and_lone_prefixes_stay(name: str) -> None:
    assert canonical(name) == name


def test_an_organisation_stays_behind_a_host() -> None:
    assert canonical("openrouter/meta-llama/Llama-3.3-70B") == "meta-llama/llama-3.3-70b"


def test_aliases_are_applied_once_after_the_name_is_canonical() -> None:
    aliases = {"prod": "azure/GPT-4o", "gpt-4o": "gpt-5"}
    assert canonical("PROD", aliases) == "gpt-4o"
    assert canonical("azure/prod", aliases) == "gpt-4o"
    assert canonical("gpt-4o", aliases) == "gpt-5"
    assert canonical("other", aliases) == "other"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o-2024-11-20", "gpt-4o"),
        ("openai/GPT-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "anthropic.claude-3-5-sonnet"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("grok-4-0709", "grok-4"),
        ("deepseek-r1-0528", "deepseek-r1"),
        ("kimi-k2-0905", "kimi-k2"),
        ("gemini-2.5-pro-preview-05-06", "gemini-2.5-pro-preview"),
        ("mistral-large-2411", "mistral-large"),
        ("codestral-2508", "codestral"),
        ("open-mistral-nemo-2407", "open-mistral-nemo"),
    ],
)
def test_a_dated_name_belongs_to_its_family(name: str, expected: str) -> None:
    assert family(name) == expected
    assert family(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4o",
        "gpt-4o-2024-13-45",
        "gpt-4-1106-preview",
        "text-embedding-3-large",
        "gemini-2.0-flash-001",
        "claude-opus-4-1",
        "llama-3.3-70b",
        "custom-1234",
        "custom-0612",
        "mixtral-8x7b",
        "mistral-large-2413",
        "-latest",
        "-20240101",
    ],
)
def test_a_name_without_a_date_is_its_own_family(name: str) -> None:
    assert family(name) == name


def test_the_first_prefix_names_the_provider() -> None:
    assert split_provider("OpenRouter/anthropic/claude-3-opus") == ("openrouter", "anthropic/claude-3-opus")
    assert split_provider("bedrock/amazon.nova-pro-v1:0") == ("aws", "amazon.nova-pro-v1:0")
    assert split_provider("gpt-4o") == (None, "gpt-4o")
    assert split_provider("meta-llama/llama-3") == (None, "meta-llama/llama-3")
    assert catalogue_provider("Bedrock") == "aws"
    assert catalogue_provider("my-gateway") == "my-gateway"


def test_caches_of_names_are_bounded() -> None:
    for number in range(6000):
        family(f"openai/made-up-{number}")
    for cached in (family, split_provider):
        info = cached.cache_info()
        assert info.maxsize is not None
        assert info.currsize <= info.maxsize


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        ),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        (
            "ARN:aws-us-gov:bedrock:us-gov-west-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
            "anthropic.claude-3-haiku-20240307-v1:0",
        ),
    ],
)
def test_a_resource_name_of_amazon_s_own_models_is_the_model_s(name: str, expected: str) -> None:
    assert canonical(name) == expected
    assert split_provider(name) == ("aws", expected)


@pytest.mark.parametrize(
    "name",
    [
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdefghijkl",
        "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdefghijkl",
        "arn:aws:bedrock:us-east-1:123456789012:custom-model/anthropic.claude-3-haiku-20240307-v1:0:200k/abcdefghijkl",
        "arn:aws:bedrock:us-east-1::foundation-model/",
        "arn:",
    ],
)
def test_a_resource_name_that_its_owner_chose_stays_whole(name: str) -> None:
    assert canonical(name) == name
    assert split_provider(name) == (None, name)
