from __future__ import annotations

import pytest

from askii_middleware.output_limits import max_output_tokens


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o", 16_384),
        ("azure/GPT-4o-2024-11-20", 16_384),
        ("gpt-4o-2024-05-13", 4_096),
        ("gpt-4-0613", 8_192),
        ("gpt-5-mini-2025-08-07", 128_000),
        ("gpt-5-chat-latest", 16_384),
        ("o3", 100_000),
        ("claude-3-5-haiku-latest", 8_192),
        ("claude-sonnet-4-5-20250929", 64_000),
        ("claude-sonnet-4@20250514", 64_000),
        ("us.anthropic.claude-opus-4-1-20250805-v1:0", 32_000),
        ("openrouter/anthropic/claude-3.5-sonnet", 8_192),
        ("models/gemini-2.5-pro", 65_536),
    ],
)
def test_documented_maxima_are_found_by_name_or_family(model: str, tokens: int) -> None:
    assert max_output_tokens(model) == tokens


@pytest.mark.parametrize("model", ["", "llama-3.3-70b", "gpt-4o-mystery", "claude-9", "text-embedding-3-small"])
def test_a_name_that_no_maker_documents_has_none(model: str) -> None:
    assert max_output_tokens(model) is None
