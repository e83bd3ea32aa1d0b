"""Counting a prompt as its JSON bounds what a provider counts, and is several times closer than its bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware import Budget, CostTracker
from askii_middleware.calls import CallSpec
from askii_middleware.identity import Identity
from askii_middleware.tokens import MAX_COUNTED_BYTES, count_tokens, encoding_of

toktok = pytest.importorskip("toktok", reason="the extra 'tokenizer' is not installed")

TEXT = st.text(max_size=200) | st.lists(st.sampled_from(["word ", "\n", "  ", '"', "\\", "。", "🧠", "\t", "x"])).map(
    "".join
)


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
@given(contents=st.lists(TEXT, min_size=1, max_size=5), ascii_only=st.booleans())
def test_the_json_of_a_prompt_has_at_least_the_tokens_that_are_billed(
    encoding: str, contents: list[str], ascii_only: bool
) -> None:
    contents = [content.encode(errors="ignore").decode() for content in contents]
    messages = [{"role": "user", "content": content} for content in contents]
    body = json.dumps({"model": "m", "messages": messages}, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    # OpenAI's rule: three tokens around each message and its role's, and three that begin the answer.
    billed = 3 + sum(4 + tokens for tokens in toktok.batch_count(contents, encoding))
    counted = count_tokens(body, encoding)
    assert counted is not None
    assert counted >= billed - 3  # the template's tokens at the end are part of the provider's overhead


def test_english_is_bounded_far_below_its_bytes() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "The ledger holds what a call may cost. " * 50}]})
    counted = count_tokens(body.encode(), "o200k_base")
    assert counted is not None
    assert counted < len(body) / 3


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-4.1", "o200k_base"),
        ("o3", "o200k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-haiku-4-5", None),
        ("tiny", None),
    ],
)
def test_encodings_are_known_by_family(model: str, encoding: str | None) -> None:
    assert encoding_of(model) == encoding


def test_what_cannot_be_counted_is_none() -> None:
    assert count_tokens(b"\xff", "o200k_base") is None
    assert count_tokens(b"x" * (MAX_COUNTED_BYTES + 1), "o200k_base") is None


async def test_the_exact_bound_is_held_only_for_models_of_its_encoding() -> None:
    tracker = CostTracker(
        store="memory://", budgets=[Budget(scope="tenant=*", limit_usd=100)], fallbacks={"gpt-4o": ["gpt-4"]}
    )
    async with tracker:
        spec = CallSpec(
            model="gpt-4o", provider="openai", input_tokens=1000, counted_input=("o200k_base", 250), output_tokens=10
        )
        call = await tracker.admit(Identity(tenant="acme"), spec)
        # 250 tokens at 2.50 USD and 10 at 10 USD per million
        assert call.held_nano_usd == 250 * 2500 + 10 * 10_000
        other = CallSpec(
            model="gpt-4", provider="openai", input_tokens=1000, counted_input=("o200k_base", 250), output_tokens=10
        )
        call = await tracker.admit(Identity(tenant="acme"), other)
        assert call.held_nano_usd == 1000 * 30_000 + 10 * 60_000


@pytest.mark.parametrize(("limit_usd", "counted"), [("1", False), ("0.0032", True)])
async def test_a_prompt_is_counted_only_where_its_bytes_do_not_fit(limit_usd: str, counted: bool) -> None:
    counts: list[int] = []

    def count() -> tuple[str, int]:
        counts.append(1)
        return "o200k_base", 250

    tracker = CostTracker(
        store="memory://",
        budgets=[Budget(scope="tenant=*", limit_usd=limit_usd)],
        fallbacks={"gpt-4o": ["gpt-4o-mini"]},
    )
    async with tracker:
        spec = CallSpec(
            model="gpt-4o",
            provider="openai",
            input_tokens=1000,
            input_estimate=250,
            count_input=count,
            output_tokens=100,
        )
        call = await tracker.admit(Identity(tenant="acme"), spec)
        # Bytes: 2,500 + 1,000 micro-USD; counted: 625 + 1,000.
        assert call.model == "gpt-4o"
        assert call.held_nano_usd == (1_625_000 if counted else 3_500_000)
        assert bool(counts) is counted
        assert call.spec.count_input is None


async def test_a_prompt_that_does_not_fit_counted_either_goes_to_a_fallback() -> None:
    tracker = CostTracker(
        store="memory://", budgets=[Budget(scope="tenant=*", limit_usd="0.001")], fallbacks={"gpt-4o": ["gpt-4o-mini"]}
    )
    async with tracker:
        spec = CallSpec(
            model="gpt-4o",
            provider="openai",
            input_tokens=1000,
            count_input=lambda: ("o200k_base", 250),
            output_tokens=100,
        )
        call = await tracker.admit(Identity(tenant="acme"), spec)
        assert call.model == "gpt-4o-mini"
        assert call.held_nano_usd == 250 * 150 + 100 * 600
