"""Hugging Face's router and Moonshot: cached tokens stand at the top level, as a part of the prompt.

Source: recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..counts import part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    counts.cached = counts.cached or part(usage, "cached_tokens")


DIALECT = Dialect(
    name="huggingface",
    marks=frozenset(("cached_tokens",)),
    correct=_correct,
)
