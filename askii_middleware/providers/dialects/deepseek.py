"""DeepSeek: the prompt is a cache hit and a cache miss, which add up to it.

Source: api-docs.deepseek.com/guides/kv_cache, recorded answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..counts import part
from .base import Counts, Dialect


def _correct(counts: Counts, usage: Mapping[str, Any]) -> None:
    counts.cached = counts.cached or part(usage, "prompt_cache_hit_tokens")


DIALECT = Dialect(
    name="deepseek",
    marks=frozenset(("prompt_cache_hit_tokens",)),
    correct=_correct,
)
