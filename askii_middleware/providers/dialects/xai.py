"""xAI tells what it charged, in ticks of 10⁻¹⁰ USD, all discounts and tools included. Live search is billed by the
sources used, the tools that its servers run by their calls. Reasoning stands outside the completion in chat, inside
the output in responses: the total tells.

Source: docs.x.ai/developers/cost-tracking and the tools' overview, recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..costs import MAX_USD
from ..counts import member, part
from .base import Counts, Dialect

TICKS_PER_USD = 10**10


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    calls = member(usage, "server_side_tool_usage_details")
    if calls:
        searches = max(part(calls, "web_search_calls"), 0) + max(part(calls, "x_search_calls"), 0)
    else:
        searches = max(part(usage, "num_server_side_tools_used") or part(usage, "num_sources_used"), 0)
    counts.web_search += searches


def _cost_usd(usage: Mapping[str, Any]) -> Fraction | None:
    ticks = usage.get("cost_in_usd_ticks")
    return Fraction(ticks, TICKS_PER_USD) if type(ticks) is int and 0 <= ticks <= MAX_USD * TICKS_PER_USD else None


DIALECT = Dialect(
    name="xai",
    marks=frozenset(
        ("num_sources_used", "num_server_side_tools_used", "server_side_tool_usage_details", "cost_in_usd_ticks")
    ),
    correct=_correct,
    cost_usd=_cost_usd,
)
