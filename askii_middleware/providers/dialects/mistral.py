"""Mistral sends usage in every stream and answers 422 to `stream_options`. What connectors bring into a conversation is
counted beside prompt and completion, and is read like a prompt; Voxtral's audio is billed by the second.

Source: mistralai SDK 3.7 (`usageinfo.py`, `conversationusageinfo.py`), recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..counts import member, part, total
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    counts.prompt += max(part(usage, "connector_tokens"), 0)
    connectors = member(usage, "connectors")
    for name in ("web_search", "web_search_premium"):
        counts.web_search += max(part(connectors, name), 0)
    counts.second = total(usage, "prompt_audio_seconds") or 0
    # Some answers have the cached tokens under these names only.
    of_prompt = member(usage, "prompt_token_details")
    counts.cached = counts.cached or part(usage, "num_cached_tokens") or part(of_prompt, "cached_tokens")


DIALECT = Dialect(
    name="mistral",
    marks=frozenset(
        ("connector_tokens", "connectors", "prompt_audio_seconds", "num_cached_tokens", "prompt_token_details")
    ),
    correct=_correct,
    # Its own names: its open weights served by others carry the publisher before a slash.
    refusing_models=(
        *("mistral-", "ministral-", "codestral-", "magistral-", "devstral-", "pixtral-", "voxtral-", "open-mi"),
    ),
)
