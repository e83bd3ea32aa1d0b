"""Pydantic's gateway appends its own estimate of the cost to the usage of whichever API it passes on.

Source: a recorded answer, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..costs import as_usd
from ..counts import member
from .base import Dialect


def _cost_usd(usage: Mapping[str, Any]) -> Fraction | None:
    return as_usd(member(usage, "pydantic_ai_gateway").get("cost_estimate"))


DIALECT = Dialect(
    name="pydantic_gateway",
    marks=frozenset(("pydantic_ai_gateway",)),
    cost_usd=_cost_usd,
)
