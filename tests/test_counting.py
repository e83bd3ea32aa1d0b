"""Recorded usage that is corrected by hand."""

from __future__ import annotations

from askii_middleware.counting import _added
from askii_middleware.usage import TokenUsage, added


def test_a_sum_of_calls_stays_one_when_it_is_corrected_by_hand() -> None:
    batch = added(TokenUsage(input=150_000, output=5), TokenUsage(input=150_000, output=5))
    assert batch.largest_prompt == 150_000
    corrected = _added(batch, {"output_tokens": 3})
    assert corrected == TokenUsage(input=300_000, output=13, largest_prompt=150_000)
