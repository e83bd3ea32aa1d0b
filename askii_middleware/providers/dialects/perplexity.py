"""Perplexity: what deep research reads and thinks is billed beside the totals, searches by their number, and the usage
tells its cost. Usage comes with every chunk and grows; the fee of the request is in the last one's cost only.

Source: docs.perplexity.ai (API reference and pricing), recorded streams, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..costs import as_usd
from ..counts import member, part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    if "citation_tokens" in usage or "num_search_queries" in usage:  # elsewhere reasoning is a part of the completion
        counts.prompt += max(part(usage, "citation_tokens"), 0)
        counts.completion += max(part(usage, "reasoning_tokens"), 0)
        counts.web_search += max(part(usage, "num_search_queries"), 0)


def _cost_usd(usage: Mapping[str, Any]) -> Fraction | None:
    return as_usd(member(usage, "cost").get("total_cost"))


DIALECT = Dialect(
    name="perplexity",
    marks=frozenset(("citation_tokens", "num_search_queries", "cost")),
    correct=_correct,
    cost_usd=_cost_usd,
)
