"""OpenRouter tells in each usage what it charged, in credits of one USD. Where the call ran on the caller's own key
(`is_byok`) that is only OpenRouter's fee, and the provider bills the rest, which stands beside it; elsewhere the same
member repeats what is in the charge already. Searches stand in `server_tool_use_details`, older ones in
`server_tool_use`, which is LiteLLM's name as well.

Source: openrouter.ai/docs (usage accounting), recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..costs import as_usd
from ..counts import member, part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    if "server_tool_use" not in usage:  # else they are counted there
        counts.web_search += max(part(member(usage, "server_tool_use_details"), "web_search_requests"), 0)


def _cost_usd(usage: Mapping[str, Any]) -> Fraction | None:
    charged = as_usd(usage.get("cost"))
    if charged is None or usage.get("is_byok") is not True:
        return charged
    upstream = as_usd(member(usage, "cost_details").get("upstream_inference_cost"))
    return None if upstream is None else charged + upstream


DIALECT = Dialect(
    name="openrouter",
    marks=frozenset(("cost", "server_tool_use_details")),
    correct=_correct,
    cost_usd=_cost_usd,
)
