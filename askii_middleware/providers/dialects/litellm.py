"""LiteLLM's proxy brings every provider's usage into OpenAI's form: cache writes stand in the prompt details under a
name of its own, and searches in Anthropic's way. What it counts as the prompt has the cached tokens in it.

Its cost comes in a header: see `costs.absorb_cost_headers`. Source: litellm `types/utils.py` (`Usage`), 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..counts import member, part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    details = member(usage, "prompt_tokens_details", "input_tokens_details")
    counts.cached = counts.cached or part(usage, "cache_read_input_tokens")
    # DashScope has the whole of Anthropic's names inside the details.
    written = part(details, "cache_creation_tokens", "cache_creation_input_tokens")
    written = written or part(usage, "cache_creation_input_tokens")
    counts.cache_write = counts.cache_write or written
    counts.cache_write_1h = part(member(details, "cache_creation_token_details"), "ephemeral_1h_input_tokens")
    searches = part(member(usage, "server_tool_use"), "web_search_requests") or part(details, "web_search_requests")
    counts.web_search += max(searches, 0)


DIALECT = Dialect(
    name="litellm",
    marks=frozenset(
        (
            *("cache_creation_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
            *("server_tool_use", "web_search_requests"),
        )
    ),
    correct=_correct,
)
