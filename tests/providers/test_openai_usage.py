"""Usage of OpenAI's shapes in every dialect that gateways forward."""

from __future__ import annotations

from typing import Any

import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers.openai_common import openai_usage
from askii_middleware.usage import TokenUsage

DIALECTS: list[tuple[str, dict[str, Any], TokenUsage]] = [
    ("plain", {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24}, TokenUsage(input=8, output=16)),
    (
        "OpenAI with all details",
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {
                "cached_tokens": 20,
                "cache_write_tokens": 10,
                "audio_tokens": 5,
                "image_tokens": 7,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 30,
                "audio_tokens": 4,
                "accepted_prediction_tokens": 1,
                "rejected_prediction_tokens": 2,
            },
        },
        TokenUsage(
            input=58,
            cache_read=20,
            cache_write=10,
            input_audio=5,
            input_image=7,
            output=16,
            reasoning=30,
            output_audio=4,
        ),
    ),
    (
        "responses",
        {
            "input_tokens": 30,
            "output_tokens": 20,
            "total_tokens": 50,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
            "output_tokens_details": {"reasoning_tokens": 15},
        },
        TokenUsage(input=24, cache_read=4, cache_write=2, output=5, reasoning=15),
    ),
    (
        "DeepSeek",
        {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 3},
        TokenUsage(input=3, cache_read=6, output=1),
    ),
    (
        "Hugging Face",
        {"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 6, "prompt_tokens_details": None},
        TokenUsage(input=3, cache_read=6, output=1),
    ),
    (
        "LiteLLM",
        {
            "prompt_tokens": 20,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 5, "cache_creation_tokens": 7},
        },
        TokenUsage(input=8, cache_read=5, cache_write=7, output=1),
    ),
    (
        "SGLang",
        {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19, "reasoning_tokens": 4},
        TokenUsage(input=9, output=6, reasoning=4),
    ),
    (
        "xAI, reasoning not in the completion",
        {
            "prompt_tokens": 9,
            "completion_tokens": 10,
            "total_tokens": 119,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        TokenUsage(input=9, output=10, reasoning=100),
    ),
    (
        "Gemini's compatible mode",
        {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109},
        TokenUsage(input=35, output=74),
    ),
    (
        "Voxtral, audio not in the prompt",
        {
            "prompt_tokens": 9,
            "completion_tokens": 248,
            "total_tokens": 632,
            "prompt_tokens_details": {"audio_tokens": 375},
        },
        TokenUsage(input=9, input_audio=375, output=248),
    ),
    (
        "Perplexity deep research",
        {
            "prompt_tokens": 33,
            "completion_tokens": 70,
            "total_tokens": 103,
            "citation_tokens": 200,
            "num_search_queries": 21,
            "reasoning_tokens": 900,
        },
        TokenUsage(input=233, output=70, reasoning=900, web_search=21),
    ),
    ("no completion", {"prompt_tokens": 9, "total_tokens": 9}, TokenUsage(input=9)),
    ("no prompt", {"completion_tokens": 9, "total_tokens": 19}, TokenUsage(input=10, output=9)),
    ("whole floats", {"prompt_tokens": 8.0, "completion_tokens": 16.0}, TokenUsage(input=8, output=16)),
    (
        "negative",
        {"prompt_tokens": -8, "completion_tokens": 16, "total_tokens": 16},
        TokenUsage(output=16, anomalous=True),
    ),
    (
        "cached beyond the prompt",
        {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 163}},
        TokenUsage(cache_read=7, output=1, anomalous=True),
    ),
    (
        "reasoning beyond the completion",
        {"prompt_tokens": 7, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 11}},
        TokenUsage(input=7, reasoning=10, anomalous=True),
    ),
    (
        "a part that is no count",
        {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "lots"}},
        TokenUsage(input=7, output=1, anomalous=True),
    ),
    (
        "details that are no object",
        {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": [1], "completion_tokens_details": 3},
        TokenUsage(input=7, output=1),
    ),
]


@pytest.mark.parametrize(("usage", "expected"), [d[1:] for d in DIALECTS], ids=[d[0] for d in DIALECTS])
def test_each_dialect_gives_its_disjoint_buckets(usage: dict[str, Any], expected: TokenUsage) -> None:
    assert openai_usage(usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, [], "12", 12, {"cost": 0.1}, {"prompt_tokens": None, "completion_tokens": None}),
        *({"prompt_tokens": "8", "completion_tokens": 1}, {"prompt_tokens": True}, {"prompt_tokens": 10**30}),
        *({"prompt_tokens": 8.5}, {"prompt_tokens": float("nan")}, {"completion_tokens": 5}),
    ],
)
def test_what_does_not_tell_the_prompts_size_is_no_usage_rather_than_a_free_one(usage: object) -> None:
    assert openai_usage(usage) is None


def test_a_total_alone_is_input_where_there_is_no_output() -> None:
    assert openai_usage({"total_tokens": 12}, gap_is_input=True) == TokenUsage(input=12)


@pytest.mark.parametrize(
    ("flavor", "usage"),
    [("chat", DIALECTS[0][1]), ("chat", DIALECTS[1][1]), ("responses", DIALECTS[2][1]), ("chat", DIALECTS[16][1])],
)
def test_genai_prices_reads_the_same_totals_and_parts(flavor: str, usage: dict[str, Any]) -> None:
    oracle = extract_usage({"model": "gpt-4o", "usage": usage}, provider_id="openai", api_flavor=flavor).usage
    ours = openai_usage(usage)
    assert ours is not None
    assert (ours.input_tokens, ours.output_tokens) == (oracle.input_tokens, oracle.output_tokens)
    if not ours.anomalous:
        assert ours.cached_input_tokens == (oracle.cache_read_tokens or 0)
        assert ours.audio_input_tokens == (oracle.input_audio_tokens or 0)


NUMBERS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.integers(-5, 2000)
    | st.floats()
    | st.text(max_size=3)
)
NAMES = sorted({name for _, usage, _ in DIALECTS for name in usage})
PARTS = ["cached_tokens", "audio_tokens", "reasoning_tokens", "image_tokens", "cache_write_tokens"]
USAGES = st.dictionaries(
    st.sampled_from(NAMES), NUMBERS | st.dictionaries(st.sampled_from(PARTS), NUMBERS, max_size=4), max_size=8
)


@given(USAGES, st.booleans())
def test_no_usage_object_raises_or_gives_a_negative_count(usage: dict[str, Any], gap_is_input: bool) -> None:
    read = openai_usage(usage, gap_is_input=gap_is_input)
    if read is not None:
        assert all(getattr(read, name) >= 0 for name in read.__struct_fields__)
        assert read.input_tokens >= max(read.cached_input_tokens, read.audio_input_tokens)


@given(*[st.integers(0, 10**6)] * 3)
def test_the_whole_total_is_always_accounted_for(prompt: int, completion: int, more: int) -> None:
    read = openai_usage(
        {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion + more}
    )
    assert read is not None
    assert read.total_tokens == prompt + completion + more


@pytest.mark.parametrize("details", [[], "x", 7, True, {"cached_tokens": "5"}, {"cached_tokens": -1}])
def test_details_that_are_no_details_do_not_break_the_reading(details: object) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, "prompt_tokens_details": details}
    found = openai_usage(usage)
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (4, 2)
