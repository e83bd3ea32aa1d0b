"""A record's tokens as lago-agent-sdk counts them, so that its metrics go on with the same figures.

Facts: lago-agent-sdk 0.3.1 (`config.DEFAULT_METRIC_CODES`, `adapters/`, `token_semantics`), which keeps each
provider's own convention instead of one for all: Anthropic and Bedrock report cached tokens beside the input, the
others as a part of it; Gemini reports thoughts beside the output, the others as a part of it. Whoever bills input
*and* cached tokens of the latter kind bills some tokens twice: that is for the plan in Lago to know.

It also counts tool calls (`llm_tool_calls`), which records do not have.
"""

from __future__ import annotations

from typing import Final

from askii_middleware.records import UsageRecord

TOKEN_CODES: Final[dict[str, str]] = {
    "input": "llm_input_tokens",
    "output": "llm_output_tokens",
    "cache_read": "llm_cached_input_tokens",
    "cache_write": "llm_cache_creation_tokens",
    "cache_write_5m": "llm_cache_write_5m_tokens",
    "cache_write_1h": "llm_cache_write_1h_tokens",
    "reasoning": "llm_reasoning_tokens",
    "image_input": "llm_image_input_tokens",
    "audio_input": "llm_audio_input_tokens",
    "audio_output": "llm_audio_output_tokens",
}
"""lago-agent-sdk's codes by the names it counts under."""


def token_counts(record: UsageRecord) -> dict[str, int]:
    """How many tokens of each kind a call used, by the names of `TOKEN_CODES`. Kinds that its API does not tell apart
    are left out. Which cache was written to and what was an image stands in the charges: a call without a price has
    none of these.
    """
    usage = record.usage
    family = record.api.partition(".")[0]
    counts = {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cache_read": usage.cached_input_tokens,
        "reasoning": usage.reasoning_tokens,
        "audio_input": usage.audio_input_tokens,
        "audio_output": usage.audio_output_tokens,
    }
    if family in ("anthropic", "bedrock"):
        counts["input"] -= usage.cached_input_tokens + usage.cache_write_tokens
        counts["cache_write"] = usage.cache_write_tokens
        del counts["reasoning"]
    if family == "anthropic":
        counts["cache_write_5m"] = _charged(record, "cache_write")
        counts["cache_write_1h"] = _charged(record, "cache_write_1h")
    if family == "gemini":
        counts["output"] -= usage.reasoning_tokens
        counts["image_input"] = _charged(record, "input_image") + _charged(record, "cache_read_image")
    return counts


def _charged(record: UsageRecord, bucket: str) -> int:
    return sum(charge.quantity for charge in record.charges if charge.bucket.rpartition(":")[2] == bucket)
