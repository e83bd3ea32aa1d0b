"""OpenRouter tells in each usage what it charged, in credits of one USD. Where the call ran on the caller's own key
(`is_byok`) that is only OpenRouter's fee, and the provider bills the rest, which stands beside it; elsewhere the same
member repeats what is in the charge already.

Source: openrouter.ai/docs (usage accounting), recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..costs import as_usd
from ..counts import member
from .base import Dialect


def _cost_usd(usage: Mapping[str, Any]) -> Fraction | None:
    charged = as_usd(usage.get("cost"))
    if charged is None or usage.get("is_byok") is not True:
        return charged
    upstream = as_usd(member(usage, "cost_details").get("upstream_inference_cost"))
    return None if upstream is None else charged + upstream


DIALECT = Dialect(
    name="openrouter",
    marks=frozenset(("cost",)),
    cost_usd=_cost_usd,
)
